"""What a model computes from a context alone, such as an encoder's output: computed in the first call, and kept."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import sympy
import torch
from torch import Tensor, fx

from pom_export.graph.exported_model import PAST_CONTEXT
from pom_export.graph.stateful.kinds import Kind
from pom_export.graph.stateful.mixing import AGGREGATION
from pom_export.graph.stateful.roles import CONTEXT, Roles
from pom_export.graph.stateful.run import StatePart
from pom_export.graph.stateful.shapes import Shape, Symbols, shapes_of
from pom_export.graph.stateful.trace import CausalTrace

_ATEN = torch.ops.aten
# Operators that are also defined on no tokens at all, as a sum of none is.
_REDUCTIONS: Final = frozenset(
    {
        *(_ATEN.sum.default, _ATEN.sum.dim_IntList, _ATEN.mean.default, _ATEN.mean.dim),
        *(_ATEN.amax.default, _ATEN.amin.default, _ATEN.any.dim, _ATEN.all.dim),
        *(_ATEN.matmul.default, _ATEN.bmm.default, _ATEN.scaled_dot_product_attention.default, AGGREGATION),
    }
)
# Operators that ONNX Runtime does not run on sequences of no tokens; with recurrent ones, it ends the process.
_NEVER_EMPTY: Final = frozenset(
    {
        *(_ATEN.conv1d.default, _ATEN.conv1d.padding, _ATEN.conv2d.default, _ATEN.conv2d.padding),
        *(
            _ATEN.convolution.default,
            _ATEN.conv_transpose1d.default,
            _ATEN.avg_pool1d.default,
            _ATEN.avg_pool2d.default,
        ),
        *(_ATEN.max_pool1d.default, _ATEN.max_pool2d.default, _ATEN.gru.input, _ATEN.lstm.input),
        *(_ATEN.rnn_tanh.input, _ATEN.rnn_relu.input),
    }
)


@dataclass(frozen=True)
class KeptValue:
    """A value that is computed from a context, and used where tokens are.

    Attributes:
        node: its node.
        name: its name in the state.
        rows: the axis of the rows.
        heads: how many values are merged with each row; 1: none.
        grows: the axis of the context's tokens; None: it has none.
        symbol: the symbol of that axis.
    """

    node: fx.Node
    name: str
    rows: int
    heads: int
    grows: int | None
    symbol: sympy.Symbol | None

    def part(self) -> StatePart:
        """Return it as a part of the state."""
        shape = [
            None if axis == self.grows else int(size)
            for axis, size in enumerate(next(shapes_of(self.node)))
            if axis != self.rows
        ]
        heads = [self.heads] if self.heads > 1 else []
        return StatePart(self.name, (*heads, *shape), self.node.meta["val"].dtype)

    def kept(self, value: Tensor, past: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        """Return the value to use, and the one to keep.

        Args:
            value: what this call's context gives; without a context, anything.
            past: what an earlier call kept.
            given: () bool, whether this call has a context.
        """
        if self.grows is not None:
            axis = self.grows + (self.grows < self.rows) + (self.heads > 1)
            kept = torch.cat([past, self._rows_first(value, past.shape[0])], dim=axis)
        else:
            kept = torch.where(given, self._rows_first(value, past.shape[0]), past)
        return self._as_was(kept), kept

    def _rows_first(self, value: Tensor, rows: Any) -> Tensor:
        value = value.movedim(self.rows, 0)
        return value.unflatten(0, (rows, self.heads)) if self.heads > 1 else value

    def _as_was(self, kept: Tensor) -> Tensor:
        value = kept.flatten(0, 1) if self.heads > 1 else kept
        return value.movedim(0, self.rows)


@dataclass(frozen=True)
class Pick:
    """The selection of the first or the last token of what is computed from a context.

    Attributes:
        axis: the axis of the tokens.
        first: whether it is the first.
    """

    axis: int
    first: bool

    def widened(self, value: Tensor) -> Tensor:
        """Return a value with a token of zeros where it is selected only if there is no other."""
        shape = list(value.shape)
        shape[self.axis] = 1
        none = value.new_zeros(shape)
        return torch.cat([value, none] if self.first else [none, value], self.axis)


def _pick(node: fx.Node, symbols: Symbols) -> Pick | None:
    """Return a node as a selection of one token at an end; None if it is none."""
    given: tuple[Any, ...] = (*node.args[1:], None, None)
    axis, start, end = given[:3]
    if node.target is _ATEN.slice.Tensor:
        whole = end is None or (isinstance(end, int) and end == sys.maxsize)
        start = 0 if start in {0, None} and end == 1 else start if whole and start == -1 else None
    elif node.target is not _ATEN.select.int:
        return None
    (shape,) = shapes_of(node.args[0])  # type: ignore[arg-type]
    others = [size for index, size in enumerate(shape) if index != axis]
    if not isinstance(axis, int) or start not in {0, -1} or any(_of_context(size, symbols) for size in others):
        return None
    return Pick(axis, first=start == 0)


@dataclass(frozen=True)
class Contexts:
    """The part of a model that depends on a context alone.

    Attributes:
        values: what is kept of it: its values that others are computed from.
        inputs: the inputs that hold a context.
        later: the nodes that are computed from kept values in every call.
        picks: the nodes that select a token at an end.
    """

    values: Sequence[KeptValue] = ()
    inputs: Sequence[str] = ()
    later: frozenset[fx.Node] = frozenset()
    picks: Mapping[fx.Node, Pick] = field(default_factory=dict)


def find_contexts(trace: CausalTrace, kinds: Mapping[fx.Node, Kind], roles: Roles) -> Contexts:
    """Return what depends on a context alone; nothing if that cannot be kept.

    It cannot if a value of it has a layout that is not understood, or an operator of it needs tokens.
    """
    inputs = [name for name, role in roles.of.items() if role == CONTEXT]
    nodes: dict[fx.Node, None] = {}
    # An operator that fails without tokens gets what is kept of its operands; so does what follows it.
    later: set[fx.Node] = set()
    picks: dict[fx.Node, Pick] = {}
    for node in trace.nodes:
        if node.op == "placeholder":
            if str(node.target) in inputs:
                nodes[node] = None
        elif kinds.get(node) is Kind.CONSTANT:
            taken = [each for each in node.all_input_nodes if each in nodes or each in later]
            if taken and node.target in _NEVER_EMPTY and any(_may_be_empty(each, trace.symbols) for each in taken):
                return Contexts(inputs=inputs)
            fails = _fails_when_empty(node, taken, trace.symbols)
            pick = _pick(node, trace.symbols) if fails else None
            if any(each in later for each in taken) or (fails and pick is None):
                later.add(node)
            elif pick is not None:
                nodes[node], picks[node] = None, pick
            elif taken:
                nodes[node] = None
    borders = [node for node in nodes if any(user in later or kinds.get(user) is Kind.TOKENS for user in node.users)]
    values = []
    for index, node in enumerate(borders):
        value = _kept_value(node, f"{PAST_CONTEXT}.{index}", trace.symbols)
        if value is None:
            return Contexts(inputs=inputs)
        values.append(value)
    return Contexts(values, inputs, frozenset(later), picks)


def _fails_when_empty(node: fx.Node, taken: Sequence[fx.Node], symbols: Symbols) -> bool:
    """Return whether an operator may fail on what was computed from a context without tokens.

    One that gives an entry for each of its tokens gives none. One that gives a fixed number, such as a selection or an
    argmax, needs tokens to choose from, unless it computes with all of them.
    """
    if node.target in _REDUCTIONS or any(_of_context(size, symbols) for shape in shapes_of(node) for size in shape):
        return False
    return any(_may_be_empty(each, symbols) for each in taken)


def _may_be_empty(node: fx.Node, symbols: Symbols) -> bool:
    """Return whether a value computed from a context has no entries if that has no tokens."""
    sizes = [size for shape in shapes_of(node) for size in shape]
    return any(size.subs(dict.fromkeys(own, 0)) == 0 for size in sizes if (own := _of_context(size, symbols)))


def _of_context(size: sympy.Expr, symbols: Symbols) -> set[sympy.Symbol]:
    """Return the symbols in a size that are not the number of rows: those of contexts."""
    return size.free_symbols - {symbols.batch}


def _kept_value(node: fx.Node, name: str, symbols: Symbols) -> KeptValue | None:
    shapes = list(shapes_of(node))
    if len(shapes) != 1 or not isinstance(node.meta["val"], Tensor):
        return None
    shape: Shape = shapes[0]
    rows = [axis for axis, size in enumerate(shape) if symbols.batch in size.free_symbols]
    if len(rows) != 1:
        return None
    heads = sympy.cancel(shape[rows[0]] / symbols.batch)
    others = [axis for axis, size in enumerate(shape) if axis != rows[0] and size.free_symbols]
    if heads.free_symbols or len(others) > 1 or any(not isinstance(shape[axis], sympy.Symbol) for axis in others):
        return None
    grows = others[0] if others else None
    symbol = None if grows is None else shape[grows]
    return KeptValue(node, name, rows[0], int(heads), grows, symbol)
