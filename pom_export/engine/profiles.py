"""Shape profiles: the smallest, the most frequent and the largest shapes that an engine must take."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pom_export.errors import InputError
from pom_export.graph.exported import BATCH, CONTEXT_TOKENS, PAST_TOKENS, TOKENS, TensorSpec

Shapes = Mapping[str, Sequence[int]]
# (min, opt, max) of a dynamic dimension that the user says nothing about; widened to hold what the user does say. The
# first call of a stream has no past.
_DEFAULT_RANGES = {BATCH: (1, 1, 8), PAST_TOKENS: (0, 256, 4096)}
_DEFAULT_RANGE = (1, 256, 4096)
# What TensorRT checks only in words of its own: its dimensions are 32-bit, and no GPU holds an input of 1 TiB.
_LARGEST_SIZE, _LARGEST_BYTES = 2**31 - 1, 2**40


@dataclass(frozen=True)
class ShapeProfile:
    """One input's smallest, most frequent and largest shape."""

    minimum: tuple[int, ...]
    optimum: tuple[int, ...]
    maximum: tuple[int, ...]

    def to_dict(self) -> dict[str, list[int]]:
        """Return JSON-able values."""
        return {"min": list(self.minimum), "opt": list(self.optimum), "max": list(self.maximum)}


def parse_shapes(text: str | None, option: str) -> dict[str, tuple[int, ...]]:
    """Parse trtexec's form, `x:1x16x64,mask:1x16`.

    Raises:
        InputError: the text has another form, or a name is there twice.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for item in filter(None, (text or "").split(",")):
        match = re.fullmatch(r"\s*([^:\s]+):(\d{1,19}(?:x\d{1,19})*)\s*", item)
        if match is None:
            raise InputError(f"{option} {item!r} is not NAME:AxBxC", "Example: x:1x16x64")
        if match[1] in shapes:
            raise InputError(f"{option} names {match[1]!r} twice", "Give each input one shape")
        shapes[match[1]] = tuple(int(size) for size in match[2].split("x"))
    return shapes


def make_profiles(
    specs: Sequence[TensorSpec],
    minimum: Shapes,
    optimum: Shapes,
    maximum: Shapes,
    most_tokens: int | None = None,
) -> dict[str, ShapeProfile]:
    """Return a profile for each input.

    A dimension that several inputs share, such as batch, needs to be given for one of them only.

    Args:
        specs: the inputs.
        minimum: smallest shapes, by input.
        optimum: most frequent shapes.
        maximum: largest shapes.
        most_tokens: how many tokens the model has positions for; None: any number.

    Raises:
        InputError: a shape names no input, does not fit its axes, has a size below 1 (of past tokens below 0),
            more tokens than the model takes or a GPU holds, or min <= opt <= max does not hold.
    """
    names = ("minShapes", "optShapes", "maxShapes")
    bound = [_bind(specs, shapes, name) for name, shapes in zip(names, (minimum, optimum, maximum), strict=True)]
    ranges = {axis: _range(axis, bound, most_tokens) for spec in specs for axis in spec.axes if isinstance(axis, str)}
    profiles = {
        spec.name: ShapeProfile(
            *(tuple(axis if isinstance(axis, int) else ranges[axis][i] for axis in spec.axes) for i in range(3))
        )
        for spec in specs
    }
    for spec in specs:
        _check_size(spec, profiles[spec.name].maximum)
    return profiles


def _check_size(spec: TensorSpec, largest: Sequence[int]) -> None:
    if max(largest, default=0) > _LARGEST_SIZE or math.prod(largest) * spec.dtype.itemsize > _LARGEST_BYTES:
        raise InputError(
            f"largest shape {'x'.join(map(str, largest))} of {spec.name} is beyond what a GPU holds",
            "Give smaller --maxShapes",
        )


def _bind(specs: Sequence[TensorSpec], shapes: Shapes, option: str) -> dict[str, int]:
    """Return the size of each dynamic dimension that the given shapes fix."""
    by_name = {spec.name: spec for spec in specs}
    sizes: dict[str, int] = {}
    for name, shape in shapes.items():
        if name not in by_name:
            raise InputError(
                f"--{option} names {name!r}; the model's inputs are {', '.join(by_name)}", "Check the name"
            )
        axes = by_name[name].axes
        if len(shape) != len(axes):
            raise InputError(
                f"--{option}: {name} has {len(axes)} dimensions, got {len(shape)}", f"It is {by_name[name]}"
            )
        for axis, size in zip(axes, shape, strict=True):
            if size < (0 if axis == PAST_TOKENS else 1):
                raise InputError(f"--{option}: {name} has a size of {size}", "Sizes are at least 1")
            expected = sizes.setdefault(axis, size) if isinstance(axis, str) else axis
            if size != expected:
                raise InputError(
                    f"--{option}: {name} has {size} where {expected} is expected", f"It is {by_name[name]}"
                )
    return sizes


def _range(axis: str, bound: Sequence[Mapping[str, int]], most_tokens: int | None) -> tuple[int, int, int]:
    defaults = _DEFAULT_RANGES.get(axis, _DEFAULT_RANGE)
    given = [sizes[axis] for sizes in bound if axis in sizes]
    if most_tokens is not None and axis in {TOKENS, CONTEXT_TOKENS, PAST_TOKENS}:
        if max(given, default=0) > most_tokens:
            raise InputError(
                f"dimension {axis} is {max(given)}, but the model has positions for {most_tokens} tokens",
                "Give smaller shapes, or export with --positions",
            )
        defaults = (defaults[0], min(defaults[1], most_tokens), min(defaults[2], most_tokens))
    low = bound[0].get(axis, min([defaults[0], *given]))
    high = bound[2].get(axis, max([defaults[2], *given]))
    best = bound[1].get(axis, min(max(defaults[1], low), high))
    if not low <= best <= high:
        raise InputError(
            f"dimension {axis}: min {low}, opt {best}, max {high} are not in order", "Need min <= opt <= max"
        )
    return low, best, high
