"""The small types that a file computes with, and the GPU architectures that multiply them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import onnx

from pom_export.engine.targets import CURRENT, DEFAULT_TARGETS
from pom_export.errors import InputError
from pom_export.graph.unfolding import all_nodes, graphs_of

_NAMES: Final = {
    onnx.TensorProto.FLOAT8E4M3FN: "fp8", onnx.TensorProto.INT4: "int4", onnx.TensorProto.FLOAT4E2M1: "fp4",
}  # fmt: skip
# The oldest architecture that TensorRT for RTX 1.7 built such products for; it refused sm75 and sm86 for fp8, sm75 for
# int4, and sm89 for fp4. It builds int8 for all.
_OLDEST: Final = {"fp4": 120, "fp8": 89, "int4": 80}


def small_types(model: Path) -> list[str]:
    """Return the types of a file's constants and rounded values that not all architectures multiply: a part of _OLDEST.

    Args:
        model: the file; its external weights are not read.
    """
    whole = onnx.load(model, format="protobuf", load_external_data=False)
    found = set(_types(whole.graph, whole.functions))
    return [name for name in _OLDEST if name in found]


def _types(graph: onnx.GraphProto, functions: Sequence[onnx.FunctionProto]) -> Iterator[str]:
    nodes = [*all_nodes(graph), *(node for function in functions for node in function.node)]
    graphs = [graph, *(inner for node in nodes for inner in graphs_of(node))]
    numbers = [tensor.data_type for each in graphs for tensor in each.initializer]
    for node in nodes:
        for attribute in node.attribute:
            # The value of a Constant; what a QuantizeLinear or a Cast makes.
            numbers.append(attribute.t.data_type)
            if attribute.name in {"output_dtype", "to"}:
                numbers.append(attribute.i)
    return (_NAMES[number] for number in numbers if number in _NAMES)


def targets_for(types: Sequence[str]) -> tuple[str, ...]:
    """Return those default targets that multiply all of some types."""
    return tuple(name for name in DEFAULT_TARGETS if int(name[2:]) >= _oldest(types))


def check_targets(model: Path, types: Sequence[str], targets: Sequence[str], chips: Sequence[int]) -> None:
    """Refuse targets that lack a type that a file computes with, before a long build that would end in a refusal.

    Args:
        model: the file, for messages.
        types: its small types.
        targets: the targets by name.
        chips: their compute capabilities, such as 86, as far as they are known.

    Raises:
        InputError: a target lacks a type.
    """
    for kind in types:
        lacking = [f"sm{chip}" for chip in chips if chip < _OLDEST[kind]]
        if lacking:
            where = "this machine's GPU is" if CURRENT in targets else "`targets` names"
            raise InputError(
                f"{model} has products in {kind}, which needs sm{_OLDEST[kind]} or newer, and {where} "
                f"{', '.join(lacking)}",
                f"Build for {','.join(targets_for(types))}, or quantize the model to another type",
            )


def _oldest(types: Sequence[str]) -> int:
    return max((_OLDEST[kind] for kind in types), default=0)
