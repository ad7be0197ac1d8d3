"""Programs of torch.export: exported as they are, and never run where the file asks for more than a program."""

from __future__ import annotations

import json
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
from pom_export.mixer import PolynomialMixer, ProductMixer


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    """A model of two mixers, and the file of its program."""
    torch.manual_seed(0)
    model = nn.Sequential(PolynomialMixer(8, 2, 2), ProductMixer(8, 3, 1)).eval()
    batch, tokens = torch.export.Dim("batch", min=1), torch.export.Dim("tokens", min=1)
    traced = torch.export.export(model, (torch.randn(2, 5, 8),), dynamic_shapes=({0: batch, 1: tokens},))
    path = tmp_path_factory.mktemp("pt2") / "model.pt2"
    torch.export.save(traced, path)
    return model, path


@pytest.mark.parametrize("dtype", ["float32", "float16"])
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


def test_a_program_of_plain_operators_is_refused(tmp_path: Path) -> None:
    torch.export.save(torch.export.export(nn.Linear(4, 4), (torch.ones(2, 4),)), tmp_path / "m.pt2")
    with pytest.raises(InputError, match="no pom::polynomial_aggregation"):
        pom_export.export(tmp_path / "m.pt2", tmp_path / "m.onnx")


def rewrite(
    source: Path, target: Path, edit: Callable[[str, bytes], bytes], more: dict[str, bytes] | None = None
) -> None:
    """Copy an archive with its members edited, and more of them."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, edit(name, old.read(name)))
        for name, content in (more or {}).items():
            new.writestr(f"{old.namelist()[0].split('/')[0]}/{name}", content)


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
    with pytest.raises(CheckpointError, match="would have to be run"):
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
        with pytest.raises(CheckpointError, match=r"m\.pt2 is no whole program"):
            read_exported_program(tmp_path / "m.pt2")


def test_other_files_are_no_programs(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "m.pt")
    (tmp_path / "text").write_text("text")
    for path in (tmp_path / "m.pt", tmp_path / "text", tmp_path, tmp_path / "missing"):
        assert not is_exported_program(path)
