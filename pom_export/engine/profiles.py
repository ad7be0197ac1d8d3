"""Shape profiles: the smallest, most frequent and largest shapes that an engine must accept."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from pom_export.errors import InputError
from pom_export.graph.claims import TOKEN_DIMENSIONS
from pom_export.graph.exported_model import BATCH, InputLimits, TensorSpec
from pom_export.graph.size_expressions import root_of, size_of
from pom_export.runtime.streaming.interface import empty_dimensions
from pom_export.suggestions import did_you_mean
from pom_export.values import is_whole

Shapes = Mapping[str, Sequence[int]]
Range = tuple[int, int, int]
# Default (min, opt, max) of dynamic dimensions, widened to include the sizes that the user does specify; the minimum is
# 0 for those that are empty in some calls of a stream.
_BATCH_RANGE = (1, 1, 8)
_DEFAULT_RANGE = (1, 256, 4096)
# TensorRT's own messages for these are unclear: its dimensions are 32-bit, and no GPU can hold an input of 1 TiB.
_LARGEST_SIZE, _LARGEST_BYTES = 2**31 - 1, 2**40
# Words in TensorRT's messages if it can't build an engine for the given sizes.
_ABOUT_SHAPES: Final = re.compile(r"profile|shape|volume|broadcast|dimension", re.IGNORECASE)
_NO_LIMITS = InputLimits()
PARAMETERS: Final = ("min_shapes", "opt_shapes", "max_shapes")
"""The parameters of `build_engine` for shapes."""


@dataclass(frozen=True)
class ShapeProfile:
    """The smallest, most frequent and largest shape of an input."""

    minimum: tuple[int, ...]
    optimum: tuple[int, ...]
    maximum: tuple[int, ...]

    def to_dict(self) -> dict[str, list[int]]:
        """Return JSON-able values."""
        return {"min": list(self.minimum), "opt": list(self.optimum), "max": list(self.maximum)}


def parse_shapes(text: str | None, option: str) -> dict[str, tuple[int, ...]]:
    """Parse shapes in trtexec's form, `x:1x16x64,mask:1x16`.

    Raises:
        InputError: the text has another form, or a name occurs twice.
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
    limits: InputLimits = _NO_LIMITS,
) -> dict[str, ShapeProfile]:
    """Return a profile for each input.

    A dimension that several inputs share, such as batch, only needs to be given for one of them.

    Args:
        specs: the inputs.
        minimum: smallest shapes, by input.
        optimum: most frequent shapes.
        maximum: largest shapes.
        limits: the model's smallest and largest sizes of its dimensions.

    Raises:
        InputError: a shape is for an unknown input, does not fit its axes, or has a size that is below 1 (below 0 for
            what is empty in some calls of a stream) or beyond what the model takes or a GPU can hold, or min <= opt <=
            max does not hold.
    """
    shapes = zip(PARAMETERS, (minimum, optimum, maximum), strict=True)
    empty = empty_dimensions(specs)
    bound = [_bind(specs, given, option, empty) for option, given in shapes]
    ranges = {
        axis: _range(axis, spec.name, bound, limits, least=0 if axis in empty else 1)
        for spec in specs
        for axis in spec.axes
        if isinstance(axis, str)
    }
    ranges |= {axis: _computed(axis, sizes, ranges) for axis, sizes in ranges.items()}
    profiles = {
        spec.name: ShapeProfile(
            *(tuple(axis if isinstance(axis, int) else ranges[axis][i] for axis in spec.axes) for i in range(3))
        )
        for spec in specs
    }
    for spec in specs:
        _check_size(spec, profiles[spec.name].maximum)
    return profiles


def refused_shapes(reason: str, specs: Sequence[TensorSpec], profiles: Mapping[str, ShapeProfile]) -> str:
    """Return the shapes that TensorRT refused, by parameter and input; empty if its reason is not about shapes.

    Args:
        reason: TensorRT's message.
        specs: the inputs.
        profiles: the shapes that it was given.
    """
    dynamic = [spec.name for spec in specs if any(isinstance(axis, str) for axis in spec.axes)]
    if not dynamic or not _ABOUT_SHAPES.search(reason):
        return ""
    shapes = []
    for option in [option for option in PARAMETERS if f"k{option[:3].upper()}" in reason] or PARAMETERS:
        sizes = {name: tuple(profiles[name].to_dict()[option[:3]]) for name in dynamic}
        shapes.append(f"`{option}={sizes}`")
    return f"Give shapes that the model takes together, instead of {' '.join(shapes)}"


def _by_x(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _check_size(spec: TensorSpec, largest: Sequence[int]) -> None:
    if max(largest, default=0) > _LARGEST_SIZE or math.prod(largest) * spec.dtype.itemsize > _LARGEST_BYTES:
        raise InputError(
            f"largest shape {_by_x(largest)} of {spec.name} is more than a GPU can hold",
            "Give smaller `max_shapes`",
        )


def _check_form(shapes: Shapes, option: str, specs: Sequence[TensorSpec]) -> None:
    """Raise InputError if shapes are not lists of whole numbers by name."""
    by_name = isinstance(shapes, Mapping)
    if by_name and all(isinstance(shape, Sequence) and all(map(is_whole, shape)) for shape in shapes.values()):
        return
    example = {spec.name: tuple(1 if isinstance(axis, str) else axis for axis in spec.axes) for spec in specs[:1]}
    raise InputError(f"`{option}` must have whole numbers by input, got {shapes!r}", f"Example: `{option}={example}`")


def _bind(specs: Sequence[TensorSpec], shapes: Shapes, option: str, empty: Collection[str]) -> dict[str, int]:
    """Return the size of each dynamic dimension that the given shapes determine; some may be 0."""
    by_name = {spec.name: spec for spec in specs}
    sizes: dict[str, int] = {}
    _check_form(shapes, option, specs)
    for name, shape in shapes.items():
        if name not in by_name:
            raise InputError(
                f"`{option}` names {name!r}; the model's inputs are {', '.join(by_name)}",
                did_you_mean(name, by_name) or "Check the name",
            )
        axes = by_name[name].axes
        if len(shape) != len(axes):
            raise InputError(
                f"`{option}`: {name} has {len(axes)} dimensions, got {len(shape)}", f"It is {by_name[name]}"
            )
        for axis, size in zip(axes, shape, strict=True):
            if size < (0 if axis in empty else 1):
                raise InputError(f"`{option}`: {name} has a size of {size}", "Sizes are at least 1")
            expected = sizes.setdefault(axis, size) if isinstance(axis, str) else axis
            if isinstance(axis, str) and (found := root_of(axis, size)):
                sizes.setdefault(*found)
                expected = size_of(axis, {found[0]: sizes[found[0]]}) or 0
            if size != expected:
                raise InputError(
                    f"`{option}`: {name} has {size} where {expected} is expected", f"It is {by_name[name]}"
                )
    return sizes


def _range(axis: str, name: str, bound: Sequence[Mapping[str, int]], limits: InputLimits, *, least: int) -> Range:
    """Return the smallest, the most frequent and the largest size of an input's dimension."""
    defaults = _BATCH_RANGE if axis == BATCH else (least, *_DEFAULT_RANGE[1:])
    positions = limits.tokens is not None and axis in TOKEN_DIMENSIONS
    for option, sizes in zip(PARAMETERS, bound, strict=True):
        if axis in sizes and (wanted := limits.outside(axis, sizes[axis])):
            raise InputError(
                f"`{option}`: {axis} of {name} is {sizes[axis]}, but the model takes {wanted}",
                "Give other shapes, or export with `positions=True`" if positions else "Give other shapes",
            )
    least, most = limits.bounds(axis)
    low, best, high = (max(size, least) if most is None else min(max(size, least), most) for size in defaults)
    given = [sizes[axis] for sizes in bound if axis in sizes]
    low = bound[0].get(axis, min([low, *given]))
    high = bound[2].get(axis, max([high, *given]))
    best = bound[1].get(axis, min(max(best, low), high))
    if not low <= best <= high:
        raise InputError(
            f"dimension {axis} of {name}: min {low}, opt {best}, max {high} are not in order",
            "Need `min_shapes` <= `opt_shapes` <= `max_shapes`",
        )
    return low, best, high


def _computed(axis: str, sizes: Range, ranges: Mapping[str, Range]) -> Range:
    """Return the sizes of a dimension, also if it is computed from others, such as "tokens + 1"."""
    others = {name: size for name, size in ranges.items() if name != axis}
    low, best, high = (size_of(axis, {name: size[place] for name, size in others.items()}) for place in range(3))
    return sizes if low is None or best is None or high is None else (low, best, high)
