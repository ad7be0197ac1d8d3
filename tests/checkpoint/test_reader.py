"""Which files are read, and which are refused with one clear line."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from pom_export.checkpoint import load_model
from pom_export.checkpoint.hints import Hints
from pom_export.checkpoint.reader import read_checkpoint
from pom_export.checkpoint.values import check_values
from pom_export.errors import CheckpointError, InputError
from pom_export.files import sha256_of
from pom_export.mixer import PolynomialMixer

Tensors = dict[str, Tensor]


@pytest.fixture
def tensors() -> Tensors:
    torch.manual_seed(0)
    return {"po_coeff": torch.randn(6, 2), "ag_proj.weight": torch.randn(3, 6)}


def assert_same(actual: Any, expected: Tensors) -> None:
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def read_whole(path: Path) -> None:
    checkpoint = read_checkpoint(path)
    check_values(path, checkpoint.tensors)


def refusal(path: Path) -> str:
    """Return the error message of reading `path`: one line, with a hint."""
    with pytest.raises(InputError) as caught:
        read_whole(path)
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.hint
    assert str(path) in message
    assert caught.value.exit_code == 2
    return message


def save_legacy(tensors: Tensors, path: Path) -> None:
    torch.save(tensors, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("save", [torch.save, save_legacy, save_file])
# The format is recognised by the content, not by the file's name.
@pytest.mark.parametrize("name", ["checkpoint.pt", "checkpoint.safetensors", "checkpoint"])
def test_reads_every_format(tensors: Tensors, tmp_path: Path, save: Callable[..., None], name: str) -> None:
    path = tmp_path / name
    save(tensors, path)

    checkpoint = read_checkpoint(path)

    assert_same(checkpoint.tensors, tensors)
    assert checkpoint.sha256 == sha256_of(path)


@pytest.mark.parametrize("wrapper", ["model", "state_dict", "model_state_dict"])
def test_finds_the_state_dict_in_a_trainers_dict(tensors: Tensors, tmp_path: Path, wrapper: str) -> None:
    path = tmp_path / "trainer.pt"
    torch.save({"step": 7, "code": "print()", wrapper: tensors, "optimizer": {"state": {}}}, path)

    assert_same(read_checkpoint(path).tensors, tensors)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "_orig_mod.module.", "module._orig_mod."])
def test_takes_prefixes_of_wrappers_off(tensors: Tensors, tmp_path: Path, prefix: str) -> None:
    path = tmp_path / "prefixed.pt"
    torch.save({prefix + name: tensor for name, tensor in tensors.items()}, path)

    assert_same(read_checkpoint(path).tensors, tensors)


def test_keeps_a_prefix_that_only_some_names_have(tensors: Tensors, tmp_path: Path) -> None:
    path = tmp_path / "mixed.pt"
    tensors["module.extra"] = torch.ones(1)
    torch.save(tensors, path)

    assert_same(read_checkpoint(path).tensors, tensors)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_keeps_the_floating_type(tensors: Tensors, tmp_path: Path, dtype: torch.dtype) -> None:
    path = tmp_path / "typed.safetensors"
    save_file({name: tensor.to(dtype) for name, tensor in tensors.items()}, path)

    assert {tensor.dtype for tensor in read_checkpoint(path).tensors.values()} == {dtype}


def test_refuses_a_missing_file(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "missing.pt")


def test_refuses_a_folder_without_one_clear_checkpoint(tensors: Tensors, tmp_path: Path) -> None:
    assert "holds no weights" in refusal(tmp_path)
    for name in ("a.pt", "b.safetensors"):
        torch.save(tensors, tmp_path / name)
    assert "holds 2 checkpoints (a.pt, b.safetensors)" in refusal(tmp_path)
    for name in ("c.pt", "d.pt", "e.pt"):
        torch.save(tensors, tmp_path / name)
    assert "holds 5 checkpoints (a.pt, b.safetensors, c.pt, d.pt, ...)" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "last.ckpt"])
def test_reads_a_folder_with_one_file(tensors: Tensors, tmp_path: Path, name: str) -> None:
    save = save_file if name.endswith("safetensors") else torch.save
    save(tensors, tmp_path / name)
    checkpoint = read_checkpoint(tmp_path)
    assert checkpoint.tensors.keys() == tensors.keys()
    assert checkpoint.sha256 == read_checkpoint(tmp_path / name).sha256


def write_shards(tensors: Tensors, folder: Path) -> dict[str, str]:
    """Save every tensor as a shard of its own, and return the index's map."""
    weight_map = {}
    for i, (name, tensor) in enumerate(tensors.items()):
        weight_map[name] = f"model-{i:05}-of-{len(tensors):05}.safetensors"
        save_file({name: tensor}, folder / weight_map[name])
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return weight_map


def test_reads_shards(tensors: Tensors, tmp_path: Path) -> None:
    write_shards(tensors, tmp_path)
    checkpoint = read_checkpoint(tmp_path)
    assert checkpoint.tensors.keys() == tensors.keys()
    assert all(torch.equal(checkpoint.tensors[name], tensors[name]) for name in tensors)
    assert len(checkpoint.sha256) == 64


def test_an_index_of_any_name_is_read(tensors: Tensors, tmp_path: Path) -> None:
    write_shards(tensors, tmp_path)
    (tmp_path / "model.safetensors.index.json").rename(tmp_path / "diffusion_pytorch_model.safetensors.index.json")
    assert_same(read_checkpoint(tmp_path).tensors, tensors)


def test_shards_may_hold_two_networks(tensors: Tensors, tmp_path: Path) -> None:
    both = {f"{prefix}.{name}": tensor for prefix in ("student", "teacher") for name, tensor in tensors.items()}
    write_shards(both, tmp_path)
    with pytest.raises(CheckpointError, match="student, teacher"):
        _ = read_checkpoint(tmp_path).tensors
    checkpoint = read_checkpoint(tmp_path)
    assert_same(checkpoint.state_dict(checkpoint.choose("teacher")), tensors)


def test_other_weights_in_a_folder_are_named(tmp_path: Path) -> None:
    mixer = PolynomialMixer(4, 2, 1).state_dict()
    for name in ("model.safetensors", "ema.safetensors", "model_best.safetensors"):
        save_file(mixer, tmp_path / name)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state_0.pth", "training_args.bin", "custom_checkpoint_0.pkl"):
        (tmp_path / name).write_bytes(b"x")
    (note,) = load_model(tmp_path).notes
    others = "custom_checkpoint_0.pkl, ema.safetensors, model_best.safetensors"  # the first name is accelerate's
    assert f"read from model.safetensors; the folder also holds {others}" in note


def test_refuses_shards_that_are_missing_damaged_or_elsewhere(tensors: Tensors, tmp_path: Path) -> None:
    first = next(iter(write_shards(tensors, tmp_path).values()))
    whole = (tmp_path / first).read_bytes()
    (tmp_path / first).write_bytes(whole[:-1])
    assert first in refusal(tmp_path)
    (tmp_path / first).unlink()
    assert first in refusal(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    for content in ("", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": "../x.safetensors"}}'):
        index.write_text(content)
        assert "index.json" in refusal(tmp_path)


def test_refuses_shards_that_differ_from_the_index(tensors: Tensors, tmp_path: Path) -> None:
    weight_map = write_shards(tensors, tmp_path)
    (first, one), (second, other) = list(weight_map.items())[:2]
    index = tmp_path / "model.safetensors.index.json"
    for changed, lies in (({first: other, second: one}, one), ({"gone.weight": one}, "none of the files")):
        index.write_text(json.dumps({"weight_map": {**weight_map, **changed}}))
        assert f"but it is in {lies}" in refusal(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
def test_the_type_of_narrow_weights_is_named_before_their_scales(tmp_path: Path, dtype: torch.dtype) -> None:
    mixer = PolynomialMixer(4, 2, 1).state_dict()
    narrow = {name: tensor.to(dtype) if "proj" in name else tensor for name, tensor in mixer.items()}
    torch.save({**narrow, "ag_proj.scale": torch.ones(1)}, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=f"_proj.weight is {dtype}.*in bfloat16 or wider"):
        load_model(tmp_path / "m.pt")


def test_a_trainers_state_is_no_checkpoint_of_a_folder(tensors: Tensors, tmp_path: Path) -> None:
    (tmp_path / "optimizer.pt").write_bytes(b"x")
    torch.save(tensors, tmp_path / "last.ckpt")
    assert_same(read_checkpoint(tmp_path).tensors, tensors)
    for name in ("unet", "unet_ema"):
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "model.safetensors")
    assert read_checkpoint(tmp_path).beside == ["unet_ema"]
    (tmp_path / "last.ckpt").unlink()
    assert "holds no weights. Give one of the folders in it that do: unet, unet_ema" in refusal(tmp_path)
    for name in ("model.pt", "trainer.pt"):
        torch.save(tensors, tmp_path / name)
    assert "holds 2 checkpoints (model.pt, trainer.pt)" in refusal(tmp_path)


def test_a_link_to_the_only_checkpoint_is_no_other_one(tensors: Tensors, tmp_path: Path) -> None:
    torch.save(tensors, tmp_path / "step-100.ckpt")
    (tmp_path / "last.ckpt").symlink_to("step-100.ckpt")
    assert_same(read_checkpoint(tmp_path).tensors, tensors)


def test_folders_with_checkpoints_in_a_folder_without_are_named(tensors: Tensors, tmp_path: Path) -> None:
    for name in ("checkpoint-1", "checkpoint-2", "runs"):
        (tmp_path / name).mkdir()
    for number in (1, 2):
        save_file(tensors, tmp_path / f"checkpoint-{number}" / "model.safetensors")
    assert "holds no weights. Give one of the folders in it that do: checkpoint-1, checkpoint-2" in refusal(tmp_path)


def test_hints_come_from_the_file_before_the_config_beside_it(tensors: Tensors, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"order": 3, "n_head": 4, "family": "pom-v1", "other": [1]}')
    save_file(tensors, tmp_path / "model.safetensors", metadata={"degree": "2", "format": "pt"})
    assert read_checkpoint(tmp_path).hints == Hints("pom-v1", 2, 4)


@pytest.mark.parametrize("content", ["{", "[]", '{"degree": 0}', '{"degree": "two"}', '{"degree": true}'])
def test_refuses_a_config_that_says_nothing_useful(tensors: Tensors, tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    save_file(tensors, tmp_path / "model.safetensors")
    assert "config.json" in refusal(tmp_path)


def test_refuses_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "empty.pt"
    path.touch()

    assert "0 bytes" in refusal(path)


@pytest.mark.parametrize("save", [torch.save, save_legacy, save_file])
@pytest.mark.parametrize("kept", [0.05, 0.3, 0.6, 0.95])
def test_refuses_a_truncated_file(tensors: Tensors, tmp_path: Path, save: Callable[..., None], kept: float) -> None:
    path = tmp_path / "truncated"
    save(tensors, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])

    refusal(path)


@pytest.mark.parametrize("content", [b"hello, world\n", b"{}", b"\x00", b"\x08\x00\x00\x00\x00\x00\x00\x00{nojson}"])
def test_refuses_other_content(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.pt"
    path.write_bytes(content)

    refusal(path)


class Payload:
    """An object whose pickle writes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


def pickle_plain(content: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(content))


@pytest.mark.parametrize("save", [torch.save, save_legacy, pickle_plain])
def test_runs_no_code(tensors: Tensors, tmp_path: Path, save: Callable[..., None]) -> None:
    path, marker = tmp_path / "evil.pt", tmp_path / "marker"
    save({**tensors, "payload": Payload(marker)}, path)

    message = refusal(path)

    assert "never executed" in message
    assert not marker.exists()
    # The payload works: a reader that runs pickles would have been caught.
    pickle.loads(pickle.dumps(Payload(marker)))
    assert marker.exists()


class Elsewhere(Payload):
    """An object whose function is not in torch's list of modules to refuse."""

    def __reduce__(self) -> tuple[Any, ...]:
        return shutil.copyfile, (__file__, self.marker)


def test_objects_beside_the_weights_stay_inert(tensors: Tensors, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    torch.save({"model": tensors, "config": Elsewhere(marker), "folder": tmp_path}, tmp_path / "last.pt")

    assert_same(read_checkpoint(tmp_path / "last.pt").tensors, tensors)

    assert not marker.exists()
    pickle.loads(pickle.dumps(Elsewhere(marker)))
    assert marker.exists()


@pytest.mark.parametrize("value", [torch.tensor([1, 2]), torch.tensor([1j]), torch.tensor([True])])
def test_weights_of_other_types_are_refused_once_they_are_recognised(tmp_path: Path, value: Tensor) -> None:
    mixer = PolynomialMixer(1, 2, 1).state_dict()
    mixer["po_coeff"] = value.expand(1, 2)
    torch.save(mixer, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=f"po_coeff is {value.dtype}"):
        load_model(tmp_path / "m.pt")


def test_traced_programs_are_named_as_what_they_are(tmp_path: Path) -> None:
    torch.export.save(torch.export.export(torch.nn.Linear(2, 2), (torch.ones(1, 2),)), tmp_path / "m.pt")
    assert "a program of torch.export" in refusal(tmp_path / "m.pt")
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:
        archive.writestr("m/constants.pkl", b"")
    assert "TorchScript" in refusal(tmp_path / "script.pt")
    (tmp_path / "m.onnx").write_bytes(b"\x08\x0a")
    assert "is an ONNX model" in refusal(tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("bad", "seen"),
    [
        (torch.tensor([1.0, torch.nan]), "1 NaN or infinite values out of 2"),
        (torch.tensor([-torch.inf, torch.inf]), "2 NaN or infinite values out of 2"),
        (3, "'bad' is an int, not a tensor"),
        ("text", "'bad' is a str, not a tensor"),
        ([torch.ones(1)], "'bad' is a list, not a tensor"),
    ],
)
def test_refuses_values_that_are_no_weights(tensors: Tensors, tmp_path: Path, bad: Any, seen: str) -> None:
    path = tmp_path / "bad.pt"
    torch.save({**tensors, "bad": bad}, path)

    message = refusal(path)

    assert seen in message
    assert "bad" in message


@pytest.mark.parametrize(
    ("content", "seen"),
    [
        ({}, "no tensors"),
        ({"model": {}, "epoch": 3}, "its entries are model (dict), epoch (int)"),
        ({"state": {}, "param_groups": []}, "an optimizer's state"),
        (torch.ones(2), "Tensor"),
        ([torch.ones(2)], "list"),
    ],
)
def test_refuses_what_is_no_state_dict(tmp_path: Path, content: Any, seen: str) -> None:
    path = tmp_path / "other.pt"
    torch.save(content, path)

    assert seen in refusal(path)


@pytest.mark.machine
def test_refuses_an_unreadable_file(tmp_path: Path) -> None:
    path = tmp_path / "secret.pt"
    path.write_bytes(b"x")
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")

    assert "cannot be read" in refusal(path)


def test_says_that_it_is_a_checkpoint_error(tmp_path: Path) -> None:
    path = tmp_path / "text.pt"
    path.write_text("hello")

    with pytest.raises(CheckpointError, match="b'hello'"):
        read_checkpoint(path)
