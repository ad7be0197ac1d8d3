"""Packages for Triton's tensorrt backend: which engines go in, with which command. None is run: that needs a GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import pom_export
from pom_export.engine.build_config import sha256_of_weights
from pom_export.engine.manifest import manifest_path, sealed
from pom_export.errors import InputError
from pom_export.files import sha256_of
from pom_export.graph.exported_model import read_model
from pom_export.packaging.triton.states import write_carried
from pom_export.runtime.streaming.interface import read_stateful
from tests.streaming_graphs import running_sum_model

CHECKPOINT = Path(__file__).parents[1] / "data" / "golden" / "gpt_pom" / "checkpoint.pt"
ALLOWED = "tritonserver --model-repository=models --backend-config=tensorrt,version-compatible=true"


def engine_of(model: Path, rows: int = 16, **changed: Any) -> Path:
    """Write a file as if it were an engine of the model, with the manifest that a build writes beside one."""
    engine = model.with_suffix(".engine")
    engine.write_bytes(b"an engine")
    read = read_model(model)
    profiles = {
        spec.name: {
            kind: [rows if kind == "max" else 1, *(axis if isinstance(axis, int) else 8 for axis in spec.axes[1:])]
            for kind in ("min", "opt", "max")
        }
        for spec in read.inputs
    }
    values = {
        "engine": str(engine), "backend": "tensorrt", "backend_version": "10.14.1", "targets": ["sm86"], "gpu": None,
        "path": "plugin", "plugin_embedded": True, "plugin_layers": 1, "profiles": profiles, "bytes": 9,
        "model_sha256": sha256_of(model), "weights_sha256": sha256_of_weights(read), "sha256": sha256_of(engine),
    }  # fmt: skip
    manifest_path(engine).write_text(json.dumps(sealed({**values, **changed})))
    return engine


def packaged(model: Path, engine: Path | None, **options: Any) -> Any:
    output = model.parent / "served"
    return pom_export.package(model, output, target="triton", backend="tensorrt", engine=engine, **options)


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    return running_sum_model(tmp_path / "sums.onnx", kind=None)


@pytest.fixture
def carried(tmp_path: Path) -> Path:
    """A file whose state a server carries."""
    write_carried(read_stateful(running_sum_model(tmp_path / "m.onnx")), tmp_path / "carried.onnx")
    return tmp_path / "carried.onnx"


def test_an_engine_with_a_state_that_the_server_carries(carried: Path) -> None:
    result = packaged(carried, engine_of(carried), name="stream")
    assert result.command == ALLOWED
    inside = carried.parent / "served" / "models" / "stream"
    assert (inside / "1" / "model.plan").read_bytes() == b"an engine"
    config = (inside / "config.pbtxt").read_text()
    for line in ('backend: "tensorrt"', "max_batch_size: 16", 'input_name: "past.0.', "kind: KIND_GPU"):
        assert line in config
    readme = (carried.parent / "served" / "README.md").read_text()
    assert ALLOWED in readme
    assert "TensorRT 10.14.1, for sm86" in readme
    assert "has not been run" in readme


def test_an_engine_of_functions_needs_no_permission(plain: Path) -> None:
    result = packaged(plain, engine_of(plain, path="function", plugin_embedded=False))
    assert result.command == "tritonserver --model-repository=models"
    assert "plugin" not in (plain.parent / "served" / "README.md").read_text()


def test_batches_are_no_larger_than_the_engines(plain: Path) -> None:
    timings = {batch: {"tensorrt": {"median_ms": 1.0 + batch / 100}} for batch in (4, 8, 32)}
    points = [{"batch": batch, "tokens": 64, "timings": timing} for batch, timing in timings.items()]
    (plain.parent / "r.json").write_text(json.dumps({"points": points}))
    for rows, wanted in ((64, (32, "[ 32 ]")), (16, (16, None))):
        packaged(plain, engine_of(plain, rows), bench=plain.parent / "r.json", force=True)
        config = (plain.parent / "served" / "models" / "sums" / "config.pbtxt").read_text()
        assert f"max_batch_size: {wanted[0]}\n" in config
        assert ("preferred_batch_size" in config) == (wanted[1] is not None)


def test_what_the_server_could_not_run_is_refused(plain: Path) -> None:
    stateful = running_sum_model(plain.with_name("stream.onnx"))
    for model, engine, message in (
        (plain, None, "none was given"),
        (plain, engine_of(plain, backend="tensorrt-rtx"), "TensorRT for RTX, and Triton runs the full TensorRT's"),
        (stateful, engine_of(stateful), "in the form of our own streams"),
        (plain, engine_of(stateful), "is not what"),
    ):
        with pytest.raises(InputError) as caught:
            packaged(model, engine)
        assert message in caught.value.what
    with pytest.raises(InputError, match="needs our plugin beside it"):
        packaged(plain, engine_of(plain, plugin_embedded=False))
    assert not (plain.parent / "served").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("tensorrt_rtx")
def test_tensorrt_parses_the_file_whose_state_the_server_carries(tmp_path: Path) -> None:
    pom_export.export(CHECKPOINT, tmp_path / "m.onnx", stateful=True)
    served = tmp_path / "served"
    pom_export.package(tmp_path / "m.onnx", served, target="triton", backend="onnxruntime")
    inside = served / "models" / "m" / "1" / "model.onnx"
    engine = tmp_path / "m.engine"
    info = pom_export.build_engine(inside, engine, backend="tensorrt-rtx", targets=["sm86"])
    assert info.plugin_layers == info.aggregations > 0
    with pytest.raises(InputError, match="TensorRT for RTX"):
        pom_export.package(inside, tmp_path / "other", target="triton", backend="tensorrt", engine=engine)
