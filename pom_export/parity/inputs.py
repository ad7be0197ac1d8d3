"""Inputs to compare on: random ones, and edge cases in which implementations tend to differ."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from pom_export.arrays import read_npz
from pom_export.errors import InputError, printable
from pom_export.files import readable_file
from pom_export.graph.exported_model import BATCH, CONTEXT_TOKENS, PAST_TOKENS, TOKENS, InputLimits, TensorSpec, is_past
from pom_export.parity.case import Array, Case
from pom_export.parity.past import draw_past, past_lengths, rows_differ

Inputs = str | os.PathLike[str] | Mapping[str, Array]
"""The path of a .npz, or arrays by name."""

LONGEST: Final = 1030
"""Tokens in the longest of the cases that every export is compared on."""

# The most values in one input of a case: 512 MiB of float32.
_MOST_VALUES: Final = 2**27


@dataclass(frozen=True)
class ComparisonPlan:
    """How to draw a case's inputs: dynamic sizes, the tokens' scale, the share of valid ones, and the past's length."""

    name: str
    batch: int
    tokens: int
    context_tokens: int
    scale: float = 1.0
    kept: float = 0.7
    masked_rows: bool = False
    past: int = 11


_PLANS = (
    ComparisonPlan("typical", 2, 24, 17),
    ComparisonPlan("one token", 1, 1, 1, kept=1.0, past=530),
    ComparisonPlan("odd sizes", 3, 67, 13, past=0),
    # The projections of such large tokens are almost all beyond the clamps, -10 and 6.
    ComparisonPlan("beyond both clamps", 2, 33, 31, scale=40.0),
    ComparisonPlan("tiny values", 2, 9, 5, scale=1e-3),
    ComparisonPlan("long", 1, LONGEST, 515),
)
# For models whose inputs have no token dimension, such as image models.
_ROW_PLANS = (
    ComparisonPlan("typical", 3, 1, 1),
    ComparisonPlan("one row", 1, 1, 1),
    ComparisonPlan("beyond both clamps", 2, 1, 1, scale=40.0),
    ComparisonPlan("tiny values", 2, 1, 1, scale=1e-3),
)
_MASK_PLANS = (
    ComparisonPlan("a fully masked row", 3, 16, 11, masked_rows=True),
    ComparisonPlan("nothing masked", 2, 16, 11, kept=1.0),
)


def make_cases(specs: Sequence[TensorSpec], limits: InputLimits, seed: int, longest: int = LONGEST) -> Iterator[Case]:
    """Yield random and edge cases for a model's inputs, reproducible from the seed.

    Args:
        specs: the inputs.
        limits: limits on their values and sizes.
        seed: seed of the random generator.
        longest: the most tokens in a case.
    """
    masked = any(spec.dtype == np.bool_ for spec in specs)
    random_state = np.random.default_rng(seed)
    scaled = any(spec.dtype.kind not in "biu" and not is_past(spec.name) for spec in specs)
    for plan in (_PLANS if _has_tokens(specs) else _ROW_PLANS) + (_MASK_PLANS if masked else ()):
        if plan.scale != 1.0 and not scaled:
            continue  # token ids have no scale
        tokens, context_tokens = min(plan.tokens, longest), min(plan.context_tokens, longest)
        bounded = replace(plan, tokens=tokens, context_tokens=context_tokens)
        yield Case(plan.name, draw(specs, bounded, limits, random_state))


def _has_tokens(specs: Sequence[TensorSpec]) -> bool:
    """Return whether an input has a dimension of tokens, fixed or not: (batch, tokens, ...)."""
    return any(len(spec.axes) in {2, 3} for spec in specs)


def draw(
    specs: Sequence[TensorSpec], plan: ComparisonPlan, limits: InputLimits, seed: np.random.Generator
) -> dict[str, Array]:
    """Draw the inputs of a case.

    Raises:
        InputError: the file fixes sizes that are too large to compare.
    """
    sizes = _sizes(specs, plan, limits.tokens)
    ragged = any(spec.dtype == np.bool_ for spec in specs)
    lengths = past_lengths(sizes[BATCH], sizes[PAST_TOKENS], rows_differ(specs))
    feed = {}
    for spec in specs:
        shape = [axis if isinstance(axis, int) else sizes[axis] for axis in spec.axes]
        if math.prod(shape) > _MOST_VALUES:
            raise InputError(
                f"input {spec.name} of {'x'.join(map(str, shape))} is too large to compare",
                "Export it with dynamic sizes, or with smaller ones",
            )
        if is_past(spec.name):
            feed[spec.name] = draw_past(spec, shape, lengths, seed)
        else:
            feed[spec.name] = draw_input(spec, shape, plan, limits, seed)
    if not _has_tokens(specs):
        for name in limits.values.keys() & feed.keys():
            # The last label of an image model stands for "no class"; every step of guided sampling uses it.
            if feed[name].size > 1:
                feed[name].flat[-1] = limits.values[name][-1] - 1
    if ragged and any(is_past(spec.name) for spec in specs):
        # Masked tokens are at the end of each row.
        feed |= {spec.name: np.sort(feed[spec.name])[:, ::-1].copy() for spec in specs if spec.dtype == np.bool_}
    return feed


def _sizes(specs: Sequence[TensorSpec], plan: ComparisonPlan, most_tokens: int | None) -> dict[str, int]:
    """Return a size for each dimension that may be dynamic."""
    most = math.inf if most_tokens is None else most_tokens
    tokens = int(min(plan.tokens, most))
    sizes = {BATCH: plan.batch, TOKENS: tokens, CONTEXT_TOKENS: int(min(plan.context_tokens, most))}
    # Fixed sizes, as far as the past depends on them. The first input is that of the tokens.
    first = next((spec.axes for spec in specs if not is_past(spec.name)), ())
    if len(first) > 1:
        sizes[BATCH] = first[0] if isinstance(first[0], int) else sizes[BATCH]
        tokens = first[1] if isinstance(first[1], int) else tokens
    return {**sizes, PAST_TOKENS: int(min(plan.past, most - tokens))}


def draw_input(
    spec: TensorSpec, shape: list[int], plan: ComparisonPlan, limits: InputLimits, random_state: np.random.Generator
) -> Array:
    """Return random values of an input that is none of the past.

    Args:
        spec: the input.
        shape: its shape at the plan's sizes.
        plan: scale of numbers, and which tokens a mask keeps.
        limits: what the inputs may hold.
        random_state: the random generator.
    """
    if spec.dtype == np.bool_:
        mask = random_state.random(shape) < plan.kept
        if plan.masked_rows:
            mask[0] = False
        return mask
    if np.issubdtype(spec.dtype, np.integer):
        return random_state.integers(0, limits.values.get(spec.name, [2]), shape).astype(spec.dtype)
    if spec.name in limits.ranges:
        return _in_range(random_state.random(shape), limits.ranges[spec.name]).astype(spec.dtype)
    scale = plan.scale
    if limits.scale is not None and spec.dtype == np.float16:
        scale = min(scale, limits.scale)
    values = random_state.standard_normal(shape)
    values *= scale  # in place: a benchmark's inputs are large
    return values.astype(spec.dtype)


def _in_range(shares: Array, ends: Sequence[float]) -> Array:
    """Map shares from 0 to 1 to the range between two ends; of more than two ends, the outer ones count."""
    if shares.size > 1:
        shares.flat[0], shares.flat[-1] = 0, 1
    low, high = ends
    return low + shares * (high - low)


def fits(array: Array, spec: TensorSpec) -> bool:
    """Return whether an array has an input's type and shape."""
    return (
        array.dtype == spec.dtype
        and array.ndim == len(spec.axes)
        and all(isinstance(axis, str) or axis == size for axis, size in zip(spec.axes, array.shape, strict=True))
    )


def read_arrays(inputs: Inputs) -> tuple[str, Mapping[str, Array]]:
    """Return a name for a user's arrays, and the arrays by name.

    Raises:
        InputError: the file is not a .npz.
    """
    if isinstance(inputs, Mapping):
        return "given", {name: np.asarray(array) for name, array in inputs.items()}
    path = os.fspath(readable_file(inputs, "file of inputs"))
    try:
        return path, read_npz(path, "archive")
    except InputError as error:
        raise InputError(f"inputs {path} are not an .npz archive: {error.what}", error.hint) from error


def case_of(
    inputs: Inputs, specs: Sequence[TensorSpec], limits: InputLimits, names: Mapping[str, str] | None = None
) -> Case:
    """Make a case from a user's arrays.

    Args:
        inputs: the arrays.
        specs: the model's inputs.
        limits: limits on their values and sizes.
        names: other names of the inputs, by their own.

    Raises:
        InputError: the file is not a .npz, an input is missing or empty, or a dtype, shape or value does not fit.
    """
    name, arrays = read_arrays(inputs)
    feed: dict[str, Array] = {}
    arrays = {**arrays, **{ours: arrays[other] for ours, other in (names or {}).items() if other in arrays}}
    for spec in specs:
        if spec.name not in arrays:
            raise InputError(
                f"inputs {name} lack {spec.name!r}; they hold {printable(str(sorted(arrays)))}",
                "Name the arrays after the model's inputs",
            )
        feed[spec.name] = array = typed(arrays[spec.name], spec)
        if not fits(array, spec):
            axes = ", ".join(map(str, spec.axes))
            raise InputError(
                f"inputs {name}: {spec.name} is {array.dtype}{list(array.shape)}, "
                f"but the model takes {spec.dtype}[{axes}]",
                "Convert or reshape it",
            )
        _check_values(f"inputs {name}: {spec.name}", array, limits.values.get(spec.name))
        _check_range(f"inputs {name}: {spec.name}", array, limits.ranges.get(spec.name))
    check_sizes(f"inputs {name}", feed, specs, limits)
    return Case(name, feed)


def typed(array: Array, spec: TensorSpec) -> Array:
    """Restore an input's bfloat16 type, which a .npz does not store."""
    return array.view(spec.dtype) if array.dtype == np.dtype(f"V{spec.dtype.itemsize}") else array


def check_sizes(called: str, arrays: Mapping[str, Array], specs: Sequence[TensorSpec], limits: InputLimits) -> None:
    """Raise InputError if two inputs disagree on a dimension, or the model does not take a size.

    Args:
        called: the inputs' name in the message.
        arrays: the inputs by name.
        specs: the model's inputs.
        limits: limits on their sizes.
    """
    sizes: dict[str, tuple[int, str]] = {}
    for spec in specs:
        for axis, size in zip(spec.axes, arrays[spec.name].shape, strict=True):
            if not isinstance(axis, str):
                continue
            known, other = sizes.setdefault(axis, (size, spec.name))
            if size != known:
                raise InputError(f"{called}: {axis} is {known} in {other}, but {size} in {spec.name}", "Reshape one")
            if limits.tokens is not None and axis in {TOKENS, CONTEXT_TOKENS} and size > limits.tokens:
                raise InputError(
                    f"{called}: {spec.name} has {size} tokens, but the model has positions for {limits.tokens}",
                    "Cut it",
                )
            if wanted := limits.outside(axis, size):
                raise InputError(
                    f"{called}: {axis} is {size} in {spec.name}, but the model takes {wanted}", "Give others"
                )


def _check_values(where: str, array: Array, counts: Sequence[int] | None) -> None:
    """Raise InputError for values that make a comparison meaningless, or that are out of the model's range."""
    if not array.size:
        raise InputError(f"{where} is empty", "Give at least one token")
    if np.issubdtype(array.dtype, np.integer):
        outside = None if counts is None else array[(array < 0) | (array >= np.array(counts))]
        if outside is not None and outside.size:
            most = " and ".join(str(count - 1) for count in counts or ())
            raise InputError(f"{where} holds {outside.flat[0]}, but the model has 0 to {most}", "Use values in range")
    elif array.dtype == np.bool_:
        if not array.any():
            raise InputError(f"{where} masks everything", "Keep at least one token")
    elif not np.isfinite(array.astype(np.float64)).all():
        raise InputError(f"{where} holds NaN or infinity", "Compare on finite values")


def _check_range(where: str, array: Array, ends: Sequence[float] | None) -> None:
    """Raise InputError for values outside of the range that the model takes."""
    if ends is None:
        return
    outside = array[(array < ends[0]) | (array > ends[1])]
    if outside.size:
        raise InputError(
            f"{where} holds {outside.flat[0]:g}, but the model takes {ends[0]:g} to {ends[1]:g}", "Scale it"
        )
