"""Run traced operators on numbers, at any number of rows and tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import sympy
import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_map

from pom_export.graph.stateful.kinds import Kind
from pom_export.graph.stateful.roles import POSITIONS, VALID, Roles
from pom_export.graph.stateful.shapes import size_at
from pom_export.graph.stateful.trace import CausalTrace

# The share of True among truth values, of which too many would hide what one alone changes.
_SPARSE = 0.15
Argument = Callable[[fx.Node], Any]


def arguments(node: fx.Node, value_of: Argument) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return a node's arguments, with the value of each node among them."""
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), value_of)
    return tuple(args), dict(kwargs)


def call(node: fx.Node, value_of: Argument) -> Any:
    """Run a node's operator on other values of its arguments."""
    args, kwargs = arguments(node, value_of)
    return operator_of(node)(*args, **kwargs)


def operator_of(node: fx.Node) -> Callable[..., Any]:
    """Return a node's operator; for a view a reshape, since a value may lie in memory in another order than traced."""
    target: Any = node.target
    return torch.ops.aten.reshape.default if target is torch.ops.aten.view.default else target


def placeholder_at(role: str, like: Tensor, rows: Any, tokens: Any, fill: Any = None, *, flat: bool = False) -> Tensor:
    """Return an input that does not depend on the tokens' values, at any size.

    Args:
        role: POSITIONS or VALID.
        like: an example of it.
        rows: number of rows.
        tokens: number of tokens.
        fill: for a mask, the value of every token.
        flat: whether it has no axis of rows.
    """
    if role == VALID:
        return torch.full((rows, tokens), fill, dtype=like.dtype)
    positions = torch.arange(tokens, dtype=like.dtype)
    if flat:
        return positions
    return positions.expand(rows if like.shape[0] > 1 else 1, tokens)


class Values:
    """The values of traced nodes on the example's values, computed on demand.

    Args:
        trace: the traced model.
        kinds: what each value depends on.
        roles: what each input is.
        tokens: the number of tokens; None: the example's.
    """

    def __init__(
        self, trace: CausalTrace, kinds: Mapping[fx.Node, Kind], roles: Roles, tokens: int | None = None
    ) -> None:
        self._trace = trace
        self._roles = roles
        main = trace.inputs[roles.main]
        self.rows = main.shape[0]
        self.tokens = main.shape[1] if tokens is None else tokens
        self.sizes: dict[sympy.Symbol, int] = {trace.symbols.batch: self.rows, trace.symbols.tokens: self.tokens}
        self._known: dict[fx.Node, Any] = {}
        self._kinds = kinds
        self.order = {node: place for place, node in enumerate(trace.nodes)}
        for node in trace.nodes:
            if node.op == "placeholder":
                self._note_sizes(node)

    def at(self, tokens: int) -> Values:
        """Return the values for another number of tokens."""
        return Values(self._trace, self._kinds, self._roles, tokens)

    def _note_sizes(self, node: fx.Node) -> None:
        """Note the values of the symbols of other inputs, such as a context's tokens."""
        example = self._trace.inputs[str(node.target)]
        for size, symbolic in zip(example.shape, node.meta["val"].shape, strict=True):
            if isinstance(symbolic, torch.SymInt) and isinstance(symbolic.node.expr, sympy.Symbol):
                self.sizes.setdefault(symbolic.node.expr, size)

    def __getitem__(self, node: fx.Node) -> Any:
        if node not in self._known:
            # In order instead of recursively: a model may have thousands of operators.
            wanted = self._missing(node)
            for each in wanted:
                self._known[each] = self._compute(each)
        return self._known[node]

    def _missing(self, node: fx.Node) -> list[fx.Node]:
        found: dict[fx.Node, None] = {}
        stack = [node]
        while stack:
            each = stack[-1]
            open_inputs = [
                one
                for one in each.all_input_nodes
                if one not in self._known and one not in found and one in self._kinds
            ]
            if open_inputs and self._kinds[each] is not Kind.SIZE:
                stack.extend(open_inputs)
            else:
                found.setdefault(each)
                stack.pop()
        return list(found)

    def _compute(self, node: fx.Node) -> Any:
        if self._kinds[node] is Kind.SIZE:
            return size_at(node.meta["val"], self.sizes)
        if node.op == "get_attr":
            return self._trace.weight(str(node.target))
        if node.op == "placeholder":
            return self._placeholder(node)
        with torch.no_grad():
            return call(node, lambda each: self._known[each])

    def _placeholder(self, node: fx.Node) -> Tensor:
        name = str(node.target)
        example = self._trace.inputs[name]
        role = self._roles[name]
        if role in {POSITIONS, VALID}:
            flat = self._roles.is_flat(name)
            return placeholder_at(role, example, self.rows, self.tokens, self._roles.fills.get(name), flat=flat)
        if self._kinds[node] is Kind.TOKENS and self.tokens != example.shape[1]:
            return example.index_select(1, torch.arange(self.tokens) % example.shape[1])
        return example


def random_like(value: Any, generator: torch.Generator, *, few: bool = False) -> Any:
    """Return random numbers and truth values in place of those of tensors.

    Args:
        value: a tensor, or several.
        generator: the random generator.
        few: draw small integers, and truth values that are mostly False; else, integers, which may be indices, stay.
    """

    def draw(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        if leaf.is_floating_point():
            return torch.randn(leaf.shape, generator=generator, dtype=torch.float64).to(leaf.dtype)
        if leaf.dtype == torch.bool:
            return torch.rand(leaf.shape, generator=generator) < (_SPARSE if few else 0.5)
        return torch.randint(0, 3, leaf.shape, generator=generator).to(leaf.dtype) if few else leaf

    return tree_map(draw, value)
