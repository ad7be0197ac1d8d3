"""What a model computes from a context alone, such as an encoder's output: computed in the first call, and kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import Tensor, fx

from pom_export.graph.exported_model import PAST_CONTEXT
from pom_export.graph.stateful.kinds import Kind
from pom_export.graph.stateful.roles import CONTEXT, Roles
from pom_export.graph.stateful.run import StatePart
from pom_export.graph.stateful.shapes import Shape, Symbols, shapes_of
from pom_export.graph.stateful.trace import CausalTrace


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
class Contexts:
    """The part of a model that depends on a context alone.

    Attributes:
        nodes: its nodes.
        values: those of its values that are used where tokens are.
        inputs: the inputs that hold a context.
    """

    nodes: frozenset[fx.Node] = frozenset()
    values: Sequence[KeptValue] = ()
    inputs: Sequence[str] = ()


def find_contexts(trace: CausalTrace, kinds: Mapping[fx.Node, Kind], roles: Roles) -> Contexts:
    """Return what depends on a context alone; nothing if a value of it has a layout that is not understood."""
    inputs = [name for name, role in roles.of.items() if role == CONTEXT]
    nodes: dict[fx.Node, None] = {}
    for node in trace.nodes:
        if node.op == "placeholder":
            is_context = str(node.target) in inputs
        else:
            is_context = kinds.get(node) is Kind.CONSTANT and any(each in nodes for each in node.all_input_nodes)
        if is_context:
            nodes[node] = None
    borders = [node for node in nodes if any(kinds.get(user) is Kind.TOKENS for user in node.users)]
    values = []
    for index, node in enumerate(borders):
        value = _kept_value(node, f"{PAST_CONTEXT}.{index}", trace.symbols)
        if value is None:
            return Contexts(inputs=inputs)
        values.append(value)
    return Contexts(frozenset(nodes), values, inputs)


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
