"""Files with several sets of weights: the chosen one is reported, and another can be asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from pom_export.errors import CheckpointError, InputError
from pom_export.mixer import PolynomialMixer, RotaryPolynomialMixer
from pom_export.models import GPT, GPTConfig
from tests.weight_files import FACTOR, Tensors, factor_of, load, scaled

GPT_CONFIG = GPTConfig(19, 2, 2, 8, 4, 1, 2, 3, mlp_width=20, attention_layers=(1,))


@pytest.mark.parametrize(
    ("trained", "average", "name"),
    [
        ("state_dict", "ema_state_dict", "ema"),
        ("model", "model_ema", "ema"),
        ("model", "model_ema2", "ema2"),
        ("state_dict", "state_dict_ema", "ema"),
        ("model_state_dict", "swa_state_dict", "ema"),
        ("net", "averagedModel", "ema"),
    ],
)
def test_the_trained_weights_are_taken_and_the_average_is_named(
    raw: Tensors, tmp_path: Path, trained: str, average: str, name: str
) -> None:
    content = {"epoch": 3, average: scaled(raw), trained: raw}
    loaded = load(content, tmp_path)
    assert factor_of(loaded, raw) == 1
    assert trained in loaded.notes[0]
    assert average in loaded.notes[0]
    assert loaded.other_weights == [f"{name} ({average})"]
    for asked in (name, average):
        assert factor_of(load(content, tmp_path, asked), raw) == FACTOR
    assert factor_of(load(content, tmp_path, "model"), raw) == 1


@pytest.mark.parametrize("names", [("generator", "discriminator"), ("student", "teacher"), ("model", "net")])
@pytest.mark.parametrize("flat", [True, False])
def test_of_two_networks_the_user_chooses(raw: Tensors, tmp_path: Path, names: tuple[str, str], flat: bool) -> None:
    content: Any = {names[0]: raw, names[1]: scaled(raw)}
    if flat:
        content = {f"{outer}.{name}": t for outer, tensors in content.items() for name, t in tensors.items()}
    with pytest.raises(CheckpointError, match=r"several sets of weights: .*`weights=NAME`") as refused:
        load(content, tmp_path)
    assert all(name in str(refused.value) for name in names)
    assert [factor_of(load(content, tmp_path, name), raw) for name in names] == [1, FACTOR]


def test_of_two_networks_the_one_with_mixers_is_taken(raw: Tensors, tmp_path: Path) -> None:
    loaded = load({"discriminator": nn.Linear(2, 2).state_dict(), "generator": raw}, tmp_path)
    assert factor_of(loaded, raw) == 1
    assert loaded.other_weights == ["discriminator"]


def test_a_name_that_is_not_there_lists_those_that_are(raw: Tensors, tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"has no weights 'ema3'; it has model \(state_dict\), ema \(ema\.shadow\)"
    ):
        load({"state_dict": raw, "ema": {"shadow": scaled(raw), "decay": 0.9}}, tmp_path, "ema3")


def test_names_are_text(raw: Tensors, tmp_path: Path) -> None:
    for name, kind in ((3, "an int"), (None, "None"), (2.5, "a float")):
        with pytest.raises(CheckpointError, match=f"a name among the weights is {kind}, not text"):
            load({"model": {**raw, name: torch.ones(1)}}, tmp_path)


def test_a_name_is_text(raw: Tensors, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="weights must be a name, got 3"):
        load({"model": raw}, tmp_path, 3)  # type: ignore[arg-type]


def test_one_set_has_nothing_to_say(raw: Tensors, tmp_path: Path) -> None:
    for content in (raw, {"model": raw, "step": 1}, {"model": raw, "state_dict": raw}):
        loaded = load(content, tmp_path)
        assert (loaded.notes, loaded.other_weights, loaded.weights) == ([], [], "model")
        assert factor_of(load(content, tmp_path, "model"), raw) == 1


def test_an_averaged_model_is_said_to_be_one(tmp_path: Path) -> None:
    mixer = PolynomialMixer(8, 3, 2)
    averaged = AveragedModel(nn.Sequential(mixer)).state_dict()
    for content in (averaged, {"model": averaged}, {f"module.{name}": t for name, t in averaged.items()}):
        loaded = load(content, tmp_path)
        assert factor_of(loaded, mixer.state_dict()) == 1
        assert "average" in loaded.notes[0]
    module = {**{f"net.{n}": t for n, t in mixer.state_dict().items()}, **{f"ema.{n}": t for n, t in averaged.items()}}
    loaded = load({"state_dict": module}, tmp_path)
    assert (loaded.weights, loaded.other_weights) == ("model", ["ema (state_dict.ema)"])


def test_lightnings_averaging_puts_the_average_in_place_of_the_weights(raw: Tensors, tmp_path: Path) -> None:
    content = {
        "state_dict": scaled(raw),
        "current_model_state": raw,
        "averaging_state": {"n_averaged": torch.tensor(3)},
        "callbacks": {"EMAWeightAveraging": {"latest_update_step": 7}},
    }
    loaded = load(content, tmp_path)
    assert factor_of(loaded, raw) == FACTOR
    assert loaded.notes[0].startswith("the weights are ema (state_dict), an average; the file also holds model (curr")
    assert factor_of(load(content, tmp_path, "model"), raw) == 1


def test_other_trainers_put_the_average_in_place_of_the_weights(raw: Tensors, tmp_path: Path) -> None:
    wrapped = {f"module.{name}": tensor for name, tensor in raw.items()}
    by_name = {"ema_model": {"named_parameters_dict": raw, "named_buffers_dict": {}}, "ema_weights_active": True}
    for content in (
        {
            "state_dict": scaled(raw),
            "ema_state_dict": {**wrapped, "steps": torch.tensor(7)},
            "message_hub": {},
        },  # MMEngine
        {"state": {"model": scaled(raw), "algorithms": [("EMA", by_name)]}},  # Composer
    ):
        loaded = load(content, tmp_path)
        assert (factor_of(loaded, raw), loaded.weights, len(loaded.other_weights)) == (FACTOR, "ema", 1)
        assert "an average; the file also holds model (" in loaded.notes[0]
        assert factor_of(load(content, tmp_path, "model"), raw) == 1


def test_averages_of_callbacks_and_of_optimizers_are_found(raw: Tensors, tmp_path: Path) -> None:
    for place in (
        {"callbacks": {"EMACallback{'decay': 0.9}": {"weights": scaled(raw)}}},
        {"callbacks": {"StochasticWeightAveraging": {"average_model_state": scaled(raw)}}},
        {"optimizer_states": [{"state": {}, "param_groups": []}, {"ema": tuple(scaled(raw).values())}]},
    ):
        content = {"state_dict": raw, **place}
        assert len(load(content, tmp_path).other_weights) == 1
        assert factor_of(load(content, tmp_path, "ema"), raw) == FACTOR


def test_numbers_that_count_lie_among_averages(raw: Tensors, tmp_path: Path) -> None:
    for counters in ({"decay": torch.tensor(0.9), "num_updates": torch.tensor(3)}, {"num_updates": 3}):
        content = {"model": raw, "ema": {**scaled(raw), **counters}}
        assert factor_of(load(content, tmp_path, "ema"), raw) == FACTOR


def test_an_optimizers_state_is_no_weights(raw: Tensors, tmp_path: Path) -> None:
    named = {"ag_proj.weight": {"exp_avg": torch.ones(2), "exp_avg_sq": torch.ones(2)}}
    content = {"model": raw, "optimizer": {"state": named, "param_groups": []}}
    assert load(content, tmp_path).other_weights == []


@pytest.mark.parametrize("key", ["exp_avg", "exp_avg_sq", "momentum_buffer"])
def test_averages_of_gradients_are_no_weights(raw: Tensors, tmp_path: Path, key: str) -> None:
    for moments in (scaled(raw), list(raw.values())):
        for content in ({key: moments}, {"opt": {key: moments}}, {"optimizer": scaled(raw)}, {"grads": moments}):
            loaded = load({"model": raw, **content}, tmp_path)
            assert (loaded.notes, loaded.other_weights) == ([], [])
            with pytest.raises(CheckpointError, match="no weights 'ema'"):
                load({"model": raw, **content}, tmp_path, "ema")


def test_weights_saved_while_a_schedule_free_optimizer_trains_are_reported(raw: Tensors, tmp_path: Path) -> None:
    for training in (True, False):
        state = {"state": {0: {"z": torch.ones(2)}}, "param_groups": [{"train_mode": training, "params": [0]}]}
        for content in ({"optimizer": state}, {"optimizer_states": [state]}):
            notes = load({"state_dict": raw, **content}, tmp_path).notes
            assert any("schedule-free" in note for note in notes) == training


def test_an_optimizers_own_average_is_found(raw: Tensors, tmp_path: Path) -> None:
    state = {"state": {}, "param_groups": [], "ema": list(scaled(raw).values())}
    assert factor_of(load({"model": raw, "optimizer": state}, tmp_path, "ema"), raw) == FACTOR


def test_averages_by_their_decay(raw: Tensors, tmp_path: Path) -> None:
    content = {"model": raw, "ema": {0.99: scaled(raw), 0.999: scaled(raw, 3)}}
    assert load(content, tmp_path).other_weights == ["ema.0.99", "ema.0.999"]
    assert factor_of(load(content, tmp_path, "ema.0.999"), raw) == 3


def test_averages_of_other_libraries(raw: Tensors, tmp_path: Path) -> None:
    wrapped = {f"module.{name}": tensor for name, tensor in scaled(raw).items()}
    by_name = {"ema_model": {"named_parameters_dict": scaled(raw), "named_buffers_dict": {}}}
    for content in (
        {"state_dict": raw, "ema_state_dict": {**wrapped, "steps": torch.tensor(7)}},  # mmengine
        {"state": {"model": raw, "algorithms": [("EMA", by_name)]}},  # composer
    ):
        assert len(load(content, tmp_path).other_weights) == 1
        assert factor_of(load(content, tmp_path, "ema"), raw) == FACTOR


def test_an_average_that_is_the_weights_themselves_is_not_a_set(raw: Tensors, tmp_path: Path) -> None:
    for content in ({"ema": raw, "model": raw}, {"model": raw, "ema": raw}):
        for name in (None, "model", "ema"):
            loaded = load(content, tmp_path, name)
            assert (loaded.weights, loaded.notes) == ("model", [])


def test_a_choice_names_every_set(raw: Tensors, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"several sets of weights: g, d, ema \(g_ema\)"):
        load({"g": raw, "d": scaled(raw), "g_ema": scaled(raw, 3)}, tmp_path)


def test_a_network_beside_its_average_is_one_whatever_it_is_called(raw: Tensors, tmp_path: Path) -> None:
    both = {**{f"unet.{n}": t for n, t in raw.items()}, **{f"unet_ema.{n}": t for n, t in scaled(raw).items()}}
    loaded = load({"state_dict": both}, tmp_path)
    assert (factor_of(loaded, raw), len(loaded.other_weights)) == (1, 1)
    with pytest.raises(CheckpointError, match=r"`weights`: state_dict\.unet or ema \(state_dict\.unet_ema\)"):
        load({"state_dict": {**both, "loss.weight": torch.ones(3)}}, tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_buffers_that_are_rounded_are_reported(tmp_path: Path, dtype: torch.dtype) -> None:
    mixer = RotaryPolynomialMixer(8, 2, 3, max_seq_len=9)
    average = [p.detach().clone() for p in mixer.parameters()]
    content = {"state_dict": mixer.to(dtype).state_dict(), "ema_params": average}
    rounded = [note for note in load(content, tmp_path, "ema").notes if "rounded to bfloat16: freqs_cos" in note]
    assert len(rounded) == (dtype == torch.bfloat16)


def test_ema_pytorch_keeps_both_in_one_state_dict(raw: Tensors, tmp_path: Path) -> None:
    counters = {"initted": torch.tensor(True), "step": torch.tensor(5)}
    both = {
        **{f"online_model.{name}": t for name, t in raw.items()},
        **{f"ema_model.{name}": t for name, t in scaled(raw).items()},
    }
    loaded = load({**both, **counters}, tmp_path)
    assert (factor_of(loaded, raw), loaded.other_weights) == (FACTOR, ["model (online_model)"])
    assert len(loaded.notes) == 1
    inside = {**{f"net.{n}": t for n, t in raw.items()}, **{f"ema.{n}": t for n, t in {**both, **counters}.items()}}
    assert factor_of(load({"state_dict": inside}, tmp_path), raw) == 1
    assert factor_of(load({"state_dict": inside}, tmp_path, "ema"), raw) == FACTOR
    beside = {"model": raw, "ema": {**both, **counters}}
    loaded = load(beside, tmp_path)
    assert factor_of(loaded, raw) == 1
    assert factor_of(load(beside, tmp_path, "ema_model"), raw) == FACTOR
    alone = {**{f"ema_model.{name}": t for name, t in raw.items()}, **counters}
    assert "average" in load(alone, tmp_path).notes[0]


def test_a_prefix_names_a_part_of_a_state_dict(raw: Tensors, tmp_path: Path) -> None:
    content = {**{f"encoder.mixer.{name}": tensor for name, tensor in raw.items()}, "head.weight": torch.ones(2)}
    with pytest.raises(CheckpointError, match="does not know"):
        load(content, tmp_path)
    for prefix in ("encoder", "encoder.mixer", "encoder.mixer."):
        assert factor_of(load(content, tmp_path, prefix), raw) == 1


def test_a_network_among_other_things_is_pointed_to(raw: Tensors, tmp_path: Path) -> None:
    """Lightning modules have losses and metrics beside the network and its average."""
    content = {
        **{f"model.{name}": tensor for name, tensor in raw.items()},
        **{f"ema_model.{name}": tensor for name, tensor in scaled(raw).items()},
        "loss.weight": torch.ones(3),
    }
    with pytest.raises(
        CheckpointError, match=r"`weights`: model \(state_dict\.model\) or ema \(state_dict\.ema_model\)"
    ):
        load({"state_dict": content}, tmp_path)
    for prefix, factor in (("model", 1), ("ema_model", FACTOR), ("state_dict.model", 1), ("ema", FACTOR)):
        loaded = load({"state_dict": content}, tmp_path, prefix)
        assert (factor_of(loaded, raw), len(loaded.other_weights)) == (factor, 1)
        assert "everything beside them is left out (loss)" in loaded.notes[0]
        assert factor_of(load({"state_dict": content}, tmp_path, loaded.weights), raw) == factor


def test_whole_models_under_prefixes_of_any_name_are_sets(tmp_path: Path) -> None:
    model = GPT(GPT_CONFIG).state_dict()
    content = {f"{prefix}.{name}": t * k for prefix, k in (("a", 1), ("b", 3)) for name, t in model.items()}
    with pytest.raises(CheckpointError, match="several sets of weights: a, b"):
        load(content, tmp_path, degree=2)
    assert factor_of(load(content, tmp_path, "b", degree=2), model) == 3


def test_one_state_dict_under_two_keys_is_one_set(raw: Tensors, tmp_path: Path) -> None:
    for name in ("student", "teacher"):
        loaded = load({"student": raw, "teacher": raw}, tmp_path, name)
        assert (factor_of(loaded, raw), loaded.other_weights) == (1, [])


def test_averages_in_other_forms_are_said_to_be_left_out(raw: Tensors, tmp_path: Path) -> None:
    vector = torch.cat([tensor.flatten() for tensor in raw.values()])
    for average in (vector, nn.Linear(2, 2), dict(enumerate(raw.values(), 1))):
        loaded = load(
            {"model": raw, "model_ema": average, "ema_decay": 0.9, "ema_rng": [torch.ones(2).byte()]}, tmp_path
        )
        assert loaded.notes == ["model_ema may be an average of the weights, in a form that is not supported"]


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_fsdp_wrapped_module.", "module.module."])
def test_a_name_with_a_prefix_and_without_is_refused(raw: Tensors, tmp_path: Path, prefix: str) -> None:
    for first, second in ((prefix, ""), ("", prefix)):
        content = {**{first + n: t for n, t in raw.items()}, **{second + n: t for n, t in scaled(raw).items()}}
        with pytest.raises(CheckpointError, match="twice"):
            load(content, tmp_path)
