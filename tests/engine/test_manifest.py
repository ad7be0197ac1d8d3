"""The manifest beside an engine, and ways in which a user may have damaged it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from pom_export.engine.manifest import (
    check_manifest_place,
    check_model,
    manifest_path,
    path_in,
    read_engine,
    read_manifest,
    sealed,
)
from pom_export.engine.runner import backend_in
from pom_export.errors import InputError
from pom_export.files import sha256_of
from pom_export.graph.exported_model import read_model

OURS = {"engine": "e", "backend": "tensorrt-rtx", "plugin_layers": 1, "model_sha256": ""}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("no JSON", "not one of ours"),
        ("[" * 200_000, "not one of ours"),
        ("3", "not one of ours"),
        ("{}", "not one of ours"),
        (json.dumps(OURS) + " " * 2**26, "not one of ours"),
        (json.dumps({**OURS, "inputs": [0] * 3_000_000}), "not one of ours"),
        (json.dumps(OURS), "has no manifest_sha256"),
        (json.dumps(sealed({**OURS, "backend": "tensorflow"})), "names an unknown backend, 'tensorflow'"),
        (json.dumps(sealed({**OURS, "backend": ["tensorrt"]})), "names an unknown backend"),
    ],
)
def test_what_is_not_a_manifest_is_named(text: str, message: str, tmp_path: Path) -> None:
    engine = tmp_path / "e"
    engine.write_bytes(b"engine")
    manifest_path(engine).write_text(text)
    with pytest.raises(InputError, match=message):
        backend_in(read_manifest(engine), engine)


def test_only_a_manifest_of_ours_may_be_replaced(tmp_path: Path) -> None:
    engine = tmp_path / "e"
    check_manifest_place(engine)
    manifest_path(engine).write_text(json.dumps(OURS))
    check_manifest_place(engine)
    manifest_path(engine).write_text("{}")
    with pytest.raises(InputError, match="where the manifest would go"):
        check_manifest_place(engine)


def test_an_engine_whose_manifest_does_not_say_so_holds_the_plugin(tmp_path: Path) -> None:
    for path, values in (("plugin", OURS), ("function", {**OURS, "path": "function"})):
        manifest_path(tmp_path / "e").write_text(json.dumps(sealed(values)))
        assert path_in(read_manifest(tmp_path / "e")) == path


def check(engine: Path) -> None:
    """Compare an engine with its manifest, and the manifest with the model beside it."""
    check_model(read_engine(engine)[1], engine, read_model(engine.with_name("m.onnx")))


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """An engine of m.onnx, whose weights are in w.bin."""
    node = onnx.helper.make_node("Add", ["x", "w"], ["y"])
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    weights = onnx.numpy_helper.from_array(np.ones(1, np.float32), "w")
    graph = onnx.helper.make_graph([node], "g", values[:1], values[1:], [weights])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    options = {"save_as_external_data": True, "location": "w.bin", "size_threshold": 0}
    onnx.save(model, tmp_path / "m.onnx", **options)
    (tmp_path / "e").write_bytes(b"engine")
    hashes = {"sha256": sha256_of(tmp_path / "e"), "model_sha256": sha256_of(tmp_path / "m.onnx")}
    manifest = {**OURS, **hashes, "bytes": len(b"engine"), "weights_sha256": {"w.bin": sha256_of(tmp_path / "w.bin")}}
    manifest_path(tmp_path / "e").write_text(json.dumps(sealed(manifest)))
    return tmp_path / "e"


@pytest.mark.parametrize(
    ("changed", "message"),
    [("e", "engine .* is not what"), ("m.onnx", "model .* is not what"), ("w.bin", "the weights of .* are not what")],
)
def test_a_file_that_is_not_the_one_of_the_build_is_named(changed: str, message: str, engine: Path) -> None:
    file = engine.with_name(changed)
    check(engine)
    content = file.read_bytes()
    # In the model, this changes the graph's name: it stays a valid model.
    file.write_bytes(content.replace(b"\x01g", b"\x01h") if changed == "m.onnx" else content[:-1] + b"\1")
    with pytest.raises(InputError, match=message):
        check(engine)


@pytest.mark.parametrize(
    "edit",
    [
        {"plugin_layers": 0},
        {"plugin_layers": 1.0},
        {"profiles": {}},
        {"targets": ["sm120"]},
        {"inputs": []},
        {"path": "function"},
        {"manifest_sha256": ""},
        {"a new entry": 1},
    ],
    ids=str,
)
def test_an_edited_manifest_is_refused(edit: dict[str, object], engine: Path) -> None:
    manifest = json.loads(manifest_path(engine).read_text())
    manifest_path(engine).write_text(json.dumps(dict(reversed(manifest.items())), indent=4))
    check(engine)  # written differently, with the same contents
    manifest_path(engine).write_text(json.dumps({**manifest, **edit}))
    with pytest.raises(InputError, match="was edited"):
        check(engine)


def test_a_missing_engine_is_named_before_its_manifest(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^engine .*none does not exist"):
        read_engine(tmp_path / "none")


def test_a_model_in_place_of_an_engine_is_named(tmp_path: Path) -> None:
    model = tmp_path / "m.onnx"
    model.write_bytes(b"model")
    with pytest.raises(InputError, match=r"m\.onnx is no engine: by its name it is an ONNX model"):
        read_engine(model)


def test_an_engine_of_another_size_is_not_read(engine: Path) -> None:
    """Its file may be larger than memory."""
    with engine.open("r+b") as file:
        file.truncate(2**40)
    with pytest.raises(InputError, match=r"engine .* is not what"):
        check(engine)
