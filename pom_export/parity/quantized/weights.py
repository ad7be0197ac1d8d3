"""Find the weight that a quantized product stands for, and tell a coarse copy of it from another weight."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pom_export.graph.quantized.block_weights import LARGEST, QuantizedWeight
from pom_export.graph.quantized.reading import QuantizedProduct
from pom_export.parity.tolerances import HALF_STEP, WEIGHTS_QUANTIZED

Array = npt.NDArray[Any]
# What torch and the export add to a parameter's name: a transposition, the number of a part, that of a copy.
_ADDED: Final = re.compile(r"(_transposed|\.\d+|_\d+)$")


@dataclass(frozen=True)
class WeightDistance:
    """How far a dequantized weight is from the one that it stands for; truthy if rounding explains it.

    Errors are root mean squares, relative to that of the original's numbers.

    Attributes:
        error: of the whole weight.
        bound: the bound on it.
        block_error: of the block with a scale in common that uses the largest share of its bound.
        block_bound: the bound on it.
        block: number of that block, along K.
        column: its column.
    """

    error: float
    bound: float
    block_error: float
    block_bound: float
    block: int
    column: int

    def __bool__(self) -> bool:
        return self.error <= self.bound and self.block_error <= self.block_bound


@dataclass(frozen=True)
class Part:
    """The part of a parameter that a product multiplies by.

    Attributes:
        parameter: the parameter's name.
        transposed: whether the product's weight (K, N) is the parameter's transpose.
        start: the first of its N columns there.
        distance: how far the product's weight is from it.
    """

    parameter: str
    transposed: bool
    start: int
    distance: WeightDistance


def find_part(product: QuantizedProduct, parameters: Mapping[str, Array]) -> Part | None:
    """Return the part of a parameter that a quantized weight stands for; None if there is none.

    A parameter that the weight is named after is the one, however far off it is. Otherwise, one whose values are as
    close as rounding explains.

    Args:
        product: the product.
        parameters: the model's parameters, by the names that they have in the file.
    """
    weight = product.weight.dequantized()
    for name in _names(product.initializer):
        if name in parameters and (part := _closest(product.weight, weight, {name: parameters[name]})) is not None:
            return part
    part = _closest(product.weight, weight, parameters)
    return part if part is not None and part.distance else None


def put(part: Part, weight: Array, parameter: Array) -> None:
    """Write a product's weight, (K, N), to its place in an array of its parameter's shape."""
    flat = _flat(parameter)
    whole = flat.T if part.transposed else flat
    whole[:, part.start : part.start + weight.shape[1]] = weight


def distance_of(weight: QuantizedWeight, original: Array) -> WeightDistance:
    """Compare a quantized weight with the one that it should stand for.

    Args:
        weight: the weight.
        original: the original, (K, N).
    """
    bounds = WEIGHTS_QUANTIZED[weight.bits]
    error, wanted = (
        _blocks(each, weight.block) for each in (weight.dequantized().astype(np.float64) - original, original)
    )
    # The last block may be shorter.
    counts = np.full((len(wanted), 1), weight.block)
    counts[-1] = len(original) - weight.block * (len(wanted) - 1)
    errors, norms = (np.sqrt(np.square(each).sum(axis=1)) for each in (error, wanted))
    explained = HALF_STEP * np.abs(wanted).max(axis=1) / LARGEST[weight.bits] * np.sqrt(counts)
    allowed = np.maximum(bounds.block * norms, explained)
    worst = _shares(errors, allowed).argmax()
    block, column = (int(each) for each in np.unravel_index(worst, errors.shape))
    norm = float(np.linalg.norm(norms))
    return WeightDistance(
        _share(float(np.linalg.norm(errors)), norm),
        max(bounds.whole, _share(float(np.linalg.norm(explained)), norm)),
        _share(float(errors[block, column]), float(norms[block, column])),
        max(bounds.block, _share(float(allowed[block, column]), float(norms[block, column]))),
        block,
        column,
    )


def _shares(errors: Array, bounds: Array) -> Array:
    return np.divide(errors, bounds, out=np.where(errors > 0, np.inf, 0.0), where=bounds > 0)


def _share(error: float, norm: float) -> float:
    return error / norm if norm else (np.inf if error else 0.0)


def _blocks(matrix: Array, block: int) -> Array:
    """Return (blocks, block, N), the last block filled with zeros."""
    rows, columns = matrix.shape
    padded = np.zeros((-(-rows // block) * block, columns))
    padded[:rows] = matrix
    return padded.reshape(-1, block, columns)


def _names(initializer: str) -> Iterator[str]:
    """Yield the names that a parameter may have whose part is called this, the most likely first."""
    name = initializer
    while name:
        yield name
        shorter = _ADDED.sub("", name)
        if shorter == name:
            return
        name = shorter


def _closest(quantized: QuantizedWeight, weight: Array, parameters: Mapping[str, Array]) -> Part | None:
    """Return the part of any of some parameters that is closest to a weight; None if none has as many rows."""
    places: list[tuple[float, str, bool, int]] = []
    for name, parameter in parameters.items():
        for transposed in (True, False):
            if parameter.ndim < 2:
                continue
            flat = _flat(parameter)
            whole = flat.T if transposed else flat
            if whole.shape[0] == weight.shape[0] and whole.shape[1] >= weight.shape[1]:
                places += (
                    (float(np.linalg.norm(whole[:, start : start + weight.shape[1]] - weight)), name, transposed, start)
                    for start in _starts(weight, whole)
                )
    if not places:
        return None
    _, name, transposed, start = min(places)
    flat = _flat(parameters[name])
    original = (flat.T if transposed else flat)[:, start : start + weight.shape[1]]
    return Part(name, transposed, start, distance_of(quantized, original))


def _starts(weight: Array, whole: Array) -> Sequence[int]:
    """Return where in a matrix the columns of a part of it may begin, by a few of the part's columns."""
    last = whole.shape[1] - weight.shape[1]
    if not last:
        return [0]
    found = set()
    for column in (0, weight.shape[1] // 2, weight.shape[1] - 1):
        nearest = int(np.square(whole - weight[:, column : column + 1]).sum(axis=0).argmin())
        found.add(min(max(nearest - column, 0), last))
    return sorted(found)


def _flat(parameter: Array) -> Array:
    """Return a parameter as a matrix: that of a convolution has a row for each output channel."""
    return parameter.reshape(parameter.shape[0], -1)
