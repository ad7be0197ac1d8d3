"""Divide sequences into batches: similar lengths together, within a budget of tokens and memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from pom_export.batches.budget import Budget
from pom_export.batches.calling import PIECE
from pom_export.batches.interface import Interface, Sizes
from pom_export.batches.probing import Behaviour
from pom_export.errors import InputError
from pom_export.graph.dimensions import TOKENS

# The most bytes of a call's inputs and outputs.
_MOST_BYTES: Final = 1 << 28
# Padding costs time, and so does a call. Up to this share of the tokens of a batch, or this many, may be padding.
_PADDING_SHARE: Final = 0.15
_PADDING_TOKENS: Final = 64


@dataclass(frozen=True)
class _Kind:
    """What matters of a sequence's sizes.

    Attributes:
        fixed: the sizes that all sequences of a batch must have.
        sizes: all of them, by dimension.
        tokens: tokens in a call.
        total: all sizes together, for sequences that go in pieces.
    """

    fixed: tuple[int, ...]
    sizes: Sizes
    tokens: int
    total: int


def plan(
    kinds: Sequence[int], sizes: Sequence[Sizes], interface: Interface, behaviour: Behaviour, budget: Budget
) -> list[list[int]]:
    """Return batches of sequences, by index; every sequence is in one.

    Args:
        kinds: the kind of each sequence.
        sizes: the sizes of the dimensions of each kind.
        interface: the file's inputs and outputs.
        behaviour: whether rows may share a call, and in which dimensions they may differ.
        budget: how large a batch may be.
    """
    most = budget.batch if behaviour.rows else 1
    if isinstance(interface.batch, int):
        most = min(most, interface.batch)
    fixed = [axis for axis in interface.dimensions if axis not in behaviour.padded]
    known = [
        _Kind(tuple(each[axis] for axis in fixed), each, tokens_of(interface, each, PIECE), sum(each.values()))
        for each in sizes
    ]
    ranks = {kind: rank for rank, kind in enumerate(sorted(range(len(known)), key=lambda kind: _order(known[kind])))}
    batches: list[list[int]] = []
    current: _Batch | None = None
    for index in sorted(range(len(kinds)), key=lambda index: ranks[kinds[index]]):
        kind = known[kinds[index]]
        if current is None or not current.takes(kind, most, budget.max_tokens):
            current = _Batch(kind, interface)
            batches.append(current.members)
        current.add(index, kind)
    return batches


def _order(kind: _Kind) -> tuple[tuple[int, ...], int, int]:
    return kind.fixed, -kind.tokens, -kind.total


@dataclass(frozen=True)
class _Room:
    """What each row of a call takes: the largest sizes of its sequences, and the tokens and bytes of these."""

    sizes: Sizes
    tokens: int
    nbytes: int


class _Batch:
    """A batch that grows.

    Args:
        first: its first sequence.
        interface: the file's inputs and outputs.

    Attributes:
        members: the sequences in it, by index.
    """

    members: list[int]

    def __init__(self, first: _Kind, interface: Interface) -> None:
        self.members = []
        self._interface = interface
        self._fixed = first.fixed
        self._own_tokens = 0
        self._last = first
        self._room = self._room_of(first.sizes)

    def takes(self, kind: _Kind, most: int, max_tokens: int) -> bool:
        """Return whether another sequence fits: into the budget, and without too much padding."""
        rows = len(self.members) + 1
        if kind.fixed != self._fixed or rows > most:
            return False
        room = self._room_with(kind)
        padded, own = rows * room.tokens, self._own_tokens + kind.tokens
        fits = padded <= max_tokens and rows * room.nbytes <= _MOST_BYTES
        return fits and padded - own <= max(_PADDING_TOKENS, _PADDING_SHARE * own)

    def add(self, index: int, kind: _Kind) -> None:
        """Add a sequence that fits."""
        self._room = self._room_with(kind)
        self._last = kind
        self._own_tokens += kind.tokens
        self.members.append(index)

    def _room_with(self, kind: _Kind) -> _Room:
        if kind is self._last:
            return self._room
        largest = {axis: max(size, self._room.sizes[axis]) for axis, size in kind.sizes.items()}
        return self._room if largest == self._room.sizes else self._room_of(largest)

    def _room_of(self, sizes: Sizes) -> _Room:
        return _Room(sizes, tokens_of(self._interface, sizes, PIECE), _nbytes(self._interface, sizes))


def _nbytes(interface: Interface, sizes: Sizes) -> int:
    """Return the bytes of a row's inputs and outputs in a call."""
    sizes = _in_a_call(interface, sizes, PIECE)
    total = 0
    for spec in (*interface.inputs.values(), *interface.outputs.values()):
        with suppress(InputError):  # an output of unknown size
            total += math.prod(interface.shape(spec, sizes)) * spec.dtype.itemsize
    return total


def tokens_of(interface: Interface, sizes: Sizes, most: int | None = None) -> int:
    """Return how many tokens a sequence has: the positions of its longest input, all axes but that of the channels.

    Args:
        interface: the file's inputs and outputs.
        sizes: the sizes of the sequence's dimensions.
        most: the most tokens in a call, if it goes in pieces.
    """
    sizes = _in_a_call(interface, sizes, most)
    counts = [1]
    for name, spec in interface.inputs.items():
        if not interface.is_mask(name):
            shape = interface.shape(spec, sizes)
            counts.append(math.prod(shape if spec.dtype.kind in "iu" else shape[:-1]))
    return max(counts)


def _in_a_call(interface: Interface, sizes: Sizes, most: int | None) -> Sizes:
    if most is None or not interface.causal_state or TOKENS not in sizes:
        return sizes
    return {**sizes, TOKENS: min(sizes[TOKENS], most)}
