"""Inputs for files that anybody has made: whatever their names, and with what their inputs seem to be for."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import onnx

from pom_export.errors import SEE_CAUSE, InputError
from pom_export.graph.interface import TensorSpec
from pom_export.graph.unfolding import all_nodes
from pom_export.parity.case import Array, Case

# Rows and tokens, tried in this order until two work.
_SIZES: Final = ((2, 5), (3, 7), (1, 16), (2, 32), (1, 64), (2, 128), (1, 224))
# For each kind of case: rows, tokens, and what the numbers are.
_PLANS: Final = (
    ("typical", 2, 24, "normal"),
    ("one token", 1, 1, "normal"),
    ("odd sizes", 3, 67, "normal"),
    ("beyond both clamps", 2, 33, "large"),
    ("tiny values", 2, 9, "tiny"),
    ("negative", 2, 11, "negative"),
    ("all alike", 2, 10, "constant"),
    ("zeros", 1, 6, "zero"),
    ("long", 1, 515, "normal"),
)
_MASKED: Final = (
    ("nothing masked", 2, 16, "ones"),
    ("a fully masked row", 3, 13, "empty"),
    ("fractional weights", 2, 14, "fractions"),
)
# Operators that pass ids on to the table that they are looked up in.
_PASSING: Final = ("Cast", "Clip", "Expand", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
_FEW_IDS: Final = 2
_ENOUGH: Final = 2
# How many of the tokens a mask keeps.
_KEPT: Final = 0.7


@dataclass(frozen=True)
class PlainInputs:
    """How to draw the inputs of a file.

    Attributes:
        specs: the inputs.
        rows: for integer inputs, how many values they may have.
        masks: the inputs that say which tokens count.
        padding: those of them whose ones say which do not.
        same: dimensions that must have the same size as another one, by name.
    """

    specs: Sequence[TensorSpec]
    rows: Mapping[str, int]
    masks: Collection[str]
    same: Mapping[str, str] = field(default_factory=dict)
    padding: Collection[str] = ()

    def sizes(self, rows: int, tokens: int) -> dict[str, int]:
        """Return a size for each dynamic dimension: one for the first of each input, others for the rest."""
        first = _first_axes(self.specs)
        found: dict[str, int] = {}
        others = itertools.count()
        for axis in _dynamic_axes(self.specs):
            if axis not in self.same:
                found[axis] = rows if axis in first else tokens + 2 * next(others)
        return {**found, **{axis: found[other] for axis, other in self.same.items()}}

    def draw(self, rows: int, tokens: int, kind: str, generator: np.random.Generator) -> dict[str, Array]:
        """Draw inputs of a kind."""
        sizes = self.sizes(rows, tokens)
        feed = {}
        for spec in self.specs:
            shape = [axis if isinstance(axis, int) else sizes[axis] for axis in spec.axes]
            feed[spec.name] = np.asarray(self._values(spec, shape, kind, generator))  # also where it is one number
        return feed

    def cases(self, seed: int = 0) -> Iterator[Case]:
        """Yield random and edge cases."""
        generator = np.random.default_rng(seed)
        switches = [spec.name for spec in self.specs if spec.dtype == np.bool_ and not spec.axes]
        for index, (name, rows, tokens, kind) in enumerate((*_PLANS, *(_MASKED if self.masks else ()))):
            feed = self.draw(rows, tokens, kind, generator)
            # What chooses a branch is on and off by turns, so that both are compared.
            feed |= {switch: np.array(index >> place & 1 == 0) for place, switch in enumerate(switches)}
            yield Case(name, feed, partial=bool(self.masks))

    def _values(self, spec: TensorSpec, shape: list[int], kind: str, generator: np.random.Generator) -> Array:
        if spec.name in self.masks or spec.dtype == np.bool_:
            mask = _mask(spec, shape, kind, generator)
            padding = ~mask if spec.dtype == np.bool_ else 1 - mask
            return padding if spec.name in self.padding else mask
        if spec.dtype.kind in "iu":
            return generator.integers(0, self.rows.get(spec.name, _FEW_IDS), shape).astype(spec.dtype)
        values = generator.standard_normal(shape)
        if kind == "large":
            values *= 40
        elif kind == "tiny":
            values *= 1e-3
        elif kind == "negative":
            values = -np.abs(values) * 3
        elif kind == "constant":
            values = np.full(shape, 0.7)
        elif kind == "zero":
            values = np.zeros(shape)
        return values.astype(spec.dtype)


def _mask(spec: TensorSpec, shape: list[int], kind: str, generator: np.random.Generator) -> Array:
    mask = np.asarray(generator.random(shape) < _KEPT)
    if shape:
        mask[..., :1] = True
    if kind == "ones":
        mask[...] = True
    elif kind == "empty" and shape:
        mask[:1] = False
    if kind == "fractions" and spec.dtype.kind not in "biu":
        return (mask * generator.choice(np.array([0.25, 0.5, 1.5]), shape)).astype(spec.dtype)
    return mask.astype(spec.dtype)


def plain_inputs(
    specs: Sequence[TensorSpec], graph: onnx.GraphProto, run: Callable[[Mapping[str, Array]], Any]
) -> tuple[PlainInputs, list[tuple[int, int]]]:
    """Return how to draw the inputs of a file, and two sizes, in rows and tokens, that it takes.

    Args:
        specs: the inputs.
        graph: the file's graph.
        run: runs it, and raises an exception for sizes that it does not take.

    Raises:
        InputError: it takes none of the sizes that were tried.
    """
    rows = _table_rows(specs, graph)
    first = _first_axes(specs)
    free = [axis for axis in _dynamic_axes(specs) if axis not in first]
    all_rows = dict.fromkeys(first[1:], first[0]) if first else {}
    separate = PlainInputs(specs, rows, (), all_rows)
    taken, error = _taken(separate, run)
    if taken:
        return separate, taken
    # Dimensions without names may have to be of one size; those that need not be are told apart again.
    together = {**all_rows, **(dict.fromkeys(free[1:], free[0]) if free else {})}
    taken, _ = _taken(PlainInputs(specs, rows, (), together), run)
    if not taken:
        raise InputError("the file takes none of the inputs that were tried", SEE_CAUSE) from error
    for axis in free[1:]:
        less = {name: other for name, other in together.items() if name != axis}
        if _taken(PlainInputs(specs, rows, (), less), run)[0]:
            together = less
    inputs = PlainInputs(specs, rows, (), together)
    return inputs, _taken(inputs, run)[0]


def _taken(
    inputs: PlainInputs, run: Callable[[Mapping[str, Array]], Any]
) -> tuple[list[tuple[int, int]], Exception | None]:
    """Return two of the sizes that a file takes, as far as there are, and the first exception that it raised."""
    taken: list[tuple[int, int]] = []
    first: Exception | None = None
    for rows, tokens in _SIZES:
        try:
            run(inputs.draw(rows, tokens, "normal", np.random.default_rng(0)))
            taken.append((rows, tokens))
        except Exception as error:  # noqa: BLE001 (whatever ONNX Runtime raises for sizes that do not fit)
            first = first or error
        if len(taken) == _ENOUGH:
            break
    return taken, first


def _first_axes(specs: Sequence[TensorSpec]) -> list[str]:
    """Return the dimensions of rows: those that come first wherever they occur, but for lists of positions."""
    later = {axis for spec in specs for axis in spec.axes[1:]}
    first = [spec.axes[0] for spec in specs if len(spec.axes) > 1]
    return list(dict.fromkeys(axis for axis in first if isinstance(axis, str) and axis not in later))


def _dynamic_axes(specs: Sequence[TensorSpec]) -> list[str]:
    return list(dict.fromkeys(axis for spec in specs for axis in spec.axes if isinstance(axis, str)))


def _table_rows(specs: Sequence[TensorSpec], graph: onnx.GraphProto) -> dict[str, int]:
    """Return how many rows the tables have that integer inputs are looked up in."""
    weights = {weight.name: weight.dims[0] for weight in graph.initializer if weight.dims}
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in all_nodes(graph):
        for name in node.input:
            users.setdefault(name, []).append(node)
    found = {}
    for spec in specs:
        waiting, seen, rows = [spec.name], set(), []
        while waiting and spec.dtype.kind in "iu":
            name = waiting.pop()
            if name in seen:
                continue
            seen.add(name)
            for node in users.get(name, []):
                if node.op_type == "Gather" and node.input[1] == name and node.input[0] in weights:
                    rows.append(weights[node.input[0]])
                elif node.op_type in _PASSING:
                    waiting.extend(node.output)
        if rows:
            found[spec.name] = min(rows)
    return found
