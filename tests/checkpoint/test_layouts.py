"""The older layout, with separate projections of context and gate, is read like today's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from pom_export.checkpoint import load_model
from pom_export.checkpoint.layouts import with_joined_projections
from pom_export.checkpoint.recognition import recognise
from pom_export.errors import CheckpointError
from pom_export.mixer import MixerConfig, PolynomialMixer, ProductMixer, RotaryPolynomialMixer
from pom_export.models import LanguageModel, LanguageModelConfig

Tensors = dict[str, Tensor]


def older(tensors: Tensors, gates: int) -> Tensors:
    """Return a state dict in the layout from before the projections were merged."""
    result: Tensors = {}
    for name, tensor in tensors.items():
        if name.endswith("qc_proj.weight"):
            prefix = name.removesuffix("qc_proj.weight")
            result[f"{prefix}po_proj.weight"], result[f"{prefix}se_proj.weight"] = tensor[:-gates], tensor[-gates:]
        else:
            result[name.replace("se_bias", "se_proj.bias")] = tensor
    return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "encoder.mixer."])
def test_a_mixer_is_the_same_in_both_layouts(prefix: str, dtype: torch.dtype, tmp_path: Path) -> None:
    for mixer in (
        PolynomialMixer(8, 3, 2, n_sel_heads=4, bias=True).to(dtype),
        RotaryPolynomialMixer(8, 2, 1, max_h=3, max_w=5, rope_2d=True).to(dtype),
    ):
        tensors = mixer.state_dict()
        tensors["se_bias"] = torch.randn_like(tensors["se_bias"])
        separate = older(tensors, len(tensors["se_bias"]))
        assert "po_proj.weight" in separate
        torch.save({prefix + name: tensor for name, tensor in separate.items()}, tmp_path / "m.pt")
        loaded = load_model(tmp_path / "m.pt")
        assert loaded.spec.family == "pom-v2"
        assert "older layout" in loaded.notes[0]
        state = loaded.module.state_dict()
        assert state.keys() == tensors.keys()
        assert all(torch.equal(state[name], tensors[name]) for name in tensors)


def test_models_of_mixers_are_read_too(tmp_path: Path) -> None:
    model = LanguageModel(LanguageModelConfig(11, 2, 3, 20, MixerConfig(8, 3, 2)))
    torch.save({"model": older(model.state_dict(), 16)}, tmp_path / "m.pt")
    state = load_model(tmp_path / "m.pt").module.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


def test_other_layouts_stay_as_they_are() -> None:
    for mixer in (ProductMixer(6, 3, 2), PolynomialMixer(8, 2, 2, n_groups=2), PolynomialMixer(8, 2, 2)):
        tensors = mixer.state_dict()
        assert with_joined_projections(tensors) == (tensors, [])


def test_a_bias_of_the_context_projection_has_no_place(tmp_path: Path) -> None:
    tensors = older(PolynomialMixer(8, 3, 2).state_dict(), 16)
    tensors["po_proj.bias"] = torch.zeros(16)
    torch.save(tensors, tmp_path / "m.pt")
    assert load_model(tmp_path / "m.pt").spec.degree == 3
    tensors["po_proj.bias"][3] = 1
    torch.save(tensors, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=r"po_proj\.bias is a bias of the context projection"):
        load_model(tmp_path / "m.pt")


def test_a_part_that_is_missing_is_named(tmp_path: Path) -> None:
    for name in ("se_proj.bias", "se_proj.weight", "po_proj.weight"):
        tensors = older(PolynomialMixer(8, 3, 2).state_dict(), 16)
        del tensors[name]
        torch.save(tensors, tmp_path / "m.pt")
        with pytest.raises(CheckpointError, match=name):
            load_model(tmp_path / "m.pt")


def test_lists_in_the_older_order_are_not_read(tmp_path: Path) -> None:
    tensors = older(PolynomialMixer(8, 3, 2).state_dict(), 16)
    torch.save({"state_dict": tensors, "ema_params1": list(tensors.values())}, tmp_path / "m.pt")
    loaded = load_model(tmp_path / "m.pt")
    assert (loaded.weights, loaded.other_weights) == ("model", ["ema1 (ema_params1)"])
    with pytest.raises(CheckpointError, match="separate projections"):
        load_model(tmp_path / "m.pt", weights="ema1")


def test_an_average_by_name_is_in_the_layout_of_its_names(tmp_path: Path) -> None:
    mixer = RotaryPolynomialMixer(8, 2, 1, max_seq_len=5)
    tensors = older(mixer.state_dict(), 8)
    shadow = {name: t * 2 for name, t in tensors.items() if "freqs" not in name}
    torch.save({"state_dict": tensors, "ema": shadow}, tmp_path / "m.pt")
    loaded = load_model(tmp_path / "m.pt", weights="ema")
    assert torch.equal(loaded.module.get_parameter("qc_proj.weight"), mixer.qc_proj.weight * 2)
    assert any("older layout" in note for note in loaded.notes)


def test_recognition_reads_shapes_of_todays_layout_only() -> None:
    current, prefixes = with_joined_projections(older(PolynomialMixer(8, 3, 2).state_dict(), 16))
    assert prefixes == [""]
    assert recognise(current).spec.degree == 3


def test_a_bias_of_the_gate_in_both_layouts_is_refused() -> None:
    tensors = PolynomialMixer(8, 3, 2).state_dict()
    separate = older(tensors, len(tensors["se_bias"]))
    for both in ({**separate, "se_bias": tensors["se_bias"] + 1}, {"se_bias": tensors["se_bias"], **separate}):
        with pytest.raises(CheckpointError, match=r"se_proj\.bias and se_bias are the same parameter in two layouts"):
            with_joined_projections(both)
