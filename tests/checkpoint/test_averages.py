"""Averages that lack parts of a state dict: lists without names, parameters only, names without their dots."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pom_export.errors import CheckpointError
from pom_export.mixer import RotaryPolynomialMixer
from pom_export.models import GPT, GPTConfig
from tests.weight_files import FACTOR, Tensors, factor_of, load, scaled

GPT_CONFIG = GPTConfig(19, 2, 2, 8, 4, 1, 2, 3, mlp_width=20, attention_layers=(1,))


@pytest.mark.parametrize("place", ["ema_params", "ema.shadow_params", "ema_state_dict.shadow_params"])
def test_a_list_has_the_names_of_the_state_dict(tmp_path: Path, place: str) -> None:
    """A rotary mixer's tables are buffers, which are not among the averaged parameters."""
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


def test_a_list_of_a_whole_state_dict_is_recognised_by_its_length(tmp_path: Path) -> None:
    mixer = RotaryPolynomialMixer(8, 2, 3, max_seq_len=9)
    values = [tensor * FACTOR for tensor in mixer.state_dict().values()]
    content = {"state_dict": mixer.state_dict(), "callbacks": {"EMA": {"ema_weights": values, "cur_step": 3}}}
    loaded = load(content, tmp_path, "ema")
    assert all(torch.equal(t, mixer.state_dict()[n] * FACTOR) for n, t in loaded.module.state_dict().items())


def test_weights_that_were_set_aside_are_no_average(raw: Tensors, tmp_path: Path) -> None:
    values = list(raw.values())
    ema = {"shadow_params": [value * FACTOR for value in values], "collected_params": values}
    assert factor_of(load({"model": raw, "ema": ema}, tmp_path, "ema"), raw) == FACTOR


def test_a_backup_beside_an_average_is_not_an_average(raw: Tensors, tmp_path: Path) -> None:
    """While the average is in the model, the backup keeps the trained weights."""
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
        (values[:-1], "ema (ema_params) has 3 tensors, but the model has 4 parameters"),
        ([*values, values[0]], "has 5 tensors"),
        (values[::-1], "tensor 0 of ema (ema_params) is (8, 16), but"),
        ([*values[:-1], torch.ones(0)], "holds no values"),
    ):
        content = {"state_dict": raw, "ema_params": changed}
        assert load(content, tmp_path).weights == "model"
        with pytest.raises(CheckpointError) as refused:
            load(content, tmp_path, "ema")
        assert seen in str(refused.value)
    with pytest.raises(CheckpointError, match="lists of weights without names"):
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
    """As LitEma of the latent diffusion models names its buffers."""
    content = {
        **{f"model.{name}": tensor for name, tensor in raw.items()},
        **{f"model_ema.{name.replace('.', '')}": tensor for name, tensor in scaled(raw).items()},
        "model_ema.decay": torch.tensor(0.9),
        "model_ema.num_updates": torch.tensor(3),
    }
    loaded = load({"state_dict": content}, tmp_path)
    assert (factor_of(loaded, raw), loaded.other_weights) == (1, ["ema (state_dict.model_ema)"])
    assert factor_of(load({"state_dict": content}, tmp_path, "model_ema"), raw) == FACTOR


@pytest.mark.parametrize("beside", [{}, {"betas": torch.ones(4), "first_stage_model.encoder.weight": torch.ones(3, 3)}])
def test_an_average_whose_names_lost_their_dots_and_begin_with_a_module(
    raw: Tensors, tmp_path: Path, beside: Tensors
) -> None:
    """As LitEma names the buffers of a DiffusionWrapper, alone or beside an autoencoder."""
    content = {
        **{f"model.diffusion_model.{name}": tensor for name, tensor in raw.items()},
        **{f"model_ema.diffusion_model{name.replace('.', '')}": tensor for name, tensor in scaled(raw).items()},
        "model_ema.decay": torch.tensor(0.9),
        **beside,
    }
    for asked, factor in (("ema", FACTOR), ("model", 1)):
        assert factor_of(load({"state_dict": content}, tmp_path, asked), raw) == factor


@pytest.mark.parametrize("key", [int, str])
def test_averages_by_number_are_a_list(raw: Tensors, tmp_path: Path, key: Callable[[int], Any]) -> None:
    numbered = {key(number): tensor for number, tensor in enumerate(scaled(raw).values())}
    loaded = load({"model": raw, "ema_params1": numbered}, tmp_path)
    assert (factor_of(loaded, raw), loaded.other_weights) == (1, ["ema1 (ema_params1)"])
    assert factor_of(load({"model": raw, "ema_params1": numbered}, tmp_path, "ema1"), raw) == FACTOR


@pytest.mark.parametrize("front", ["", "module.", "denoiser."])
def test_lists_of_parameters_among_the_weights(raw: Tensors, tmp_path: Path, front: str) -> None:
    """As a module saves a ParameterList in which it keeps averages itself."""
    content = {f"{front}net.{name}": tensor for name, tensor in raw.items()}
    for list_number, factor in ((1, FACTOR), (2, 0.25)):
        values = scaled(raw, factor).values()
        content |= {f"{front}ema_params{list_number}.{number}": value for number, value in enumerate(values)}
    for asked, factor in (("ema1", FACTOR), ("ema2", 0.25), ("model", 1)):
        assert factor_of(load({"state_dict": content}, tmp_path, asked), raw) == factor


def test_averages_of_losses_are_no_weights(raw: Tensors, tmp_path: Path) -> None:
    content = {f"net.{name}": tensor for name, tensor in raw.items()} | {"loss_ema.0": torch.tensor(0.3)}
    assert load({"state_dict": content}, tmp_path, "net").other_weights == []
