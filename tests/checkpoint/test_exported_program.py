"""Programs of torch.export: they are exported as they are; a file that would run anything else is refused."""

from __future__ import annotations

import io
import json
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import pom_export
from pom_export.checkpoint.exported_program import is_exported_program, read_exported_program
from pom_export.errors import CheckpointError, InputError
from pom_export.graph.exported_model import read_model
from tests import pt2_files


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float16", marks=pytest.mark.slow)])
def test_a_program_is_exported(program: tuple[nn.Module, Path], dtype: str, tmp_path: Path) -> None:
    model, path = program
    result = pom_export.export(path, tmp_path / "m.onnx", dtype=dtype)
    assert result.aggregations == 2
    assert result.inputs == [f"input {dtype}[batch, tokens, 8]"]
    x = np.random.default_rng(0).standard_normal((3, 11, 8)).astype(dtype)
    (y,) = pom_export.inference_session(tmp_path / "m.onnx").run(None, {"input": x})
    expected = model(torch.from_numpy(x).float()).detach().numpy()
    np.testing.assert_allclose(
        y, expected, rtol=1e-4 if dtype == "float32" else 3e-2, atol=1e-4 if dtype == "float32" else 3e-2
    )


def test_the_sizes_that_a_program_was_traced_for_are_limits_of_the_file(
    program: tuple[nn.Module, Path], tmp_path: Path
) -> None:
    model, _ = program
    batch, tokens = torch.export.Dim("batch", max=3), torch.export.Dim("tokens", min=4)
    traced = torch.export.export(model, (torch.randn(2, 5, 8),), dynamic_shapes=({0: batch, 1: tokens},))
    torch.export.save(traced, tmp_path / "bounded.pt2")
    result = pom_export.export(tmp_path / "bounded.pt2", tmp_path / "m.onnx")
    assert dict(read_model(tmp_path / "m.onnx").limits.sizes) == {"batch": (0, 3), "tokens": (4, None)}
    assert {note.split(":")[0] for note in result.notes} == {"batch must be at most 3", "tokens must be at least 4"}


def test_a_program_of_plain_operators_is_refused(tmp_path: Path) -> None:
    torch.export.save(torch.export.export(nn.Linear(4, 4), (torch.ones(2, 4),)), tmp_path / "m.pt2")
    with pytest.raises(InputError, match="no pom::polynomial_aggregation"):
        pom_export.export(tmp_path / "m.pt2", tmp_path / "m.onnx")


def rewrite(
    source: Path, target: Path, edit: Callable[[str, bytes], bytes], more: dict[str, bytes] | None = None
) -> None:
    """Copy an archive with its members edited, and further members added."""
    content = {name: edit(name, data) for name, data in pt2_files.members(source).items()}
    pt2_files.write(target, {**content, **(more or {})})


def in_json(member: str, old: str, new: str) -> Callable[[str, bytes], bytes]:
    def edit(name: str, content: bytes) -> bytes:
        changed = content.replace(json.dumps(old)[1:-1].encode(), json.dumps(new)[1:-1].encode())
        return changed if name.endswith(member) else content

    return edit


SIZE = "Symbol('s"
HOSTILE: dict[str, Any] = {
    "a size that is code": in_json("model.json", SIZE, "__import__('os').system('touch RAN') or Symbol('s"),
    "a size that calls a builtin": in_json("model.json", SIZE, "exit(Symbol('s9')) or Symbol('s"),
    "a size with an attribute": in_json("model.json", SIZE, "Symbol.mro() or Symbol('s"),
    "a function outside torch.ops": in_json("model.json", "torch.ops.aten.mul.Tensor", "torch.hub.os.system"),
    "a pickled weight": lambda _, content: content.replace(b'"use_pickle": false', b'"use_pickle": true'),
}


@pytest.mark.parametrize("attack", HOSTILE)
def test_a_program_that_would_have_to_be_run_is_refused(
    program: tuple[nn.Module, Path], attack: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rewrite(program[1], tmp_path / "m.pt2", HOSTILE[attack])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="would have to be executed"):
        read_exported_program(tmp_path / "m.pt2")
    assert not (tmp_path / "RAN").exists()


def test_custom_objects_are_refused(program: tuple[nn.Module, Path], tmp_path: Path) -> None:
    rewrite(program[1], tmp_path / "m.pt2", lambda _, content: content, {"data/constants/custom_obj_0": b"cos"})
    with pytest.raises(CheckpointError, match="custom_obj_0"):
        read_exported_program(tmp_path / "m.pt2")


def test_a_pickle_among_the_example_inputs_is_not_run(program: tuple[nn.Module, Path], tmp_path: Path) -> None:
    class Touch:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "RAN",))

    torch.save(Touch(), tmp_path / "inputs.pt")
    hostile = (tmp_path / "inputs.pt").read_bytes()
    rewrite(program[1], tmp_path / "m.pt2", lambda name, content: hostile if "sample_inputs" in name else content)
    with pytest.raises(InputError):
        pom_export.export(tmp_path / "m.pt2", tmp_path / "m.onnx")
    assert not (tmp_path / "RAN").exists()


def test_a_damaged_program_is_refused(program: tuple[nn.Module, Path], tmp_path: Path) -> None:
    def break_weights(name: str, content: bytes) -> bytes:
        return content[:-8] if name.endswith("weight_1") else content

    for edit in (
        break_weights,
        in_json("model.json", "polynomial_aggregation.default", "polynomial_subtraction.default"),
    ):
        rewrite(program[1], tmp_path / "m.pt2", edit)
        with pytest.raises(CheckpointError, match=r"m\.pt2 is not a complete torch\.export program"):
            read_exported_program(tmp_path / "m.pt2")


def test_other_files_are_no_programs(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "m.pt")
    (tmp_path / "text").write_text("text")
    for path in (tmp_path / "m.pt", tmp_path / "text", tmp_path, tmp_path / "missing"):
        assert not is_exported_program(path)


def test_a_directory_of_a_sparse_file_is_not_read(tmp_path: Path) -> None:
    size = 3 << 30
    with (tmp_path / "m.pt2").open("wb") as file:
        file.write(b"PK\x03\x04")
        file.seek(size)
        file.write(b"PK\x05\x06" + struct.pack("<4H2IH", 0, 0, 1, 1, size, 0, 0))
    assert not is_exported_program(tmp_path / "m.pt2")
    with pytest.raises(CheckpointError, match=r"not a complete torch.export program"):
        read_exported_program(tmp_path / "m.pt2")


def layouts(path: Path) -> dict[str, bytes]:
    """Archives that zip readers disagree about, or that hold more than their size."""
    content = path.read_bytes()
    end = content.rindex(b"PK\x05\x06")
    size, offset = struct.unpack("<II", content[end + 12 : end + 20])
    moved = content[: end + 16] + struct.pack("<I", offset + size) + content[end + 20 :]
    twice, packed = io.BytesIO(), io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(twice, "w") as archive:
        warnings.simplefilter("ignore")
        for name, data in [*pt2_files.members(path).items(), (pt2_files.MODEL, b"{}")]:
            archive.writestr(f"model/{name}", data)
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in pt2_files.members(path).items():
            archive.writestr(f"model/{name}", data)
    return {
        "bytes behind": content + b"more",
        "bytes in front": b"more" + content,
        "two directories": content[: offset + size] + moved[offset:],
        "a member twice": twice.getvalue(),
        "compressed": packed.getvalue(),
        "cut short": content[:-100],
    }


@pytest.mark.parametrize(
    "layout", ["bytes behind", "bytes in front", "two directories", "a member twice", "compressed", "cut short"]
)
def test_archives_that_torch_does_not_write_are_refused(
    program: tuple[nn.Module, Path], layout: str, tmp_path: Path
) -> None:
    (tmp_path / "m.pt2").write_bytes(layouts(program[1])[layout])
    assert is_exported_program(tmp_path / "m.pt2") == (layout != "bytes in front")
    with pytest.raises(CheckpointError, match=r"m\.pt2 is not a complete torch\.export program"):
        read_exported_program(tmp_path / "m.pt2")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"models/other.json": b"{}"}, "other.json beside"),
        ({"archive_version": b"1"}, "archive_version"),
        ({"byteorder": b"big"}, "byteorder"),
        ({"archive_format": b"pt3"}, "archive_format"),
        ({"data/aotinductor/model/x.so": b"ELF"}, "would have to be executed"),
        ({"data/constants/opaque_obj_0": b"cos"}, "would have to be executed"),
        ({"data/weights/model.pt": b"PK"}, "would have to be executed"),
    ],
)
def test_other_contents_are_refused(
    program: tuple[nn.Module, Path], members: dict[str, bytes], message: str, tmp_path: Path
) -> None:
    pt2_files.write(tmp_path / "m.pt2", {**pt2_files.members(program[1]), **members})
    with pytest.raises(CheckpointError, match=message):
        read_exported_program(tmp_path / "m.pt2")


def test_files_of_the_users_are_left_out(program: tuple[nn.Module, Path], tmp_path: Path) -> None:
    pt2_files.write(tmp_path / "m.pt2", {**pt2_files.members(program[1]), "extra/notes.txt": b"\xff"})
    assert read_exported_program(tmp_path / "m.pt2").graph_module.code
