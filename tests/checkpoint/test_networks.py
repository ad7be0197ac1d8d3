"""State dicts that hold several networks, and other things: each network is named, and can be asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pom_export.checkpoint import LoadedModel
from pom_export.errors import CheckpointError
from pom_export.mixer import PolynomialMixer
from pom_export.models import GPT, GPTConfig, JiT
from tests.small_models import TINY_JIT
from tests.weight_files import Tensors, load, scaled


@pytest.fixture(scope="module")
def image_model() -> nn.Module:
    torch.manual_seed(0)
    model = JiT(TINY_JIT)
    for parameter in model.parameters():
        parameter.data.normal_()
    return model


def below(prefix: str, tensors: Tensors) -> Tensors:
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def others_beside(prefix: str = "") -> Tensors:
    return {f"{prefix}lpips.net.weight": torch.ones(3, 3), f"{prefix}fid.mean": torch.ones(3)}


def post_hoc(tensors: Tensors) -> Tensors:
    """Save averages as ema-pytorch's PostHocEMA does, of two lengths: here half and a quarter of the weights."""
    both = {}
    for number, factor in enumerate((0.5, 0.25)):
        counters = {"initted": torch.tensor(data=True), "step": torch.tensor(3)}
        both |= below(f"ema_models.{number}", {**below("ema_model", scaled(tensors, factor)), **counters})
    return both


def factor_of(loaded: LoadedModel, raw: Tensors) -> float:
    """Return how many times as large as the raw ones a model's parameters are."""
    parameters = dict(loaded.module.named_parameters())
    name = next(name for name in parameters if name.endswith("ag_proj.weight"))
    factor = float((parameters[name] / raw[name]).median())
    assert all(torch.allclose(value, raw[name] * factor) for name, value in parameters.items())
    return round(factor, 6)


@pytest.mark.parametrize("place", ["", "ema", "state_dict.phema"])
def test_averages_of_several_lengths(tmp_path: Path, place: str) -> None:
    raw = PolynomialMixer(8, 3, 2).state_dict()
    content: dict[str, Any] = {"": post_hoc(raw), "ema": {"model": raw, "ema": post_hoc(raw)}}.get(
        place, {"state_dict": {**below("net", raw), **below("phema", post_hoc(raw))}}
    )
    start = f"{place}." if place else ""
    for number, factor in enumerate((0.5, 0.25)):
        for name in (f"ema{number}", f"ema_models.{number}", f"{start}ema_models.{number}"):
            loaded = load(content, tmp_path, name)
            assert (factor_of(loaded, raw), loaded.weights) == (factor, f"ema{number}")
            assert f"ema{1 - number} ({start}ema_models.{1 - number})" in loaded.other_weights
    if place:
        assert factor_of(load(content, tmp_path), raw) == 1
        return
    with pytest.raises(CheckpointError, match="several sets of weights: ema0"):
        load(content, tmp_path)


def test_averages_in_a_list_of_state_dicts(tmp_path: Path) -> None:
    raw = PolynomialMixer(8, 3, 2).state_dict()
    content = {"net": raw, "ema": {"stds": [0.05, 0.1], "emas": [scaled(raw, 0.5), scaled(raw, 0.25)]}}
    assert load(content, tmp_path).other_weights == ["ema0 (ema.emas.0)", "ema1 (ema.emas.1)"]
    assert factor_of(load(content, tmp_path, "ema1"), raw) == 0.25


@pytest.mark.parametrize("inside", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_lists_beside_a_model_among_other_things(image_model: nn.Module, tmp_path: Path, inside: bool) -> None:
    raw = image_model.state_dict()
    state = {**below("denoiser.net", raw), **others_beside("denoiser." if inside else "")}
    lists = {f"ema_params{n}": [p.detach() / (2 * n) for p in image_model.parameters()] for n in (1, 2)}
    for name, taken, factor in ((None, "ema1", 0.5), ("ema2", "ema2", 0.25), ("model", "model", 1.0)):
        loaded = load({"state_dict": state, **lists}, tmp_path, name, in_context_start=1)
        assert (loaded.weights, factor_of(loaded, raw), len(loaded.other_weights)) == (taken, factor, 2)
    left_out = "left out (denoiser.lpips, denoiser.fid)" if inside else "left out (lpips, fid)"
    assert left_out in loaded.notes[0]
    average = {"average_model_state": scaled(state, 2)}
    assert load({"state_dict": state, "swa": average}, tmp_path, in_context_start=1).weights == "ema"
    assert factor_of(load({"state_dict": state}, tmp_path, "denoiser", in_context_start=1), raw) == 1


def test_counters_beside_an_average_among_other_things_prefer_nothing(image_model: nn.Module, tmp_path: Path) -> None:
    raw = image_model.state_dict()
    state = {**below("net", raw), **others_beside()}
    average = {**below("module", scaled(state, 0.5)), "steps": torch.tensor(3)}
    text = GPT(GPTConfig(19, 1, 2, 8, 4, 2, 2, 3, mlp_width=20)).state_dict()
    of_text = {**below("net", text), **others_beside()}
    content = {
        "state_dict": of_text,
        "ema_state_dict": {**below("module", scaled(of_text, 0.5)), "steps": torch.tensor(3)},
    }
    assert load(content, tmp_path, degree=2).weights == "model"
    content = {"state_dict": state, "ema_state_dict": average, "message_hub": {}}  # MMEngine swaps the two
    loaded = load(content, tmp_path, in_context_start=1)
    assert (factor_of(loaded, raw), loaded.weights) == (1, "ema")


def test_a_list_of_all_parameters_holds_those_of_the_model(image_model: nn.Module, tmp_path: Path) -> None:
    """As from `self.parameters()` of a module whose loss has weights; statistics are not among them."""
    raw = image_model.state_dict()
    parameters = [p.detach() / 2 for p in image_model.parameters()]
    front = {"norm.weight": torch.ones(3), "norm.running_mean": torch.ones(3)}
    content = {
        "state_dict": {**front, **below("net", raw), **others_beside()},
        "ema_params": [torch.zeros(3), *parameters, torch.zeros(3, 3)],
    }
    loaded = load(content, tmp_path, "ema", in_context_start=1)
    assert factor_of(loaded, raw) == 0.5
    last = len(parameters)
    assert f"the tensors 1 to {last} of its {last + 2} are the model's, judging by their shapes" in loaded.notes[-1]
    content["ema_params"] = content["ema_params"][1:]
    assert factor_of(load(content, tmp_path, "ema", in_context_start=1), raw) == 0.5
    content["ema_params"] = [*[torch.zeros(3)] * 3, *parameters]
    with pytest.raises(CheckpointError, match="the model has"):
        load(content, tmp_path, "ema", in_context_start=1)


def test_every_set_among_other_things_is_named(image_model: nn.Module, tmp_path: Path) -> None:
    raw = image_model.state_dict()
    state = {**below("denoiser.net", raw), **below("phema", post_hoc(raw)), **others_beside()}
    names = {"model (state_dict.denoiser)", *(f"ema{i} (state_dict.phema.ema_models.{i})" for i in (0, 1))}
    for name, factor in (("model", 1), ("denoiser", 1), ("ema0", 0.5), ("ema_models.1", 0.25), (None, 0.5)):
        loaded = load({"state_dict": state}, tmp_path, name, in_context_start=1)
        assert factor_of(loaded, raw) == factor
        assert len(loaded.other_weights) == 2
        assert names >= set(loaded.other_weights)
    with pytest.raises(CheckpointError, match="several weights 'phema': ema0"):
        load({"state_dict": state}, tmp_path, "phema", in_context_start=1)


def test_of_two_models_among_other_things_the_user_chooses(image_model: nn.Module, tmp_path: Path) -> None:
    raw = image_model.state_dict()
    state = {**below("student", raw), **below("teacher", scaled(raw, 3)), **others_beside()}
    with pytest.raises(CheckpointError, match=r"several sets of weights: state_dict\.student, state_dict\.teacher"):
        load({"state_dict": state}, tmp_path, in_context_start=1)
    assert factor_of(load({"state_dict": state}, tmp_path, "teacher", in_context_start=1), raw) == 3


def test_a_model_that_has_its_average_as_a_part(image_model: nn.Module, tmp_path: Path) -> None:
    raw = PolynomialMixer(8, 3, 2).state_dict()
    content = {"state_dict": {**raw, **below("ema", scaled(raw, 0.5))}}
    assert [factor_of(load(content, tmp_path, name), raw) for name in (None, "model", "ema")] == [1, 1, 0.5]
    raw = image_model.state_dict()
    content = {"state_dict": {**raw, **below("ema", scaled(raw, 0.5))}}
    asked = {name: load(content, tmp_path, name, in_context_start=1) for name in (None, "model")}
    assert [(factor_of(one, raw), one.weights) for one in asked.values()] == [(0.5, "ema"), (1, "model")]


def test_an_average_of_what_was_trained_lacks_what_was_frozen(image_model: nn.Module, tmp_path: Path) -> None:
    """As with torch_ema, given `[p for p in parameters if p.requires_grad]`: the position embedding is not in it."""
    raw = image_model.state_dict()
    trained = {name: p.detach() / 2 for name, p in image_model.named_parameters() if p.requires_grad}
    for average in ({"shadow_params": list(trained.values())}, {"shadow": trained}):
        loaded = load({"model": raw, "ema": average}, tmp_path, "ema", in_context_start=1)
        parameters = dict(loaded.module.named_parameters())
        assert torch.equal(parameters.pop("pos_embed"), raw["pos_embed"])
        assert all(torch.equal(value, trained[name]) for name, value in parameters.items())


# Bare weights are called `model` if that name is free.
@pytest.mark.parametrize(("key", "names"), [("net", ("model", "net")), ("model", ("bare", "model"))])
def test_the_bare_weights_beside_a_network_are_asked_for_as_they_are_listed(
    key: str, names: tuple[str, str], tmp_path: Path
) -> None:
    raw = PolynomialMixer(8, 3, 2).state_dict()
    content = {**raw, **below(key, scaled(raw, 2))}
    with pytest.raises(CheckpointError, match=f"several sets of weights: {', '.join(names)}"):
        load(content, tmp_path)
    assert [factor_of(load(content, tmp_path, name), raw) for name in names] == [1, 2]


def test_a_list_beside_sorted_names_is_in_the_models_order(image_model: nn.Module, tmp_path: Path) -> None:
    raw = image_model.state_dict()
    content = {"model": dict(sorted(raw.items())), "ema_params": [p.detach() / 2 for p in image_model.parameters()]}
    assert factor_of(load(content, tmp_path, in_context_start=1), raw) == 0.5
    content["ema_params"] = content["ema_params"][::-1]
    with pytest.raises(CheckpointError, match="`weights='model'` takes the trained weights"):
        load(content, tmp_path, in_context_start=1)


def test_a_list_is_of_the_model_that_it_fits(image_model: nn.Module, tmp_path: Path) -> None:
    raw = image_model.state_dict()
    text = GPT(GPTConfig(19, 1, 2, 8, 4, 2, 2, 3, mlp_width=20)).state_dict()
    lists = {"ema_params": [p.detach() / 2 for p in image_model.parameters()]}
    content = {"state_dict": {**below("a", raw), **below("b", text)}, **lists}
    assert factor_of(load(content, tmp_path, "ema", in_context_start=1), raw) == 0.5
    content = {"state_dict": {**below("a", raw), **below("b", raw)}, **lists}
    content["state_dict"]["b.pos_embed"] = raw["pos_embed"] + 1
    with pytest.raises(CheckpointError, match=r"an average of state_dict\.a, state_dict\.b"):
        load(content, tmp_path, "ema", in_context_start=1)


def test_a_prefix_that_is_in_two_sets_names_both(tmp_path: Path) -> None:
    raw = below("net", PolynomialMixer(8, 3, 2).state_dict())
    with pytest.raises(CheckpointError, match=r"several weights 'net': model\.net, ema\.net"):
        load({"model": raw, "ema": scaled(raw, 2)}, tmp_path, "net")


def test_an_average_that_is_not_called_so_itself_is_found_deeper(tmp_path: Path) -> None:
    raw = PolynomialMixer(8, 3, 2).state_dict()
    state = {**below("net", raw), **below("kept", post_hoc(raw)), "loss.weight": torch.ones(1)}
    assert factor_of(load({"state_dict": state}, tmp_path, "ema1"), raw) == 0.25


def test_a_part_is_asked_for_again_by_its_name(tmp_path: Path) -> None:
    raw = PolynomialMixer(8, 3, 2).state_dict()
    asked = "ema_models.1.ema_model"
    loaded = load(post_hoc(raw), tmp_path, asked)
    assert loaded.weights == asked
    assert factor_of(loaded, raw) == 0.25
