"""Run part of a graph on chosen tokens, one after the other along a value's token axis."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Final

import numpy as np
import onnx_ir as ir

from pom_export.graph.fusing.evaluation import Array, Axes, Evaluator

# The axes of a value of tokens: batch, tokens, and those of the channels.
TOKEN_RANK: Final = 3
# The size of dynamic dimensions that are not the tokens' own.
_OTHER: Final = 2
_TABLE_RANK: Final = 2
# The most nodes from features to their rotation.
_LONGEST: Final = 60


@dataclass(frozen=True)
class Layout:
    """The shape of a value of tokens: (B, N, ...), or with rows and tokens on other axes, such as (B, ..., N).

    "Ordered" arrays are (B, N, ...) in any case.

    Attributes:
        batch: B in the graph; None: of any size.
        tokens: N in the graph; None: of any size.
        channels: the sizes of the other axes.
        names: the names of the two dimensions, where they have some.
        axis: that of the tokens.
        rows: that of the batch.
    """

    batch: int | None
    tokens: int | None
    channels: tuple[int, ...]
    names: tuple[str | None, str | None]
    axis: int = 1
    rows: int = 0

    @property
    def width(self) -> int:
        """The number of values of a token."""
        return prod(self.channels)

    @property
    def order(self) -> list[int]:
        """The axes of an ordered array in the value."""
        others = (axis for axis in range(len(self.channels) + 2) if axis not in {self.axis, self.rows})
        return [self.rows, self.axis, *others]

    @property
    def back(self) -> list[int]:
        """The axes of the value in an ordered array."""
        return [int(axis) for axis in np.argsort(self.order)]

    @property
    def is_ordered(self) -> bool:
        """Whether the value is (B, N, ...)."""
        return (self.rows, self.axis) == (0, 1)

    def placed(self, array: Array) -> Array:
        """Return an ordered array as the value holds it."""
        return array.transpose(self.back)

    def ordered(self, array: Array) -> Array:
        """Return an array as the value holds it, or with other sizes, in order."""
        return array.transpose(self.order) if array.ndim == len(self.channels) + 2 else array

    def sizes(self, batch: int, tokens: int) -> dict[str, int]:
        """Return the sizes of the named dimensions."""
        return {name: size for name, size in zip(self.names, (batch, tokens), strict=True) if name is not None}


def layout_of(value: ir.Value, axes: Axes) -> Layout | None:
    """Return the layout of a value; None if it has none of tokens, or an unknown one."""
    shape = value.shape
    if shape is None or len(shape) < max(TOKEN_RANK, 1 + (axes.tokens or 0)):
        return None
    rows = axes.batch
    dynamic = [axis for axis, size in enumerate(shape) if axis != rows and not isinstance(size, int)]
    axis = axes.tokens if axes.tokens is not None else next(iter(dynamic), 1)
    if dynamic not in ([], [axis]):
        return None
    batch, tokens, channels = (
        shape[rows],
        shape[axis],
        [size for at, size in enumerate(shape) if at not in {rows, axis}],
    )
    if not all(isinstance(size, int) and size > 0 for size in channels):
        return None
    fixed = tuple(size if isinstance(size, int) else None for size in (batch, tokens))
    names = tuple(None if isinstance(size, int) else size.value for size in (batch, tokens))
    return Layout(fixed[0], fixed[1], tuple(int(str(size)) for size in channels), (names[0], names[1]), axis, rows)


def dynamic_sizes(graph: ir.Graph) -> dict[str, int]:
    """Return a size for every dynamic dimension of the graph's inputs."""
    dimensions = [size for value in graph.inputs for size in value.shape or () if not isinstance(size, int)]
    return {name: _OTHER for size in dimensions for name in size.free_symbols()}


def run_tokens(
    evaluator: Evaluator, start: ir.Value, layout: Layout, tokens: Array, wanted: Sequence[ir.Value], batch: int = 1
) -> dict[ir.Value, Array]:
    """Compute values from tokens at `start`, each as (P, values of a token).

    Args:
        evaluator: of the graph.
        start: the value that the tokens are given for.
        layout: its layout.
        tokens: (P, values of a token).
        wanted: the values to compute; those that have no row for each token are left out.
        batch: into how many rows the tokens are divided, where the graph leaves it open.
    """
    rows = layout.batch or batch
    length = layout.tokens or -(-len(tokens) // rows)
    found: dict[ir.Value, list[Array]] = {value: [] for value in wanted}
    for first in range(0, len(tokens), rows * length):
        part = tokens[first : first + rows * length]
        filled = np.concatenate([part, np.repeat(part[-1:], rows * length - len(part), 0)])
        given = {start: layout.placed(filled.reshape(rows, length, *layout.channels))}
        computed = evaluator.run(wanted, given, {**dynamic_sizes(evaluator.root), **layout.sizes(rows, length)})
        for value, parts in found.items():
            array, own = computed.get(value), layout_of(value, evaluator.axes)
            array = array if array is None or own is None else own.ordered(array)
            if array is not None and array.shape[:2] == (rows, length):
                parts.append(np.asarray(array, np.float64).reshape(rows * length, -1)[: len(part)])
    count = -(-len(tokens) // (rows * length))
    return {value: np.concatenate(parts) for value, parts in found.items() if len(parts) == count}


def after(evaluator: Evaluator, start: ir.Value, limit: int) -> list[ir.Value]:
    """Return the values that are computed from one value, and otherwise from constants and sizes, in order."""
    reached: dict[ir.Value, None] = {start: None}
    nodes: dict[ir.Node, None] = {}
    waiting = [start]
    while waiting and len(nodes) < limit:
        value = waiting.pop(0)
        for node, _ in value.uses():
            if node in nodes or node.graph is not evaluator.graph:
                continue
            if all(each in reached for each in evaluator.data_inputs(node)) and evaluator.depends_on_data(
                node.outputs[0]
            ):
                nodes[node] = None
                reached |= dict.fromkeys(node.outputs)
                waiting.extend(node.outputs)
    ordered = sorted(nodes, key=evaluator.position)
    return [value for node in ordered for value in node.outputs]


def after_tables(
    evaluator: Evaluator, start: ir.Value, layout: Layout
) -> Iterator[tuple[ir.Value, tuple[ir.Value, ...]]]:
    """Yield the values computed from one value and from tables (N, columns), in order, each with its tables."""
    known: dict[ir.Value, tuple[ir.Value, ...]] = {start: ()}
    for node in nodes_after(evaluator, start, _LONGEST):
        inner = [known[each] for each in node.inputs if each is not None and each in known]
        outer = [each for each in node.inputs if each is not None and each not in known]
        tables = [each for each in outer if _is_table(each, layout)]
        if any(evaluator.depends_on_data(each) for each in outer if each not in tables):
            continue
        found = tuple(dict.fromkeys([*(table for one in inner for table in one), *tables]))
        for output in node.outputs:
            known[output] = found
            yield output, found


def _is_table(value: ir.Value, layout: Layout) -> bool:
    """Return whether a value has a row of at most as many columns as channels for each token."""
    shape = value.shape
    if shape is None or len(shape) < _TABLE_RANK or any(size != 1 for size in shape[:-2]):
        return False
    tokens, columns = shape[-2:]
    same = tokens == layout.tokens if isinstance(tokens, int) else tokens.value == layout.names[1]
    return bool(same) and isinstance(columns, int) and 1 < columns <= layout.width


def nodes_after(evaluator: Evaluator, start: ir.Value, limit: int) -> list[ir.Node]:
    """Return the nodes that depend on a value, the nearest ones, in order."""
    nodes: dict[ir.Node, None] = {}
    waiting = [start]
    while waiting and len(nodes) < limit:
        for node, _ in waiting.pop(0).uses():
            if node not in nodes and node.graph is evaluator.graph and evaluator.depends_on_data(node.outputs[0]):
                nodes[node] = None
                waiting.extend(node.outputs)
    return sorted(nodes, key=evaluator.position)


def named(sizes: Mapping[str, int], graph: ir.Graph) -> dict[str, int]:
    """Return sizes for all dynamic dimensions: the given ones, and one for each of the others."""
    return {**dynamic_sizes(graph), **sizes}
