"""Hostile ONNX files: each is refused with one line, before a parser allocates what it declares."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pom_export.errors import InputError
from pom_export.graph import declared_tensor, onnx_file
from pom_export.graph.exported_model import read_model
from pom_export.graph.onnx_file import MESSAGES, check_onnx_file
from pom_export.runtime.session import inference_session

X = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])
Y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])
OPSETS = [helper.make_opsetid("", 20)]


def field(number: int, content: bytes) -> bytes:
    """Return a wire-format field that holds a message or bytes."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def varint(value: int) -> bytes:
    more = bytearray()
    while value >= 0x80:
        more.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*more, value])


def model(nodes: list[Any] | None = None, weights: list[Any] | None = None, **changes: Any) -> onnx.ModelProto:
    graph = helper.make_graph(nodes or [helper.make_node("Relu", ["x"], ["y"])], "g", [X], [Y], weights or [])
    return helper.make_model(graph, ir_version=10, opset_imports=changes.pop("opset_imports", OPSETS), **changes)


def with_tensor(**changes: Any) -> onnx.ModelProto:
    tensor = numpy_helper.from_array(np.ones(4, np.float32), "w")
    for name, value in changes.items():
        if isinstance(value, list):
            tensor.ClearField(name)
            getattr(tensor, name).extend(value)
        else:
            setattr(tensor, name, value)
    return model(weights=[tensor])


def with_external(*entries: tuple[str, str], location: str = "w.bin") -> onnx.ModelProto:
    made = with_tensor(data_location=TensorProto.EXTERNAL)
    tensor = made.graph.initializer[0]
    tensor.ClearField("raw_data")
    for key, value in (("location", location), *entries):
        tensor.external_data.add(key=key, value=value)
    return made


def calls(*bodies: tuple[str, list[str]]) -> onnx.ModelProto:
    """Return a model that calls the first of its functions, each of which calls others by name."""
    functions = []
    for name, called in bodies:
        nodes = [helper.make_node(other, ["a"], [f"v{i}"], domain="d") for i, other in enumerate(called)]
        nodes.append(helper.make_node("Relu", ["a"], ["b"]))
        functions.append(helper.make_function("d", name, ["a"], ["b"], nodes, OPSETS))
    node = helper.make_node(bodies[0][0], ["x"], ["y"], domain="d")
    return model([node], opset_imports=[*OPSETS, helper.make_opsetid("d", 1)], functions=functions)


def nested(levels: int) -> bytes:
    """Return a file whose graph contains a node with a graph that contains a node, and so on."""
    graph = b""
    for _ in range(levels):
        graph = field(1, field(5, field(6, graph)))
    return field(7, graph)


def sparse() -> onnx.ModelProto:
    made = model()
    values = numpy_helper.from_array(np.ones(1, np.float32), "s")
    made.graph.sparse_initializer.append(
        helper.make_sparse_tensor(values, numpy_helper.from_array(np.zeros(1, np.int64)), [10**12])
    )
    return made


def deep_in(part: Callable[[onnx.TensorProto], Any]) -> onnx.ModelProto:
    """Return a model with a tensor that reads /etc/passwd in some part of it."""
    tensor = with_external(location="../elsewhere").graph.initializer[0]
    made = part(tensor)
    return made if isinstance(made, onnx.ModelProto) else model(made)


def in_function(tensor: onnx.TensorProto) -> onnx.ModelProto:
    made = calls(("f", []))
    made.functions[0].node.append(helper.make_node("Constant", [], ["c"], value=tensor))
    return made


def in_subgraph(tensor: onnx.TensorProto) -> list[onnx.NodeProto]:
    inner = helper.make_graph([helper.make_node("Identity", ["w"], ["z"])], "inner", [], [], [tensor])
    return [helper.make_node("Relu", ["x"], ["y"], body=inner)]


HOSTILE: dict[str, tuple[Callable[[], onnx.ModelProto | bytes], str]] = {
    "text": (lambda: b"no model at all, just text", "not a complete"),
    "cut short": (lambda: model().SerializeToString()[:-5], "not a complete"),
    "a length of 2^60": (lambda: varint(7 << 3 | 2) + varint(2**60), "bytes is in a part"),
    "a number of 11 bytes": (lambda: b"\x08" + b"\xff" * 11, "longer than 64 bits"),
    "zeros behind it": (lambda: model().SerializeToString() + bytes(100), "no number"),
    "two graphs": (lambda: model().SerializeToString() * 2, "has field 7 twice"),
    "3,000 levels": (lambda: nested(3000), "nested deeper"),
    "30 levels": (lambda: nested(30), "not a complete ONNX model"),
    "a shape of 10^12": (lambda: with_tensor(dims=[10**12]), "holds 16 bytes, not 4000000000000"),
    "a product beyond 2^64": (lambda: with_tensor(dims=[2**33, 2**33]), "holds 16 bytes"),
    "a negative size": (lambda: with_tensor(dims=[-4]), "negative size"),
    "a hundred dimensions": (lambda: with_tensor(dims=[1] * 100), "more than 64 dimensions"),
    "raw data cut short": (lambda: with_tensor(raw_data=b"\0" * 15), "holds 15 bytes, not 16"),
    "no data": (lambda: with_tensor(dims=[10**12], raw_data=b"", float_data=[1.0]), "holds 0 bytes"),
    "too few numbers": (
        lambda: model(weights=[TensorProto(name="w", data_type=1, dims=[10**12], float_data=[1.0])]),
        "holds fewer",
    ),
    "an unknown type": (lambda: with_tensor(data_type=99), "element type 99"),
    "sparse weights": (sparse, "sparse tensors"),
    "a function that calls itself": (lambda: calls(("f", ["f"])), "calls itself"),
    "functions in a circle": (lambda: calls(("f", ["g"]), ("g", ["f"])), "calls itself"),
    "functions that double": (
        lambda: calls(*((f"f{i}", [f"f{i + 1}"] * 2) for i in range(40)), ("f40", [])),
        "functions are inlined",
    ),
    "a function twice": (lambda: calls(("f", []), ("f", [])), "defined twice"),
    "weights above": (lambda: with_external(location="../w.bin"), "not a file in its own folder"),
    "weights at a path": (lambda: with_external(location="/etc/passwd"), "not a file in its own folder"),
    "weights without a name": (lambda: with_external(location=""), "not a file in its own folder"),
    "weights in the folder itself": (lambda: with_external(location="."), "not a file in its own folder"),
    "weights behind a link": (lambda: with_external(location="link"), "outside the model's folder"),
    "weights that are a folder": (lambda: with_external(location="folder"), "not a regular file"),
    "weights that are missing": (lambda: with_external(location="none"), "are missing"),
    "weights too short": (lambda: with_external(("offset", "8")), "have 16 bytes, but the model needs 24"),
    "an offset of 5,000 digits": (lambda: with_external(("offset", "9" * 5000)), "text of 5000 bytes"),
    "a negative offset": (lambda: with_external(("offset", "-8")), "offset '-8'"),
    "another length": (lambda: with_external(("length", "1")), "of 1 bytes"),
    "a location twice": (lambda: with_external(("location", "w.bin")), "'location' twice"),
    "weights in an attribute": (
        lambda: deep_in(lambda t: [helper.make_node("Constant", [], ["y"], value=t)]),
        "not a file in its own folder",
    ),
    "weights in a nested graph": (lambda: deep_in(in_subgraph), "not a file in its own folder"),
    "weights in a function": (lambda: deep_in(in_function), "not a file in its own folder"),
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("reader", [read_model, inference_session])
def test_hostile_files_are_refused_by_one_line(kind: str, reader: Callable[[Path], Any], tmp_path: Path) -> None:
    make, message = HOSTILE[kind]
    made = make()
    folder = tmp_path / "model"
    (folder / "folder").mkdir(parents=True)
    (folder / "w.bin").write_bytes(bytes(16))
    (tmp_path / "elsewhere").write_bytes(bytes(16))
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    file = folder / "m.onnx"
    file.write_bytes(made if isinstance(made, bytes) else made.SerializeToString())
    if kind == "30 levels" and reader is inference_session:
        message = "ONNX Runtime cannot load"
    with pytest.raises(InputError, match=message) as raised:
        reader(file)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 2100


@pytest.mark.parametrize(
    ("content", "message"),
    [(field(7, b"\x0a\x00" * 1001), "more than 1000 fields"), (field(2, b"a" * 1001), "more than 1000 bytes of names")],
)
def test_what_would_grow_in_memory_is_counted(
    content: bytes, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_file, "_MOST_FIELDS", 1000)
    monkeypatch.setattr(onnx_file, "_MOST_TEXT", 1000)
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(InputError, match=message):
        check_onnx_file(tmp_path / "m.onnx")


def test_a_sparse_file_beyond_what_onnx_can_be_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "m.onnx"
    file.write_bytes(model().SerializeToString())
    os.truncate(file, 3 << 30)
    with pytest.raises(InputError, match="has 3221225472 bytes"):
        read_model(file)
    os.truncate(file, 1 << 30)
    with pytest.raises(InputError, match="no number"):
        read_model(file)


def test_weights_beside_a_model_are_found_through_links_of_both(tmp_path: Path) -> None:
    """As in the cache of Hugging Face's hub, where the files of a snapshot are links to blobs."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "blobs" / "a").write_bytes(with_external(("offset", "0"), ("length", "16")).SerializeToString())
    (tmp_path / "blobs" / "b").write_bytes(bytes(16))
    (tmp_path / "snapshot" / "m.onnx").symlink_to(tmp_path / "blobs" / "a")
    (tmp_path / "snapshot" / "w.bin").symlink_to(tmp_path / "blobs" / "b")
    assert check_onnx_file(tmp_path / "snapshot" / "m.onnx").externals == {"w.bin"}


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int64, np.uint8, np.bool_])
def test_whole_tensors_pass(dtype: type, tmp_path: Path) -> None:
    array = np.ones((3, 5), dtype)
    typed = helper.make_tensor("typed", helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), array.shape, array.flatten())
    weights = [
        numpy_helper.from_array(array, "raw"),
        typed,
        helper.make_tensor("s", TensorProto.STRING, [2], ["a", "b"]),
    ]
    weights.append(helper.make_tensor("four", TensorProto.INT4, [5], [1] * 5))
    onnx.save(model(weights=weights), tmp_path / "m.onnx")
    assert read_model(tmp_path / "m.onnx").opset == 20


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("json", r"is in JSON, .*onnx\.load\('m\.onnx', format='json'\)"),
        ("onnxtxt", "is in ONNX's textual syntax, .* format='onnxtxt'"),
        ("textproto", "is a protocol buffer as text, .* format='textproto'"),
        (b"PK\x03\x04 and more", "is a zip archive, .* pom-export export m.onnx"),
        (b"\x40\0\0\0\0\0\0\0" + b'{"w":{"dtype":"F32"', "is a file of safetensors"),
        (b"version https://git-lfs.github.com/spec/v1", "is a pointer of Git LFS .* git lfs pull"),
    ],
    ids=["json", "text", "protobuf text", "zip", "safetensors", "pointer"],
)
def test_other_formats_are_named(content: str | bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        onnx.save(model(), path, format=content)
    for read in (read_model, inference_session):
        with pytest.raises(InputError, match=message):
            read(path)


def test_the_walk_knows_every_message_of_onnx() -> None:
    """A message that the walk took for text would be skipped, whatever it declares."""
    seen = set()
    wanted = [("Model", onnx.ModelProto.DESCRIPTOR)]
    while wanted:
        kind, descriptor = wanted.pop()
        if (kind, descriptor.full_name) in seen or kind in {"Configuration", "Tensor"}:
            continue
        seen.add((kind, descriptor.full_name))
        parts = {f.number: f for f in descriptor.fields if f.message_type is not None}
        assert parts.keys() == MESSAGES[kind].keys(), kind
        for number, part in MESSAGES[kind].items():
            assert part.startswith("*") == parts[number].is_repeated, (kind, number)
            wanted.append((part.lstrip("*"), parts[number].message_type))
    assert {kind for kind, _ in seen} | {"Configuration", "Tensor"} == MESSAGES.keys()


def test_the_walk_knows_every_type_of_onnx() -> None:
    known = {*declared_tensor._BITS, declared_tensor._STRING, 0}
    # No runtime supports the newest ones yet.
    assert set(TensorProto.DataType.values()) - known <= {TensorProto.FLOAT6E2M3, TensorProto.FLOAT6E3M2}
    assert onnx_file.MESSAGES["Tensor"] == {}
