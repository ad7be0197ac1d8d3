"""Convert files in ONNX Runtime's own format back to ONNX, using ONNX Runtime."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx

from pom_export.errors import InputError
from pom_export.files import readable_file, scratch_folder
from pom_export.graph.onnx_file import is_ort_format
from pom_export.runtime.session import default_session_options, import_onnxruntime, inference_session


@contextmanager
def as_onnx(model: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a model as an ONNX file: itself, or ONNX Runtime's conversion of its own format.

    Raises:
        InputError: the file cannot be read, or ONNX Runtime refuses it.
    """
    file = readable_file(model, "model")
    if not is_ort_format(file):
        yield Path(model)
        return
    with scratch_folder() as folder:
        written = folder / f"{file.stem}.onnx"
        try:
            _write(file, written, kernels=False)
        except InputError:  # it has nodes of ours, whose functions the format does not store
            _write(file, written, kernels=True)
        yield written


def _write(file: Path, written: Path, *, kernels: bool) -> None:
    options = default_session_options()
    options.graph_optimization_level = import_onnxruntime().GraphOptimizationLevel.ORT_DISABLE_ALL
    options.optimized_model_filepath = os.fspath(written)
    options.add_session_config_entry("session.save_model_format", "ONNX")
    options.add_session_config_entry("session.load_model_format", "ORT")
    inference_session(file, kernels=kernels, session_options=options)
    model = onnx.load(written, format="protobuf")
    model.graph.name = model.graph.name or file.stem  # a complete model has a name, but the format does not store it
    onnx.save(model, written, format="protobuf")
