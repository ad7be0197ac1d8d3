"""Determine whether a mask is causal or the same for every query, at many numbers of tokens and with any key data.

A few sizes prove nothing about a window of 512 tokens. Sizes around every number that the mask is computed with, and
around the sizes of its tables, are therefore tried too. If such a number is too large to try, the mask is not
recognised.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from pom_export.graph.masks.parts import Array, MaskPart, NotComputableError, size_of

CAUSAL, SAME_ROWS = "causal", "same rows"

SIZES = (1, 2, 3, 4, 5, 7, 8, 13, 16, 17, 31, 33, 64, 65, 127, 129, 255, 257, 300)
# The largest number that the mask may be computed with, the most rows of its tables, and the number from which on none
# is taken for the size of a window.
_MOST_TOKENS, _LARGEST_TABLE, _NO_WINDOW = 2100, 8192, 2**20
# The number that replaces a larger non-integer, and a number of tokens beyond it, which has many divisors.
_SMALLER, _BEYOND_SMALLER = 1000, 1280
# The most numbers in a constant that are tried one by one; a larger constant is treated as a table.
_FEW = 64
_COMPARING = ("Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Range")
# Ops that keep positions as they are or choose among values: the number of tokens where the result changes is then
# among the constants.
TELLING = frozenset((
    *("Abs", "Add", "And", "Cast", "CastLike", "Clip", "Concat", "ConstantOfShape", "Equal", "Expand", "EyeLike"),
    *("Flatten", "Gather", "GatherElements", "GatherND", "Greater", "GreaterOrEqual", "Identity", "IsInf", "IsNaN"),
    *("Less", "LessOrEqual", "Max", "Min", "Neg", "Not", "Or", "Pad", "Range", "ReduceMax", "ReduceMin", "ReduceSum"),
    *("Relu", "Reshape", "Shape", "Sign", "Size", "Slice", "Split", "Squeeze", "Sub", "Tile", "Transpose", "Trilu"),
    *("Unsqueeze", "Where", "Xor"),
))  # fmt: skip
_NARROW = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
# Numbers of tokens at which positions have more distinct values than weights do.
_SIZES_OF_POSITIONS, FEW_VALUES = (64, 40, 32), 24
# The relative rounding error of a sum of weights, and the largest value that may be added to keep it from being 0.
_ROUNDING, _EPSILON = 1e-4, 1e-5


@dataclass(frozen=True)
class MaskKind:
    """The kind of a mask.

    Attributes:
        kind: CAUSAL, SAME_ROWS, or "" for neither.
        part: the part of the graph that computes it; None if unknown.
        reason: why it is neither.
    """

    kind: str
    part: MaskPart | None = None
    reason: str = ""


def kind_of(mask: ir.Value, divisor: ir.Value, tokens: int | ir.SymbolicDim) -> MaskKind:
    """Determine the kind of a mask (1 or B, T, N) of weights whose product with N features is divided by its sums.

    Args:
        mask: the weights.
        divisor: (1 or B, T, 1), which the product is divided by.
        tokens: N.
    """
    try:
        part = MaskPart((mask, divisor), tokens)
        found = _kind_of(part)
        if found.kind:
            _check_positions(part)
            _check_large_numbers(part, found.kind)
    except NotComputableError as error:
        return MaskKind("", None, str(error))
    except MemoryError:
        return MaskKind("", None, "there is no memory to compute it")
    return found


def _check_positions(part: MaskPart) -> None:
    """Raise NotComputableError if positions go through operators other than sums and comparisons.

    For example, the windows of `distance ** 0.5 < 64` and `distance // 512 < 8` end at a number that does not occur in
    the graph.
    """
    given = part.keys.keys() | part.constants.keys() | part.sizes.keys()
    taken = {
        value: node.op_type
        for node in part.nodes
        if node.op_type not in TELLING or (node.op_type == "Cast" and node.outputs[0].dtype in _NARROW)
        for value in node.inputs
        if value is not None and value.name not in given
    }
    inner = MaskPart(tuple(taken), part.tokens)
    for size in _SIZES_OF_POSITIONS if taken else ():
        env = inner.sizes_at(size)
        try:
            computed = inner.compute(env, _draws(inner, env, any_values=False))
        except NotComputableError:
            continue
        for operator, values in zip(taken.values(), computed, strict=True):
            if np.unique(values).size > FEW_VALUES:
                raise NotComputableError(
                    f"{operator} of positions is part of it: whether and where it ends cannot be determined"
                )
        return


def _kind_of(part: MaskPart) -> MaskKind:
    kinds, tried, refused = {CAUSAL, SAME_ROWS}, 0, 0
    for size in sorted({*SIZES, *telling_sizes(part.constants.values())}):
        env = part.sizes_at(size)
        n = size_of(part.tokens, env)
        mask, _ = _computed(part, env, any_values=True)
        if mask is None or mask.shape[-1] != n:
            refused = refused or n  # not a number of tokens that the model takes, for example beyond a table
            continue
        if 1 < refused < n:
            raise NotComputableError(f"it can't be computed at {refused} tokens")
        tried += n > 1
        kinds &= _kinds(mask, bool(part.keys))
        if not kinds:
            return MaskKind("", part, _why_not(mask, n, bool(part.keys)))
        _check_divisor(*_computed(part, env, any_values=False))
    if not tried:
        raise NotComputableError("it could not be computed at any number of tokens")
    # A mask with a single query is both.
    return MaskKind(CAUSAL if CAUSAL in kinds else SAME_ROWS, part)


def _check_large_numbers(part: MaskPart, kind: str) -> None:
    """Raise NotComputableError if a mask depends on the size of a non-integer that is too large to be tried.

    The value for masked-out tokens, such as -10000, can be replaced by a smaller one without effect, unlike a window's
    size.
    """
    smaller = {name: array for name, value in part.constants.items() if (array := _smaller(value)) is not None}
    if not smaller:
        return
    env = part.sizes_at(_BEYOND_SMALLER)
    mask, _ = _computed(part, env, any_values=True, constants=smaller)
    if mask is not None and kind not in _kinds(mask, bool(part.keys)):
        raise NotComputableError(
            "it is computed with a number that is larger than the numbers of tokens that can be tried"
        )


def _smaller(value: ir.Value) -> Array | None:
    """Replace numbers in a constant that are too large to be tried by smaller ones; None if there are none."""
    assert value.const_value is not None
    array = value.const_value.numpy()
    if array.size > _FEW or array.dtype.kind in "biu":
        return None
    numbers = array.astype(np.float64)
    large = (np.abs(numbers) > _MOST_TOKENS) & (np.abs(numbers) < _NO_WINDOW)
    return np.where(large, np.sign(numbers) * _SMALLER, numbers).astype(array.dtype) if large.any() else None


def _computed(
    part: MaskPart, env: Mapping[str, int], any_values: bool, constants: Mapping[str, Array] | None = None
) -> tuple[Array, Array] | tuple[None, None]:
    """Compute the mask and the divisor; None for both if they can't be computed at these sizes.

    Args:
        part: the part of the graph that computes them.
        env: sizes of the dynamic dimensions.
        any_values: whether the keys get arbitrary values instead of weights of 0 or more.
        constants: replacements for constants, by name.
    """
    try:
        mask, divisor = part.compute(env, {**_draws(part, env, any_values), **(constants or {})})
    except NotComputableError:
        return None, None
    return np.asarray(mask), np.asarray(divisor)


def telling_sizes(constants: Iterable[ir.Value]) -> set[int]:
    """Return the numbers of tokens around the numbers that a mask is computed with, and the sizes of its tables.

    Raises:
        NotComputableError: one of them is too large to try.
    """
    sizes: set[int] = set()
    for value in constants:
        tensor = ir.convenience.get_const_tensor(value)
        assert tensor is not None
        array = tensor.numpy()
        longest = max(array.shape, default=1)
        if longest > _LARGEST_TABLE:
            raise NotComputableError(f"its table has {longest} rows, too many to search")
        if longest > 1:
            sizes.add(longest)
        for number in _counts(value, array):
            if number > _MOST_TOKENS:
                raise NotComputableError(f"it is computed with the number {number}, which is too many tokens to try")
            around = {number - 1, number, number + 1, number + 2, 2 * number + 1}
            sizes |= {size for size in around if 0 < size <= _MOST_TOKENS + 2}
    return sizes


def _counts(value: ir.Value, array: Array) -> set[int]:
    """Return the numbers in a constant that may be numbers of tokens, as opposed to fill values or ends of slices."""
    if array.size > _FEW or array.dtype.kind == "b":
        return set()
    numbers = np.abs(array.astype(np.float64).ravel())
    numbers = numbers[np.isfinite(numbers) & (numbers > 0) & (numbers < _NO_WINDOW)]
    # Distances may be divided by a window's size.
    numbers = np.where(numbers < 1, 1 / np.maximum(numbers, 1 / _NO_WINDOW), numbers).round()
    if array.dtype.kind not in "iu" and not any(node.op_type in _COMPARING for node, _ in value.uses()):
        # Larger ones are fill values, such as the -10000 for masked-out tokens.
        numbers = numbers[numbers <= _MOST_TOKENS]
    return {int(number) for number in numbers if number > 1}


def _draws(part: MaskPart, env: Mapping[str, int], any_values: bool) -> dict[str, Array]:
    """Draw values for the keys, different ones for each."""
    generator = np.random.default_rng(0)
    return {name: _draw(key, part.shape_of(key, env), any_values, generator) for name, key in part.keys.items()}


def _draw(value: ir.Value, shape: tuple[int, ...], any_values: bool, generator: np.random.Generator) -> Array:
    """Draw weights of 0 or more, or any values that a mask may be made from."""
    dtype = (value.dtype or ir.DataType.FLOAT).numpy()
    if dtype.kind == "b":
        return generator.integers(0, 2, shape).astype(dtype)
    if dtype.kind in "iu":
        return generator.choice(np.array([0, 1, 2, 5]), shape).astype(dtype)
    weights = generator.choice(np.array([0, 1, 0.5, 2, 0.25]), shape)
    if any_values:
        others = generator.choice(np.array([-1, -np.inf, -1e4, -1e9, np.finfo(np.float32).min, 0.3, -0.7]), shape)
        weights = np.where(generator.integers(0, 2, shape) > 0, weights, others)
    return weights.astype(dtype)


def _kinds(mask: Array, has_data: bool) -> set[str]:
    """Return the possible kinds of a mask at one size; without data, every weight must be 1."""
    queries, tokens = mask.shape[-2:]
    triangle = np.tri(queries, tokens, dtype=bool)
    if not has_data:
        return {CAUSAL} if queries == tokens and bool((mask == triangle).all()) else set()
    weights = mask[..., -1:, :]
    # A non-finite number is not a weight, and any masked product with it is NaN.
    unknown = ~np.isfinite(weights)
    found = {SAME_ROWS} if bool(((mask == weights) | unknown).all()) else set()
    if queries == tokens and bool(((mask == np.where(triangle, weights, 0)) | unknown).all()):
        found.add(CAUSAL)
    return found


def _why_not(mask: Array, tokens: int, has_data: bool) -> str:
    if mask.shape[-2] != tokens:
        return f"its rows differ at {tokens} tokens"
    lower = "a lower triangle of ones" if not has_data else "a lower triangle, nor the same for all queries,"
    return f"it is not {lower} at {tokens} tokens"


def _check_divisor(mask: Array | None, divisor: Array | None) -> None:
    """Raise NotComputableError if the product is not divided by the sums of the mask, given non-negative weights."""
    if mask is None or divisor is None or divisor.shape[-1] != 1:
        raise NotComputableError("the product is not divided by the sums of the mask")
    sums = mask.sum(-1, keepdims=True, dtype=np.float64)
    # If a row sums to 0, its product is 0 whatever the divisor.
    wrong = (np.abs(divisor - sums) > _ROUNDING * sums + _EPSILON) & (sums > 0)
    if bool(wrong.any()):
        raise NotComputableError("the product is not divided by the sums of the mask")
