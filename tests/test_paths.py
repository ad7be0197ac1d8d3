"""An argument that is not a path is named in one line, whichever public function gets it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pom_export
from pom_export.errors import InputError
from tests.streaming_graphs import running_sum_model

TAKERS: dict[str, Callable[[Any, Path], Any]] = {
    "export": lambda path, _: pom_export.export(pom_export.PolynomialMixer(8, 2, 2), path),
    "inspect": lambda path, _: pom_export.inspect(path),
    "load_checkpoint": lambda path, _: pom_export.load_checkpoint(path),
    "verify": lambda path, _: pom_export.verify(path),
    "verify's inputs": lambda path, model: pom_export.verify(model, inputs=path),
    "inference_session": lambda path, _: pom_export.inference_session(path),
    "StreamingSession": lambda path, _: pom_export.StreamingSession(path),
    "State.load": lambda path, _: pom_export.State.load(path),
    "build_engine": lambda path, _: pom_export.build_engine(path, "m.engine"),
    "tensorrt_backend": lambda path, _: pom_export.tensorrt_backend(path),
}


@pytest.mark.parametrize("taker", TAKERS)
@pytest.mark.parametrize("value", [b"m.onnx", 3, 1.5, ["m.onnx"]], ids=["bytes", "int", "float", "list"])
def test_what_is_no_path_is_named_in_one_line(taker: str, value: object, tmp_path: Path) -> None:
    model = running_sum_model(tmp_path / "m.onnx") if "inputs" in taker else tmp_path / "m.onnx"
    with pytest.raises(InputError, match=f"is given as a value of type {type(value).__name__}. Give its path"):
        TAKERS[taker](value, model)


@pytest.mark.usefixtures("tensorrt_rtx")
def test_an_engines_place_is_looked_at_too(tmp_path: Path) -> None:
    model = tmp_path / "m.onnx"
    pom_export.export(pom_export.PolynomialMixer(8, 2, 2), model)
    with pytest.raises(InputError, match="engine is given as a value of type int"):
        pom_export.build_engine(model, 3)  # type: ignore[arg-type]
