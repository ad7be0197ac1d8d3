"""Name the dynamic dimensions that torch.export numbered."""

from __future__ import annotations

import re
from collections.abc import Iterator

import onnx_ir as ir

from pom_export.graph.exported_model import BATCH, TOKENS

_NUMBERED = re.compile(r"\bs\d+\b")
_USUAL = (BATCH, TOKENS)


class NameDimensionsPass(ir.passes.InPlacePass):
    """Name the inputs' first dynamic dimension `batch`, the second `tokens`, and others after input and axis.

    Dimensions that tracing turned into numbers become numbers.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rename the dimensions of every value."""
        names: dict[str, str] = {}
        given = {str(size) for value in model.graph.inputs for size in value.shape or ()}
        for value in model.graph.inputs:
            for axis, size in enumerate(value.shape or ()):
                symbol = str(size)
                if _NUMBERED.fullmatch(symbol) and symbol not in names:
                    usual = _USUAL[axis] if axis < len(_USUAL) else ""
                    free = usual and usual not in given and usual not in names.values()
                    names[symbol] = usual if free else f"{value.name}_{axis}"
        for value in _values(model.graph):
            if value.shape is not None:
                value.shape = ir.Shape([_renamed(size, names) for size in value.shape])
        return ir.passes.PassResult(model, modified=True)


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    for node in graph:
        yield from node.outputs


def _renamed(size: int | ir.SymbolicDim, names: dict[str, str]) -> int | str | None:
    if isinstance(size, int):
        return size
    if size.value is None:
        return None
    renamed = _NUMBERED.sub(lambda match: names.get(match[0], match[0]), size.value)
    # torch names a dimension that turned out to be 8 "8".
    return int(renamed) if renamed.isdecimal() else renamed
