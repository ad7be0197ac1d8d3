"""Find out, by running a file on random inputs, which of its dimensions may be padded and whether rows are independent.

A file's metadata does not tell: a model of a user's own may take a mask and still average over all tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from pom_export.batches.calling import Caller, Outputs, Row
from pom_export.batches.interface import Array, Interface, Sizes
from pom_export.errors import InputError
from pom_export.graph.exported_model import TensorSpec
from pom_export.graph.size_expressions import size_of
from pom_export.parity.inputs import ComparisonPlan, draw_input
from pom_export.parity.tolerances import MODELS

_SMALLEST: Final = 5  # tokens of a row, so that one token more or less makes a clear difference
_LONGER: Final = 2  # padded rows have this many times the tokens, and some more
# What is sure to change the outputs changes them by this many times the tolerance.
_CLEAR: Final = 10.0
_PLAN: Final = ComparisonPlan("probe", 2, 0, 0, kept=0.7)


@dataclass(frozen=True)
class Behaviour:
    """What a batch may be made of.

    Attributes:
        rows: whether rows may share a call.
        padded: the dimensions in which rows of a call may differ.
    """

    rows: bool = True
    padded: frozenset[str] = field(default_factory=frozenset)


def probe(caller: Caller, interface: Interface) -> Behaviour:
    """Return what batches of a file may be made of; whatever was not shown to be harmless is not allowed.

    Args:
        caller: runs the file.
        interface: its inputs and outputs.
    """
    return _Probe(caller, interface).behaviour()


def small_sizes(interface: Interface) -> dict[str, int]:
    """Return a small size for each dimension, all different if the file's limits allow it."""
    sizes = {}
    for place, axis in enumerate(interface.dimensions):
        low, high = interface.limits.bounds(axis)
        sizes[axis] = max(low, min(_SMALLEST + place, high or _SMALLEST + place))
    return sizes


def draw_row(interface: Interface, sizes: Sizes, random: np.random.Generator) -> Row:
    """Return a random sequence for a file; its masks keep at least the first token.

    Args:
        interface: the file's inputs.
        sizes: sizes of its dimensions.
        random: the random generator.
    """

    def draw(spec: TensorSpec) -> Array:
        shape = list(interface.shape(spec, sizes))
        if interface.is_mask(spec.name):
            mask = random.random(shape) < _PLAN.kept
            mask[..., 0] = True
            return mask.astype(spec.dtype)
        return draw_input(spec, shape, _PLAN, interface.limits, random)

    return Row("random inputs", {name: draw(spec) for name, spec in interface.inputs.items()}, sizes)


class _Probe:
    def __init__(self, caller: Caller, interface: Interface) -> None:
        self._caller = caller
        self._interface = interface
        self._random = np.random.default_rng(0)

    def behaviour(self) -> Behaviour:
        several = self._interface.batch not in (None, 1)
        outputs = self._interface.outputs.values()
        if not several or not all(map(self._has_rows, outputs)):
            return Behaviour(rows=False)
        try:
            first, second = (self._row(self._sizes()) for _ in range(2))
            second = Row(second.called, {**second.arrays, **self._shared(first)}, second.sizes)
            alone = self._caller.call([first])[0]
            if not self._is_sensitive(first, alone) or not _same(self._caller.call([first, second])[0], alone):
                return Behaviour(rows=False)
            sizes = self._sizes()
            if any(size_of(axis, sizes) is None for spec in outputs for axis in self._interface.axes(spec)):
                return Behaviour()  # padded outputs could not be cut
            return Behaviour(True, frozenset(each for each in self._interface.dimensions if self._takes_padding(each)))
        except InputError:  # it cannot be run on random inputs, such as ids without known limits
            return Behaviour(rows=False)

    def _has_rows(self, spec: TensorSpec) -> bool:
        return self._interface.batch_axis(spec) is not None

    def _shared(self, row: Row) -> dict[str, Array]:
        inputs = self._interface.inputs
        return {name: array for name, array in row.arrays.items() if not self._has_rows(inputs[name])}

    def _sizes(self) -> dict[str, int]:
        return small_sizes(self._interface)

    def _row(self, sizes: Sizes) -> Row:
        return draw_row(self._interface, sizes, self._random)

    def _takes_padding(self, axis: str) -> bool:
        """Return whether a row gives the same with tokens of any content behind its own, which its masks leave out."""
        small = self._sizes()
        high = self._interface.limits.bounds(axis)[1]
        large = {**small, axis: min(_LONGER * small[axis] + 3, high or _LONGER * small[axis] + 3)}
        if large[axis] <= small[axis]:
            return False
        for _ in range(2):
            row, other = self._row(small), self._row(large)
            whole = {name: self._behind(name, array, other.arrays[name]) for name, array in row.arrays.items()}
            shared = {name: whole[name] for name in self._shared(row)}
            rows = [Row("random inputs", {**each, **shared}, large) for each in (whole, other.arrays)]
            padded = self._caller.call(rows)[0]
            axes = {name: self._interface.axes(spec) for name, spec in self._interface.outputs.items()}
            cut = {name: array[tuple(slice(size_of(each, small)) for each in axes[name])]
                   for name, array in padded.items()}  # fmt: skip
            if not _same(cut, self._caller.call([row])[0]):
                return False
        return True

    def _behind(self, name: str, array: Array, other: Array) -> Array:
        """Return an array of the other's shape that begins with this one."""
        whole = np.zeros_like(other) if self._interface.is_mask(name) else other.copy()
        whole[tuple(map(slice, array.shape))] = array
        return whole

    def _is_sensitive(self, row: Row, outputs: Outputs) -> bool:
        """Return whether other inputs give clearly other outputs; if not, equal outputs prove nothing."""
        other = self._caller.call([self._row(row.sizes)])[0]
        return any(
            outputs[name].dtype.kind == "f" and distance(other[name], array) > _CLEAR for name, array in outputs.items()
        )


def _same(outputs: Mapping[str, Any], expected: Mapping[str, Any]) -> bool:
    return all(distance(outputs[name], array) <= 1 for name, array in expected.items())


def distance(array: Array, expected: Array) -> float:
    """Return the largest difference, as a multiple of the type's tolerance; infinite where it cannot be measured."""
    if expected.dtype.kind != "f":
        return 0.0 if np.array_equal(array, expected) else np.inf
    if not (array.size and np.isfinite(array).all() and np.isfinite(expected).all()):
        return np.inf
    tolerance = MODELS.get(expected.dtype.name, MODELS["float32"])
    bound = tolerance.absolute + tolerance.relative * float(np.abs(expected).max())
    return float(np.abs(array.astype(np.float64) - expected).max()) / bound
