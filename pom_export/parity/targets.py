"""Expected outputs, case by case, kept only as long as they are needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, overload

from pom_export.parity.case import Arrays, Case

# How many numbers of small targets are kept for the next backend, 128 MiB in float64; larger targets are computed again
# for each.
_KEPT: Final = 2**24


class Spread(NamedTuple):
    """How far rounding moves an output, or one mixer's part of a state.

    Attributes:
        rms: the root mean square error.
        largest: the largest error.
    """

    rms: float
    largest: float


@dataclass(frozen=True)
class Target:
    """The reference's outputs for one case.

    Attributes:
        outputs: the outputs by name, in float64 except for integers.
        spreads: how far half precision moves the reference's own outputs, part by part; empty if unknown.
        unrounded: for a half-precision model: the outputs if only its weights are rounded.
    """

    outputs: Arrays
    spreads: Mapping[str, tuple[Spread, ...]] = field(default_factory=dict)
    unrounded: Target | None = None

    @property
    def size(self) -> int:
        """The number of values in it."""
        own = sum(array.size for array in self.outputs.values())
        return own + (self.unrounded.size if self.unrounded else 0)


class Targets(Sequence[Target]):
    """The targets of cases, computed on demand so that no two large ones are in memory at once.

    Args:
        cases: the inputs.
        compute: returns the target of a case.
    """

    def __init__(self, cases: Sequence[Case], compute: Callable[[Case], Target]) -> None:
        self._cases = cases
        self._compute = compute
        self._kept: dict[int, Target] = {}
        self._room = _KEPT

    def __len__(self) -> int:
        return len(self._cases)

    @overload
    def __getitem__(self, index: int) -> Target: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Target]: ...
    def __getitem__(self, index: int | slice) -> Target | Sequence[Target]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if index in self._kept:
            return self._kept[index]
        target = self._compute(self._cases[index])
        if target.size <= self._room:
            self._room -= target.size
            self._kept[index] = target
        return target
