"""Exported models (.onnx): protocol buffers with changed claims, sizes and nodes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from random import Random

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.fuzzing.cases import Case, Changes, Place
from tests.fuzzing.mutations import jsons, raw, values
from tests.fuzzing.seeds import Seeds

_PREFIX = "pom_export."
_CLAIMS = ("dtype", "limits", "spec", "mask", "stateful", "source_sha256", "kept_in_float32", "keep_float32")
_CLAIMED = (
    *("bfloat16", "float16", "float32", "float64", "none", "causal", "full", "block-causal", "", "null", "[]", "{}"),
    *('{"tokens": 1}', '{"tokens": -1}', '{"tokens": 1e9}', '{"values": {"x": [0]}}', '{"scale": 0}', '{"x": 1}'),
    *('{"values": 3, "tokens": null, "scale": null}', '{"values":{},"tokens":9999999999999,"scale":null}', "[" * 3000),
)
# Adding this to a weight changes an output by far more than any tolerance, unless the weight's values are small.
_CHANGE = 0.25


def make(random: Random, seeds: Seeds, place: Place) -> Case:
    """Return `verify`, `build`, `generate` or `inspect` of a spoilt model."""
    changes = Changes()
    command = random.choice(("verify",) * 6 + ("build", "generate", "generate", "inspect"))
    seed = "stream.onnx" if command == "generate" else random.choice(("mixer.onnx", "state.onnx"))
    file = place.inputs / "model.onnx"
    file.write_bytes(_content(random, seeds[seed].read_bytes(), place, changes))
    if command == "verify":
        return Case(("verify", str(file), "--checkpoint", str(seeds["mixer.pt"])), str(changes), changes.refuse)
    if command == "build":
        arguments = ("build", str(file), "-o", str(place.outputs / "model.engine"), "--targets", "sm86")
        return Case((*arguments, "--no-embed-plugin"), str(changes))
    if command == "generate":
        return Case(
            ("generate", str(file), "--prompt", "a", "--max-tokens", "2", "--seed", "1", "--json"), str(changes)
        )
    return Case(("inspect", str(file)), str(changes), refuse=False)


def _content(random: Random, content: bytes, place: Place, changes: Changes) -> bytes:
    if random.random() < 0.15:
        content, what = raw.spoil(random, content)
        changes.note(what)
        return content
    if random.random() < 0.05:
        depth = random.choice((10, 40, 100, 10_000))
        changes.note(f"branches in branches, {depth} of them")
        return content + _nested(depth)
    model = onnx.ModelProto.FromString(content)
    for _ in range(random.choice((1, 1, 2))):
        random.choice(_WAYS)(random, model, place, changes)
    return model.SerializeToString()


def _claim(random: Random, model: onnx.ModelProto, _: Place, changes: Changes) -> None:
    """Change what the file claims about itself."""
    key = random.choice((*_CLAIMS, *_CLAIMS, values.name(random)[:5000]))
    known = [entry for entry in model.metadata_props if entry.key == _PREFIX + key]
    entry = known[0] if known and random.random() < 0.9 else model.metadata_props.add(key=_PREFIX + key)
    value = random.choice(_CLAIMED)
    if entry.value.startswith("{") and random.random() < 0.6:
        value = jsons.spoil(random, json.loads(entry.value))[0].decode("utf-8", "replace")
    elif random.random() < 0.2:
        value = random.choice((values.name(random), "9" * 5000))
    entry.value = value
    changes.note(f"{key[:30]!r} is {value[:60]!r}")


def _loosened(random: Random, model: onnx.ModelProto, place: Place, changes: Changes) -> None:
    """Change a weight, and let the file claim a type of few digits, or few tokens."""
    _weight(random, model, place, changes)
    for entry in model.metadata_props:
        if entry.key == f"{_PREFIX}dtype":
            entry.value = random.choice(("bfloat16", "float16"))
    changes.note("and a type of few digits")


def _floats(model: onnx.ModelProto) -> list[TensorProto]:
    """Return the weights: float tensors that are not constants of a function's body."""
    return [
        w for w in model.graph.initializer if w.data_type == TensorProto.FLOAT and len(w.dims) and np.prod(w.dims) > 8
    ]


def _weight(random: Random, model: onnx.ModelProto, _: Place, changes: Changes) -> None:
    """Change a weight's values, which `verify` has to notice."""
    weight = random.choice(_floats(model))
    array = numpy_helper.to_array(weight).copy()
    change = random.choice(("all", "sign", "NaN"))
    if change == "all":
        array += _CHANGE
    elif change == "sign":
        array = -array - _CHANGE
    else:
        array.flat[0] = np.nan
    weight.CopyFrom(numpy_helper.from_array(array, weight.name))
    changes.note(f"{weight.name} changed: {change}", refuse=True)


def _tensor(random: Random, model: onnx.ModelProto, _: Place, changes: Changes) -> None:
    """Describe a weight by wrong sizes, a wrong type or wrong bytes."""
    weight = random.choice(list(model.graph.initializer))
    action = random.randrange(4)
    if action == 0:
        del weight.dims[:]
        weight.dims.extend(size for size in values.shape(random) if -(2**63) <= size < 2**63)
    elif action == 1:
        weight.data_type = random.choice((0, 8, 14, 16, 17, 21, 22, 23, 99, 2**31 - 1, -1))
    elif action == 2:
        weight.raw_data = random.choice((weight.raw_data[:-1], b"", weight.raw_data * 2, b"\0" * 10**7))
    else:
        weight.int32_data.extend([1, 2, 3])
        weight.string_data.append(b"x")
    changes.note(f"{weight.name}: dims {list(weight.dims)[:6]}, type {weight.data_type}, {len(weight.raw_data)} bytes")


def _external(random: Random, model: onnx.ModelProto, place: Place, changes: Changes) -> None:
    """Move a weight to a file that does not belong to the model."""
    weight = random.choice(list(model.graph.initializer))
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    entries = {"location": values.path(random, place), "offset": "0", "length": "16"}
    if random.random() < 0.5:
        entries |= {
            "location": "model.onnx",
            "offset": random.choice(("0", "-1", "9" * 30, "x", "4")),
            "length": random.choice(("-1", "9" * 5000, str(2**62), "")),
        }
    for key, value in entries.items():
        weight.external_data.add(key=key, value=value)
    changes.note(f"external {str(entries)[:150]}", refuse=True)


def _interface(random: Random, model: onnx.ModelProto, _: Place, changes: Changes) -> None:
    """Declare the inputs and outputs differently."""
    ports = random.choice((model.graph.input, model.graph.output))
    port = random.choice(list(ports))
    action = random.randrange(8)
    dims = port.type.tensor_type.shape.dim
    if action == 0 and dims:
        random.choice(list(dims)).dim_value = random.choice((0, -1, 1, 10**9, 2**40, 2**63 - 1))
    elif action == 1 and dims:
        random.choice(list(dims)).dim_param = random.choice((values.name(random)[:5000], "batch", "tokens", "x + y"))
    elif action == 2:
        port.type.tensor_type.elem_type = random.choice((0, 7, 8, 9, 10, 11, 14, 16, 17, 23, 99))
    elif action == 3:
        new = values.name(random)
        port.name = new
    elif action == 4:
        port.ClearField("type")
    elif action == 5:
        port.type.CopyFrom(helper.make_sequence_type_proto(helper.make_tensor_type_proto(1, [2])))
    elif action == 6:
        ports.remove(port)
    else:
        ports.add().CopyFrom(port)
    changes.note(f"port {action} {port.name[:40]!r} {str(port.type)[:60]!r}")


def _node(random: Random, model: onnx.ModelProto, _: Place, changes: Changes) -> None:
    node = random.choice(list(model.graph.node))
    action = random.randrange(7)
    if action == 0:
        node.op_type = random.choice(
            ("Nothing", "Identity", values.name(random)[:5000], "Relu", "PolynomialAggregation")
        )
    elif action == 1:
        node.domain = random.choice(("", "pom", "ai.onnx.ml", "com.microsoft", values.name(random)[:5000]))
    elif action == 2:
        del node.input[-1:]
    elif action == 3 and node.input:
        node.input[random.randrange(len(node.input))] = random.choice(("", "missing", node.output[0], node.input[0]))
    elif action == 4:
        node.name = values.name(random)
    elif action == 5:
        model.graph.node.remove(node)
    else:
        model.graph.node.add().CopyFrom(node)
    changes.note(f"node {action} {node.op_type[:30]!r}")


def _attribute(random: Random, model: onnx.ModelProto, _: Place, changes: Changes) -> None:
    """Change an attribute of one of our nodes."""
    node = random.choice([node for node in model.graph.node if node.domain] or list(model.graph.node))
    name = random.choice(("form", "mode", "degree", "epsilon", "rotary_blocks", "stateful", "plugin_version", "new"))
    kept = [attribute for attribute in node.attribute if attribute.name != name]
    number = random.choice((-1, 0, 17, 2**31, 2**63 - 1))
    value = random.choice(
        (number, 1e30, float("nan"), "product", "causal", values.name(random)[:500], [1.0], [b"a"], [1])
    )
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])
    changes.note(f"{name} is {str(value)[:40]!r}")


def _function(random: Random, model: onnx.ModelProto, _: Place, changes: Changes) -> None:
    """Change the functions that define the op."""
    if not model.functions:
        changes.note("nothing")
        return
    function = random.choice(list(model.functions))
    action = random.randrange(6)
    if action == 0:
        model.functions.remove(function)
    elif action == 1:
        model.functions.add().CopyFrom(function)
    elif action == 2:
        node = function.node.add(op_type=function.name, domain=function.domain)
        node.input.extend(function.input)
        node.output.extend(function.output)
    elif action == 3:
        del function.node[-1:]
    elif action == 4:
        function.name = values.name(random)[:5000]
    else:
        del function.input[:1]
    changes.note(f"function {action}")


def _whole(random: Random, model: onnx.ModelProto, _: Place, changes: Changes) -> None:
    action = random.randrange(8)
    if action == 0:
        model.ir_version = random.choice((0, 1, 3, 99, 2**40))
    elif action == 1:
        del model.opset_import[:]
        model.opset_import.extend(random.choice(([], [helper.make_opsetid("", 1)], [helper.make_opsetid("", 10**6)])))
    elif action == 2:
        model.graph.name = random.choice(("", values.name(random)))
    elif action == 3:
        model.producer_name = model.graph.doc_string = values.name(random)
    elif action == 4:
        model.ClearField("graph")
    elif action == 5:
        for i in range(20_000):
            model.metadata_props.add(key=f"{_PREFIX}{i}", value="x")
    elif action == 6:
        model.graph.node.extend(helper.make_node("Identity", ["x"], [f"copy_{i}"]) for i in range(5000))
    else:
        model.graph.sparse_initializer.add().dims.extend([2**62, 2**62])
    changes.note(f"whole {action}")


def _nested(depth: int) -> bytes:
    """Return bytes that nest branches in branches when appended to a model: parsers merge the two graphs into one."""
    graph = b""
    for _ in range(depth):
        graph = _field(1, _field(4, b"If") + _field(5, _field(1, b"then_branch") + _field(6, graph)))
    return _field(7, graph)


def _field(number: int, content: bytes) -> bytes:
    """Return a field of a protocol buffer."""
    size, length = len(content), bytearray()
    while size > 0x7F:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([number << 3 | 2, *length, size]) + content


_Way = Callable[[Random, onnx.ModelProto, Place, Changes], None]
_WAYS: Sequence[_Way] = (
    *(_claim, _claim, _claim, _loosened, _weight, _tensor, _tensor, _external, _interface, _interface),
    *(_node, _attribute, _attribute, _function, _whole),
)
