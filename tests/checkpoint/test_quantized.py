"""Weights that other libraries quantized become exactly what these libraries compute from them, or are refused.

tools/quantized_checkpoints.py made the files with the real libraries, and the values beside them with their functions.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pom_export import export
from pom_export.checkpoint import load_model
from tests.checkpoint.quantized_samples import DATA, NAMES, WITH_INPUTS, also, expected, refusal, stored, with_config
from tests.small_models import VOCABULARY, hybrid


def test_there_are_samples_of_every_layout() -> None:
    assert len(NAMES) == 30


@pytest.mark.parametrize("name", NAMES)
def test_values_are_those_of_the_library(name: str) -> None:
    loaded = load_model(DATA / name)
    state, values = loaded.module.state_dict(), expected(name)
    assert values
    for key, value in values.items():
        assert state[key].dtype == torch.float32
        assert torch.equal(state[key], value), key
    (note, *more) = loaded.notes
    count = len(values)
    assert note.startswith(f"{count} weight{'s were' if count > 1 else ' was'} dequantized to float32")
    assert f"({count} from {name.partition('-')[0]}" in note
    quantizes_inputs = any(part in name for part in WITH_INPUTS) or name == "compressed-int8"
    assert any("quantized the input" in part for part in more) == quantizes_inputs


def test_an_export_says_that_its_weights_were_dequantized(tmp_path: Path) -> None:
    result = export(DATA / "bitsandbytes-nf4.pt", tmp_path / "m.onnx")
    assert any("2 from bitsandbytes nf4" in note and "`pom-export quantize`" in note for note in result.notes)


def test_the_older_format_of_torch_save(tmp_path: Path) -> None:
    tensors, _ = stored("bitsandbytes-nf4.pt")
    torch.save(tensors, tmp_path / "m.pt", _use_new_zipfile_serialization=False)
    state = load_model(tmp_path / "m.pt").module.state_dict()
    assert all(torch.equal(state[key], value) for key, value in expected("bitsandbytes-nf4.pt").items())


def test_sets_of_weights_and_wrappers(tmp_path: Path) -> None:
    """Quantized sets are found, named and chosen as others are."""
    trained, _ = stored("bitsandbytes-nf4.pt")
    average, _ = stored("bitsandbytes-int8.pt")
    torch.save({"model": {f"module.{key}": value for key, value in trained.items()}, "ema": average}, tmp_path / "m.pt")
    for weights, name in ((None, "bitsandbytes-nf4.pt"), ("ema", "bitsandbytes-int8.pt")):
        loaded = load_model(tmp_path / "m.pt", weights=weights)
        state = loaded.module.state_dict()
        assert all(torch.equal(state[key], value) for key, value in expected(name).items())
        assert f"from {name[:-3].replace('-', ' ')}" in loaded.notes[0]


def test_an_unquantized_set_beside_a_quantized_one_has_no_note(tmp_path: Path) -> None:
    trained, _ = stored("bitsandbytes-int8.pt")
    plain = {**expected("bitsandbytes-int8.pt"), **{key: trained[key] for key in ("se_bias", "po_coeff")}}
    torch.save({"model": plain, "ema": trained}, tmp_path / "m.pt")
    assert not any("dequantized" in note for note in load_model(tmp_path / "m.pt").notes)


def test_one_name_for_the_same_weights_in_two_places(tmp_path: Path) -> None:
    trained, _ = stored("bitsandbytes-nf4.pt")
    torch.save({"model": trained, "state_dict": dict(trained)}, tmp_path / "m.pt")
    assert not load_model(tmp_path / "m.pt").other_weights


def test_parts_of_a_weight_in_several_shards(tmp_path: Path) -> None:
    tensors, metadata = stored("torchao-int8-groups.safetensors")
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in shards.items():
        save_file({name: tensors[name] for name in part}, tmp_path / file, metadata)
    listed = {name: file for file, part in shards.items() for name in part}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}))
    state = load_model(tmp_path).module.state_dict()
    assert all(torch.equal(state[key], value) for key, value in expected("torchao-int8-groups.safetensors").items())


def test_packed_integers_say_how_without_a_configuration(tmp_path: Path) -> None:
    shutil.copy(DATA / "compressed-int4-asymmetric" / "model.safetensors", tmp_path / "m.safetensors")
    state = load_model(tmp_path / "m.safetensors").module.state_dict()
    assert all(torch.equal(state[key], value) for key, value in expected("compressed-int4-asymmetric").items())


def test_several_groups_of_layers(tmp_path: Path) -> None:
    folder = with_config(tmp_path, "compressed-int4", also(num_bits=8, group_size=None, strategy="channel"))
    state = load_model(folder).module.state_dict()
    assert all(torch.equal(state[key], value) for key, value in expected("compressed-int4").items())


def test_a_scale_of_the_input_is_not_a_weight(tmp_path: Path) -> None:
    tensors, _ = stored("compressed-int4")
    save_file(tensors | {"ag_proj.input_scale": torch.ones(1)}, tmp_path / "m.safetensors")
    assert "1 of their layers also quantized the input" in load_model(tmp_path / "m.safetensors").notes[1]


def test_a_head_that_was_quantized_without_the_embedding(tmp_path: Path) -> None:
    """Libraries replace the weights of linear layers, so that the language model's tied ones are no longer tied."""
    model = hybrid()
    state = model.state_dict()
    head = state.pop("lm_head.weight")
    scale = head.abs().amax(1)
    rounded = (head * (127 / scale[:, None])).round().to(torch.int8)
    state |= {"lm_head.weight": rounded, "lm_head.SCB": scale}
    torch.save(state, tmp_path / "m.pt")
    loaded = load_model(tmp_path / "m.pt", degree=2)
    assert any("one was quantized without the other" in note for note in loaded.notes)
    model.lm_head.weight = torch.nn.Parameter(rounded * scale[:, None] * 7.874015718698502e-3)
    tokens = torch.arange(12)[None] % VOCABULARY
    assert torch.equal(loaded.module(tokens), model(tokens))
    result = export(tmp_path / "m.pt", tmp_path / "m.onnx", degree=2, stateful=True)
    assert result.checked  # it agrees with the module, call by call
    torch.save({**model.state_dict()}, tmp_path / "m.pt")
    assert "lm_head.weight and transformer.wte.weight differ" in refusal(tmp_path / "m.pt", degree=2)


def test_a_block_of_zeros(tmp_path: Path) -> None:
    """bitsandbytes gives it the scale 0."""
    tensors, _ = stored("bitsandbytes-int8.pt")
    tensors["ag_proj.weight"][0], tensors["ag_proj.SCB"][0] = 0, 0
    torch.save(tensors, tmp_path / "m.pt")
    assert not load_model(tmp_path / "m.pt").module.state_dict()["ag_proj.weight"][0].any()
