"""Files with several sets of weights: which one is taken is said, and another can be asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from pom_export.checkpoint import LoadedModel, load_model
from pom_export.errors import CheckpointError, InputError
from pom_export.mixer import PolynomialMixer, RotaryPolynomialMixer
from pom_export.models import GPT, GPTConfig

Tensors = dict[str, Tensor]
GPT_CONFIG = GPTConfig(19, 2, 2, 8, 4, 1, 2, 3, mlp_width=20, attention_layers=(1,))
FACTOR = 0.5


def scaled(tensors: Tensors, factor: float = FACTOR) -> Tensors:
    return {name: tensor * factor for name, tensor in tensors.items()}


@pytest.fixture
def raw() -> Tensors:
    torch.manual_seed(0)
    return PolynomialMixer(8, 3, 2).state_dict()


def load(content: Any, folder: Path, weights: str | None = None, **hints: Any) -> LoadedModel:
    torch.save(content, folder / "m.pt")
    return load_model(folder / "m.pt", weights=weights, **hints)


def factor_of(loaded: LoadedModel, raw: Tensors) -> float:
    """Return how many times the raw weights a model's are."""
    state = loaded.module.state_dict()
    name = next(name for name in raw if name.endswith("ag_proj.weight"))
    factor = float((state[name] / raw[name]).mean())
    assert all(torch.allclose(state[name], raw[name] * factor) for name in raw if "inv_freq" not in name)
    return round(factor, 6)


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
    with pytest.raises(CheckpointError, match=r"several sets of weights: .*--weights") as refused:
        load(content, tmp_path)
    assert all(name in str(refused.value) for name in names)
    assert [factor_of(load(content, tmp_path, name), raw) for name in names] == [1, FACTOR]


def test_of_two_networks_the_one_with_mixers_is_taken(raw: Tensors, tmp_path: Path) -> None:
    loaded = load({"discriminator": nn.Linear(2, 2).state_dict(), "generator": raw}, tmp_path)
    assert factor_of(loaded, raw) == 1
    assert loaded.other_weights == ["discriminator"]


def test_a_name_that_is_not_there_lists_those_that_are(raw: Tensors, tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"no weights 'ema3'; there are model \(state_dict\), ema \(ema\.shadow\)"
    ):
        load({"state_dict": raw, "ema": {"shadow": scaled(raw), "decay": 0.9}}, tmp_path, "ema3")


def test_names_are_text(raw: Tensors, tmp_path: Path) -> None:
    for name in (3, None, 2.5):
        with pytest.raises(CheckpointError, match=f"a name among the weights is a {type(name).__name__}, not text"):
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


def test_weights_saved_while_a_schedule_free_optimizer_trains_are_said(raw: Tensors, tmp_path: Path) -> None:
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


def test_an_average_that_is_the_weights_themselves_is_none(raw: Tensors, tmp_path: Path) -> None:
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
    with pytest.raises(CheckpointError, match=r"--weights: state_dict\.unet or ema \(state_dict\.unet_ema\)"):
        load({"state_dict": {**both, "loss.weight": torch.ones(3)}}, tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_buffers_that_are_rounded_are_said(tmp_path: Path, dtype: torch.dtype) -> None:
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


@pytest.mark.parametrize("place", ["ema_params", "ema.shadow_params", "ema_state_dict.shadow_params"])
def test_a_list_has_the_names_of_the_state_dict(tmp_path: Path, place: str) -> None:
    """A rotary mixer's tables are buffers, and not among the parameters that are averaged."""
    mixer = RotaryPolynomialMixer(8, 2, 3, n_groups=2, n_sel_heads=4, bias=True, max_seq_len=9)
    values: Any = [p * FACTOR for p in mixer.parameters()]
    for key in reversed(place.split(".")[1:]):
        values = {key: values, "decay": 0.9, "collected_params": None}
    state = {f"net.{name}": tensor for name, tensor in mixer.state_dict().items()}
    loaded = load({"state_dict": state, place.split(".")[0]: values}, tmp_path, "ema")
    assert loaded.other_weights == ["model (state_dict)"]
    for name, parameter in mixer.named_parameters():
        assert torch.equal(loaded.module.get_parameter(name), parameter * FACTOR)
    for name, buffer in mixer.named_buffers():
        assert torch.equal(loaded.module.get_buffer(name), buffer)


def test_a_list_of_a_whole_state_dict_is_told_by_its_number(tmp_path: Path) -> None:
    mixer = RotaryPolynomialMixer(8, 2, 3, max_seq_len=9)
    values = [tensor * FACTOR for tensor in mixer.state_dict().values()]
    content = {"state_dict": mixer.state_dict(), "callbacks": {"EMA": {"ema_weights": values, "cur_step": 3}}}
    loaded = load(content, tmp_path, "ema")
    assert all(torch.equal(t, mixer.state_dict()[n] * FACTOR) for n, t in loaded.module.state_dict().items())


def test_weights_that_were_set_aside_are_no_average(raw: Tensors, tmp_path: Path) -> None:
    values = list(raw.values())
    ema = {"shadow_params": [value * FACTOR for value in values], "collected_params": values}
    assert factor_of(load({"model": raw, "ema": ema}, tmp_path, "ema"), raw) == FACTOR


def test_a_backup_beside_an_average_is_none(raw: Tensors, tmp_path: Path) -> None:
    """While the average is in the model's place, it keeps the trained weights."""
    average = scaled(raw)
    loaded = load({"model": average, "ema": {"decay": 0.9, "shadow": scaled(raw), "backup": raw}}, tmp_path, "backup")
    assert (factor_of(loaded, raw), loaded.weights) == (1, "ema.backup")
    assert "average" not in loaded.notes[0]
    loaded = load(
        {"state_dict": raw, "callbacks": {"EMA": {"shadow": average, "backup": scaled(raw, 3)}}}, tmp_path, "ema"
    )
    assert factor_of(loaded, raw) == FACTOR


def test_a_tied_parameter_is_in_a_list_once(tmp_path: Path) -> None:
    model = GPT(GPT_CONFIG)
    content = {
        "state_dict": {f"model.{name}": tensor for name, tensor in model.state_dict().items()},
        **{f"ema_params{i}": [p * i for p in model.parameters()] for i in (2, 3)},
    }
    assert load(content, tmp_path, degree=2).other_weights == ["ema2 (ema_params2)", "ema3 (ema_params3)"]
    loaded = load(content, tmp_path, "ema3", degree=2)
    assert factor_of(loaded, {name: p.detach() for name, p in model.named_parameters()}) == 3
    assert loaded.module.get_parameter("lm_head.weight") is loaded.module.get_parameter("transformer.wte.weight")


def test_a_list_that_does_not_fit_is_refused(raw: Tensors, tmp_path: Path) -> None:
    values = list(raw.values())
    for changed, seen in (
        (values[:-1], "ema (ema_params) has 3 tensors, the model has 4 parameters"),
        ([*values, values[0]], "has 5 tensors"),
        (values[::-1], "tensor 0 of ema (ema_params) is (8, 16), but"),
        ([*values[:-1], torch.ones(0)], "holds no values"),
    ):
        content = {"state_dict": raw, "ema_params": changed}
        assert load(content, tmp_path).weights == "model"
        with pytest.raises(CheckpointError) as refused:
            load(content, tmp_path, "ema")
        assert seen in str(refused.value)
    with pytest.raises(CheckpointError, match="lists of weights without their names"):
        load({"ema_params": values}, tmp_path)


def test_an_average_of_parameters_by_name_has_the_buffers_of_the_weights(tmp_path: Path) -> None:
    mixer = RotaryPolynomialMixer(8, 2, 3, max_seq_len=9)
    shadow = {name: p.detach() * FACTOR for name, p in mixer.named_parameters()}
    state = {f"net.{name}": tensor for name, tensor in mixer.state_dict().items()}
    for average in (shadow, {f"net.{name}": t for name, t in shadow.items()}):
        loaded = load({"state_dict": state, "ema": {"shadow": average}}, tmp_path, "ema")
        assert factor_of(loaded, {name: p.detach() for name, p in mixer.named_parameters()}) == FACTOR
        assert torch.equal(loaded.module.get_buffer("freqs_cos"), mixer.get_buffer("freqs_cos"))
    del shadow["po_coeff"]
    with pytest.raises(CheckpointError, match="lacks parameters of the model, such as po_coeff"):
        load({"state_dict": state, "ema": shadow}, tmp_path, "ema")


def test_an_average_whose_names_lost_their_dots(raw: Tensors, tmp_path: Path) -> None:
    """As LitEma of the latent diffusion models registers its buffers."""
    content = {
        **{f"model.{name}": tensor for name, tensor in raw.items()},
        **{f"model_ema.{name.replace('.', '')}": tensor for name, tensor in scaled(raw).items()},
        "model_ema.decay": torch.tensor(0.9),
        "model_ema.num_updates": torch.tensor(3),
    }
    loaded = load({"state_dict": content}, tmp_path)
    assert (factor_of(loaded, raw), loaded.other_weights) == (1, ["ema (state_dict.model_ema)"])
    assert factor_of(load({"state_dict": content}, tmp_path, "model_ema"), raw) == FACTOR


def test_a_prefix_names_a_part_of_a_state_dict(raw: Tensors, tmp_path: Path) -> None:
    content = {**{f"encoder.mixer.{name}": tensor for name, tensor in raw.items()}, "head.weight": torch.ones(2)}
    with pytest.raises(CheckpointError, match="no class"):
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
        CheckpointError, match=r"--weights: model \(state_dict\.model\) or ema \(state_dict\.ema_model\)"
    ):
        load({"state_dict": content}, tmp_path)
    for prefix, factor in (("model", 1), ("ema_model", FACTOR), ("state_dict.model", 1), ("ema", FACTOR)):
        loaded = load({"state_dict": content}, tmp_path, prefix)
        assert (factor_of(loaded, raw), len(loaded.other_weights)) == (factor, 1)
        assert "what lies beside is left out (loss)" in loaded.notes[0]
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
    for average in (vector, nn.Linear(2, 2), dict(enumerate(raw.values()))):
        loaded = load(
            {"model": raw, "model_ema": average, "ema_decay": 0.9, "ema_rng": [torch.ones(2).byte()]}, tmp_path
        )
        assert loaded.notes == ["model_ema may be an average of the weights, in a form that is not read"]


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_fsdp_wrapped_module.", "module.module."])
def test_a_name_with_a_prefix_and_without_is_refused(raw: Tensors, tmp_path: Path, prefix: str) -> None:
    for first, second in ((prefix, ""), ("", prefix)):
        content = {**{first + n: t for n, t in raw.items()}, **{second + n: t for n, t in scaled(raw).items()}}
        with pytest.raises(CheckpointError, match="twice"):
            load(content, tmp_path)
