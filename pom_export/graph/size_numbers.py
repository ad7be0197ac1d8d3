"""Find numbers that a model computes from sizes, such as `int(n ** 0.5)`: a trace fixes them at the example's."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from traceback import FrameSummary
from typing import Any

import sympy
import torch
from torch.export import ExportedProgram

from pom_export.graph.claims import Bounds
from pom_export.graph.refusals import line_of
from pom_export.graph.size_bounds import user_inputs

_AXIS_OF_INPUT = re.compile(r"\['(\w+)'\]\.size\(\)\[(\d+)\]$")
# Parts of the names of floating-point operations in torch's expressions.
_FLOATING = ("Float", "TrueDiv", "OpaqueUnaryFn")
# Sizes up to the first number above the example's are tried one by one. Beyond, up to the second number, a condition is
# assumed to change at most once.
_ONE_BY_ONE, _LARGEST = 256, 2**24


@dataclass(frozen=True)
class SizeNumber:
    """A Python number computed from the size of a dimension.

    Attributes:
        where: (name, axis) of the input.
        dimension: name of the dimension in the file; "" if it is fixed.
        bounds: the smallest and the largest size that give the same number.
        line: the line of the user's code, for the end of a message.
    """

    where: tuple[str, int]
    dimension: str
    bounds: Bounds
    line: str

    def note(self) -> str:
        """Return a note for the user."""
        name, axis = self.where
        return (
            f"the model turns dimension {axis} of {name} into a Python number, which the file holds as it was for the "
            f"example{self.line}. Integer arithmetic (//, %) and tensors made from a size stay dynamic"
        )


def size_numbers(program: ExportedProgram, axes: Mapping[str, Sequence[int | str]]) -> list[SizeNumber]:
    """Return the numbers that torch fixed to the example's values while tracing a program.

    Args:
        program: the program as torch traced it.
        axes: for each input, in order: sizes, and the file's names of dynamic dimensions.
    """
    inputs = user_inputs(program)
    mode = next((mode for fake in inputs if (mode := getattr(fake, "fake_mode", None)) is not None), None)
    env = getattr(mode, "shape_env", None)
    if env is None:
        return []
    symbols: dict[sympy.Symbol, tuple[tuple[str, int], str, int]] = {}
    for fake, (name, named) in zip(inputs, axes.items(), strict=True):
        shape: Sequence[Any] = fake.shape  # of ints and SymInts
        for axis, (size, dimension) in enumerate(zip(shape, named, strict=True)):
            if isinstance(size, torch.SymInt) and isinstance(dimension, str) and size.node.expr.is_Symbol:
                symbols.setdefault(size.node.expr, ((name, axis), dimension, size.node.hint))
    found: dict[tuple[str, int], SizeNumber] = {}
    for guard in env.guards:
        for symbol in guard.expr.free_symbols if _is_number(guard.expr) else ():
            line = _line(guard.sloc)
            where, dimension, example = symbols.get(symbol) or (_where(env, symbol), "", 0)
            if where is not None and (dimension or (line and where[0] in axes)):
                bounds = _bounds(guard.expr, symbol, example) if dimension else (0, None)
                known = found.get(where)
                found[where] = SizeNumber(where, dimension, _both(bounds, known), line or (known.line if known else ""))
    return list(found.values())


def _is_number(condition: sympy.Basic) -> bool:
    """Return whether a condition fixes what was computed from a size to a single number.

    For a size that became fixed, that is the size itself, otherwise a result of floating-point arithmetic. Results of
    integer arithmetic stay dynamic, so conditions on them are branches.
    """
    if not isinstance(condition, sympy.Eq) or not (condition.rhs.is_number or condition.lhs.is_number):
        return False
    computed = condition.lhs if condition.rhs.is_number else condition.rhs
    kinds = {type(part).__name__ for part in sympy.preorder_traversal(computed)}
    return computed.is_Symbol or any(word in kind for kind in kinds for word in _FLOATING)


def _line(place: Any) -> str:
    for frame in (place.maybe_user_loc, place.framework_loc):
        if isinstance(frame, FrameSummary) and frame.lineno and (line := line_of(frame.filename, frame.lineno)):
            return line
    return ""


def _where(env: Any, symbol: sympy.Symbol) -> tuple[str, int] | None:
    """Return the input and axis whose size was a symbol before it became a number."""
    for source in env.var_to_sources.get(symbol, ()):
        name = source.name if isinstance(source.name, str) else source.name()
        if match := _AXIS_OF_INPUT.search(name):
            return match[1], int(match[2])
    return None


def _both(bounds: Bounds, known: SizeNumber | None) -> Bounds:
    if known is None:
        return bounds
    highs = [high for _, high in (bounds, known.bounds) if high is not None]
    return max(bounds[0], known.bounds[0]), min(highs, default=None)


def _bounds(condition: sympy.Basic, symbol: sympy.Symbol, example: int) -> Bounds:
    """Return the sizes around the example's for which a condition holds; only the example's if there are few."""
    if len(condition.free_symbols) > 1:
        return example, example

    def holds(size: int) -> bool:
        return bool(condition.subs(symbol, size) == sympy.true)

    low = next((size for size in range(example, 1, -1) if not holds(size - 1)), 0)
    high = next((size for size in range(example, example + _ONE_BY_ONE) if not holds(size + 1)), None)
    fits, beyond = example + _ONE_BY_ONE, 2 * (example + _ONE_BY_ONE)
    while high is None and fits < _LARGEST:
        if holds(beyond):
            fits, beyond = beyond, 2 * beyond
        elif beyond - fits > 1:
            middle = (fits + beyond) // 2
            fits, beyond = (middle, beyond) if holds(middle) else (fits, middle)
        else:
            high = fits
    # Allowing only a few more sizes is of no use, and any others would give wrong results.
    return (low, high) if high is None or high >= 2 * example else (example, example)
