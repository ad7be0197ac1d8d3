"""List the nodes and weights of a graph that differ from those of another graph of the same model."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from pom_export.errors import printable
from pom_export.graph.module_values import ModuleValues
from pom_export.parity.case import Array
from pom_export.parity.modules import FileDifference

# How many nodes may be in one of two graphs only: a fault adds or removes a few, another tool's rewriting many.
_FEW: Final = 8
_SHARE: Final = 0.1
_NUMBERS: Final = (ir.AttributeType.FLOAT, ir.AttributeType.INT, ir.AttributeType.FLOATS, ir.AttributeType.INTS)
_LONGEST: Final = 80
# A weight that torch has transposed, and perhaps the number of a part that the export has cut it into.
_TRANSPOSED: Final = re.compile(r"_transposed(\.\d+)*$")
_TYPES: Final = "its type is"
_TORCHS: Final = "val_"
_SHOWN: Final = 4


@dataclass(frozen=True)
class Placed:
    """A difference, and its place in the order of the wanted graph's nodes."""

    place: float
    difference: FileDifference


def differences(given: ModuleValues, wanted: ModuleValues) -> list[FileDifference] | None:
    """Return what differs in a graph, in the order of its nodes; None if another tool has rewritten it.

    Nodes are matched by name, as an export names them.

    Args:
        given: the graph.
        wanted: the graph that it should be.
    """
    ours, theirs = _by_name(given), _by_name(wanted)
    missing = [name for name in theirs if name not in ours]
    added = [node for node in given.nodes if not node.name or node.name not in theirs]
    if max(len(missing), len(added)) > max(_FEW, _SHARE * len(theirs)):
        return None
    found = [_missing(wanted, theirs[name]) for name in missing]
    found += [_added(given, node, wanted, theirs) for node in added]
    for name, node in theirs.items():
        if name in ours:
            place = wanted.position(node)
            found += [Placed(place, each) for each in _compared(ours[name], node, wanted, ours, theirs)]
    return [each.difference for each in sorted(found, key=lambda each: each.place)]


def common_differences(given: ModuleValues, wanted: ModuleValues) -> list[FileDifference]:
    """Return what differs in the nodes that two graphs have in common, where another tool has rewritten the rest.

    This explains an error, but proves none: what a tool has changed in one node it may have made up for in another.
    """
    ours, theirs = _by_name(given), _by_name(wanted)
    return [
        each
        for name, node in theirs.items()
        if name in ours and ours[name].op_type == node.op_type
        for each in _compared(ours[name], node, wanted, ours, theirs)
        if each.kind in {"weight", "attribute", "constant"} and _TYPES not in each.what
    ]


def _by_name(graph: ModuleValues) -> dict[str, ir.Node]:
    return {node.name: node for node in graph.nodes if node.name}


def _missing(wanted: ModuleValues, node: ir.Node) -> Placed:
    what = f"the operator {_called(node)} is missing"
    return Placed(wanted.position(node), FileDifference(wanted.scopes[node], what, "operator"))


def _added(given: ModuleValues, node: ir.Node, wanted: ModuleValues, theirs: Mapping[str, ir.Node]) -> Placed:
    """Describe a node that the wanted graph lacks; its place is just behind the node before it."""
    before = [theirs[one.name] for one in _ancestors(node) if one.name and one.name in theirs]
    place = wanted.position(before[0]) + 0.5 if before else -1.0
    what = f"the operator {_called(node)} is not in the model"
    return Placed(place, FileDifference(given.scopes[node], what, "operator"))


def _ancestors(node: ir.Node) -> Iterator[ir.Node]:
    """Yield the nodes before a node, the closest first."""
    seen, waiting = set(), [node]
    while waiting:
        for value in waiting.pop(0).inputs:
            producer = value.producer() if value is not None else None
            if producer is not None and producer not in seen:
                seen.add(producer)
                waiting.append(producer)
                yield producer


def _compared(
    given: ir.Node, wanted: ir.Node, graph: ModuleValues, ours: Mapping[str, ir.Node], theirs: Mapping[str, ir.Node]
) -> Iterator[FileDifference]:
    scope = graph.scopes[wanted]
    if (given.domain, given.op_type) != (wanted.domain, wanted.op_type):
        what = f"the operator {_called(wanted)} is {printable(given.op_type, _LONGEST)} in the file"
        yield FileDifference(scope, what, "operator")
        return
    for what in _attributes(given, wanted):
        yield FileDifference(scope, f"{what} in the operator {_called(wanted)}", "attribute")
    if len(given.inputs) != len(wanted.inputs):
        what = f"the operator {_called(wanted)} has {len(given.inputs)} inputs, not {len(wanted.inputs)}"
        yield FileDifference(scope, what, "input")
        return
    for index, pair in enumerate(zip(given.inputs, wanted.inputs, strict=True)):
        found = _input(*pair, ours, theirs)
        if found is None:
            continue
        name = _weight_name(pair[1], scope, graph)
        if found.kind == "constant" and name:
            yield FileDifference(scope, f"the weight {name} differs: {found.text}", "weight")
        else:
            yield FileDifference(scope, f"input {index} of the operator {_called(wanted)}: {found.text}", found.kind)


def _attributes(given: ir.Node, wanted: ir.Node) -> Iterator[str]:
    for name in dict.fromkeys((*wanted.attributes, *given.attributes)):
        one, other = (_shown(node.attributes.get(name)) for node in (given, wanted))
        if one != other:
            yield f"{printable(name, _LONGEST)} is {one}, not {other},"


def _shown(attribute: ir.Attr | None) -> str:
    if attribute is None:
        return "absent"
    if attribute.type == ir.AttributeType.TENSOR:
        return _numbers(attribute.as_tensor().numpy())
    if attribute.type in _NUMBERS or attribute.type == ir.AttributeType.STRING:
        return _text(attribute.value)
    return attribute.type.name


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.7g}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_text, value))}]"
    return printable(str(value), _LONGEST)


@dataclass(frozen=True)
class _What:
    text: str
    kind: str


def _input(
    given: ir.Value | None, wanted: ir.Value | None, ours: Mapping[str, ir.Node], theirs: Mapping[str, ir.Node]
) -> _What | None:
    """Return how an input of a node differs; None if it does not, or only because of a node that differs itself."""
    if given is None or wanted is None:
        return None if given is wanted else _What("it is present in one of the two only", "input")
    one, other = _constant(given), _constant(wanted)
    if one is not None and other is not None:
        text = _constants_differ(one, other)
        return _What(text, "constant") if text else None
    sources = _source(given), _source(wanted)
    if sources[0] == sources[1]:
        return None
    if (cast := _cast_before(wanted)) is not None and _source(cast) == sources[0]:
        return _What(f"it comes from {_from(given)} without the cast to {_type_name(wanted)}", "operator")
    if (cast := _cast_before(given)) is not None and _source(cast) == sources[1]:
        return _What(f"{_from(wanted)} is cast to {_type_name(given)} first", "operator")
    if (given.producer() is not None and sources[0][0] not in theirs) or (
        wanted.producer() is not None and sources[1][0] not in ours
    ):
        return None  # that node is listed
    if given.producer() is None and wanted.producer() is None and one is None and other is None:
        return None  # inputs of the model may have other names
    return _What(f"it comes from {_from(given)}, not from {_from(wanted)}", "input")


def _cast_before(value: ir.Value) -> ir.Value | None:
    """Return what a value is cast from; None if it is not the result of a cast."""
    producer = value.producer()
    return producer.inputs[0] if producer is not None and producer.op_type == "Cast" else None


def _type_name(value: ir.Value) -> str:
    producer = value.producer()
    to = producer.attributes.get("to") if producer is not None else None
    return ir.DataType(to.as_int()).name.lower() if to is not None else "another type"


def _source(value: ir.Value) -> tuple[str, int]:
    producer = value.producer()
    if producer is None:
        return value.name or "", -1
    return producer.name or "", value.index() or 0


def _from(value: ir.Value) -> str:
    producer = value.producer()
    return printable(value.name or "", _LONGEST) if producer is None else _called(producer)


def _called(node: ir.Node) -> str:
    return printable(node.name or node.op_type, _LONGEST)


def _constant(value: ir.Value) -> Array | None:
    """Return a constant's values; None for what is computed."""
    producer = value.producer()
    if value.const_value is not None:
        return value.const_value.numpy()
    if producer is not None and producer.op_type == "Constant" and "value" in producer.attributes:
        return producer.attributes["value"].as_tensor().numpy()
    return None


def _constants_differ(one: Array, other: Array) -> str:
    """Return how a constant differs; empty if it does not."""
    if one.shape != other.shape:
        return f"its shape is {list(one.shape)}, not {list(other.shape)}"
    if one.dtype != other.dtype:
        return f"{_TYPES} {one.dtype.name}, not {other.dtype.name}"
    if np.array_equal(one.view(f"u{one.itemsize}"), other.view(f"u{other.itemsize}")):
        return ""
    if one.size <= _SHOWN:
        return f"it is {_numbers(one)}, not {_numbers(other)}"
    with np.errstate(all="ignore"):
        error = np.abs(one.astype(np.float64) - other.astype(np.float64))
        largest = float(np.nanmax(np.abs(other.astype(np.float64))))
    count = int(np.count_nonzero(~(error == 0)))
    most = float(np.nanmax(error)) if np.isfinite(error).any() else float("inf")
    share = f", {most / largest:.2g} of the largest" if largest else ""
    return f"{count} of {one.size} values, by at most {most:.3g}{share}"


def _numbers(array: Array) -> str:
    values: Sequence[Any] = array.reshape(-1)[:_SHOWN].tolist()
    more = "..." if array.size > _SHOWN else ""
    return f"{', '.join(_text(value) for value in values)}{more}"


def _weight_name(value: ir.Value | None, scope: str, graph: ModuleValues) -> str:
    """Return the name of the parameter that an input is, "" for other constants.

    Equal weights of several modules are stored once, under the first one's name.
    """
    name = _TRANSPOSED.sub("", (value.name if value is not None else None) or "")
    path, _, last = name.rpartition(".")
    if path not in graph.modules or name.startswith(_TORCHS):
        return ""
    return name if not path or f"{path}.".startswith(f"{scope}.") or not scope else f"{scope}.{last}"
