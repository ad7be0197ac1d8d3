"""One call of a stateful model: the tokens of the call, the state of earlier ones, and the values computed so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import sympy
import torch
from torch import Tensor, fx

from pom_export.errors import InputError
from pom_export.graph.exported_model import PAST_KEY_VALUES
from pom_export.graph.refusals import place_of
from pom_export.graph.stateful.einsums import WithRows, rows_letter
from pom_export.graph.stateful.kinds import Kind
from pom_export.graph.stateful.positions import Positions, in_rows, is_pointwise
from pom_export.graph.stateful.recipes import SDPA, sdpa_arguments
from pom_export.graph.stateful.shapes import Shape, Symbols, TokenAxis, shapes_of, size_at, token_axis

_ATEN = torch.ops.aten
# Beside those that treat each element by itself.
_BROADCASTING = (_ATEN.matmul.default, _ATEN.baddbmm.default, _ATEN.tril.default, _ATEN.triu.default)


@dataclass(frozen=True)
class StatePart:
    """A part of the state.

    Attributes:
        name: the input's name in the file.
        shape: its shape for one row; None is the number of earlier tokens.
        dtype: its type.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: torch.dtype


class Step(Protocol):
    """How a stateful model computes a value that depends on earlier tokens."""

    def parts(self) -> Sequence[StatePart]:
        """Return the parts of the state that it needs."""

    def run(self, run: Run) -> Any:
        """Compute the value for a call's tokens, and leave the next state in `run.present`."""


@dataclass
class Run:
    """A call.

    Attributes:
        kinds: what each value depends on.
        symbols: torch's symbols for the sizes.
        positions: computes functions of the position.
        sizes: the sizes of this call by symbol.
        length: (B) int64, the number of earlier tokens.
        mask: (B, N) bool, True for valid tokens, with masked ones at the end; None: all are valid.
        past: the state by name.
        present: the next state, by the names of the past.
        values: the values computed so far.
    """

    kinds: Mapping[fx.Node, Kind]
    symbols: Symbols
    positions: Positions
    sizes: dict[sympy.Symbol, Any]
    length: Tensor
    mask: Tensor | None
    past: Mapping[str, Tensor]
    present: dict[str, Tensor] = field(default_factory=dict)
    values: dict[fx.Node, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # A masked token may be beyond the last position.
        counted = self.length[:, None] + torch.arange(self.tokens, device=self.length.device)
        self.token_positions = counted if self.mask is None else counted.masked_fill(~self.mask, 0)
        self._of_positions: dict[fx.Node, Tensor] = {}
        # Keys and values of all tokens so far, by the name of their part of the state.
        self.joined: dict[str, Tensor] = {}

    @property
    def rows(self) -> Any:
        """The number of rows."""
        return self.sizes[self.symbols.batch]

    @property
    def tokens(self) -> Any:
        """The number of tokens in the call."""
        return self.sizes[self.symbols.tokens]

    @property
    def keys(self) -> Any:
        """The number of tokens so far, including the call's, that attention keeps."""
        kept = next(past for name, past in self.past.items() if name.startswith(f"{PAST_KEY_VALUES}."))
        return kept.shape[2] + self.tokens

    def constant(self, node: fx.Node) -> Any:
        """Return the value of a node that does not depend on tokens."""
        return self.values[node]

    def operand(self, node: fx.Node, consumer: fx.Node) -> Any:
        """Return an argument of an operator that treats each token by itself."""
        kind = self.kinds[node]
        if kind is Kind.SIZE:
            return size_at(node.meta["val"], self.sizes)
        if kind is not Kind.POSITION:
            return self.values[node]
        axis = token_axis(next(shapes_of(node)), self.symbols.tokens)
        return self.placed(self.of_positions(node), node, axis, consumer)

    def placed(self, value: Tensor, node: fx.Node, axis: TokenAxis | None, consumer: fx.Node) -> Any:
        """Split a function of the position into rows, as an operator takes it.

        Args:
            value: the function at every token of every row, as if they were one row.
            node: its node.
            axis: its axis of the tokens that are the call's; None: it has none.
            consumer: the operator.
        """
        return placed(value, node, axis, consumer, self.symbols, self.rows, self.tokens)

    def of_positions(self, node: fx.Node) -> Tensor:
        """Return a function of the position at every token of every row, as if they were one row."""
        if node not in self._of_positions:
            every = self.token_positions.reshape(-1)
            self._of_positions[node] = self.positions.evaluate(node, every, self.constant, self.sizes)
        return self._of_positions[node]


def placed(
    value: Tensor, node: fx.Node, axis: TokenAxis | None, consumer: fx.Node, symbols: Symbols, rows: Any, tokens: Any
) -> Any:
    """Split a function of the position into rows, as an operator takes it: see `Run.placed` and `in_rows`.

    Raises:
        InputError: the operator has no place for them.
    """
    split = in_rows(value, next(shapes_of(node)), axis, broadcast_shape(consumer), symbols, rows, tokens)
    if split is not None:
        return split
    if axis is None or axis.is_merged or rows_letter(consumer, node, symbols.batch) is None:
        raise no_place(node, consumer)
    return WithRows(value.unflatten(axis.index, (rows, tokens)).movedim(axis.index, 0))


def broadcast_shape(consumer: fx.Node) -> Shape | None:
    """Return the shape that an operator broadcasts a mask or other operands to; None if it does not broadcast them."""
    if consumer.target is SDPA:
        args = sdpa_arguments(consumer)
        query, key = (next(shapes_of(args[name])) for name in ("query", "key"))
        return (*query[:-1], key[-2])
    broadcasts = is_pointwise(consumer) or consumer.target in _BROADCASTING
    return next(shapes_of(consumer)) if broadcasts else None


def no_place(node: fx.Node, consumer: fx.Node) -> InputError:
    """Return the error for a function of the position that an operator takes without an axis of rows."""
    operator = str(consumer.target).removesuffix(".default")
    return InputError(
        f"with `stateful`, positions differ from row to row, and {operator} takes "
        f"{str(node.target).removesuffix('.default')} of them without an axis of rows{place_of(consumer)}",
        "Expand it to (batch, tokens, ...), or add or multiply it",
    )
