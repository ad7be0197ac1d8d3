"""Compare what each quantized product of a file computes with the same rounding in float64."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from pom_export.debugging.locate import few
from pom_export.debugging.tapping import TappedModel
from pom_export.graph.quantized.reading import FLOAT32, TENSOR, QuantizedProduct
from pom_export.parity.candidates import Candidate
from pom_export.parity.case import Array, Case
from pom_export.parity.quantized.rounding import expected_product

# The most numbers of inner values that are in memory at once; a larger file is run several times.
_MOST_NUMBERS: Final = 2**26


@dataclass(frozen=True)
class Computed:
    """How far what a product computes is from what it should, relative to the largest value.

    Attributes:
        error: the largest difference.
        tolerance: the bound on it at that place.
        case: the inputs.
    """

    error: float
    tolerance: float
    case: str

    @property
    def share(self) -> float:
        """The share of the bound that is used."""
        return self.error / self.tolerance if self.tolerance else (np.inf if self.error else 0.0)


def chosen_cases(cases: Sequence[Case]) -> list[Case]:
    """Return the few cases to look into: typical ones, and the smallest, for which runtimes have other kernels."""
    if not cases:
        return []
    single = [case for case in cases if not case.cuts]
    found = [*few(single), min(single, key=_size)] if single else [replace(cases[0], cuts=())]
    return [case for index, case in enumerate(found) if all(case is not one for one in found[:index])]


def compare_products(
    model: Path,
    products: Sequence[QuantizedProduct],
    candidate: Candidate,
    cases: Sequence[Case],
    names: Mapping[str, str],
) -> dict[str, Computed]:
    """Compare every product that rounds activations, on those that reach it in the file.

    Args:
        model: the file.
        products: its products.
        candidate: how ONNX Runtime runs it.
        cases: inputs, each for a single call.
        names: the file's names of inputs, by those in the cases, where they differ.

    Returns:
        The worst of all cases, by product; those that no finite activations reach are left out.

    Raises:
        InputError: ONNX Runtime fails on the file.
    """
    found: dict[str, Computed] = {}
    rounding = [product for product in products if product.activations != FLOAT32]
    with TappedModel(model, {name for product in rounding for name in _values(product)}, candidate) as tapped:
        for case in cases:
            feed = {names.get(name, name): array for name, array in case.feed.items()}
            for group in _groups(rounding, _size(case)):
                values = tapped.run((name for product in group for name in _values(product)), feed)
                for product in group:
                    given, made = (values[name] for name in _values(product))
                    its = _compared(product, given, made, case.name)
                    name = product.name or product.output.name or ""
                    if its is not None and (name not in found or its.share > found[name].share):
                        found[name] = its
    return found


def _compared(product: QuantizedProduct, given: Array, made: Array, case: str) -> Computed | None:
    rows, results = given.reshape(-1, given.shape[-1]), made.reshape(-1, made.shape[-1])
    finite = np.isfinite(rows).all(axis=-1)
    if not finite.any() or (product.activations == TENSOR and not finite.all()):
        return None
    expected, bounds = expected_product(product, rows[finite])
    largest = float(np.abs(expected).max()) or 1.0
    errors = np.abs(results[finite] - expected)
    errors[~np.isfinite(errors)] = np.inf
    shares = np.divide(errors, bounds, out=np.where(errors > 0, np.inf, 0.0), where=bounds > 0)
    place = np.unravel_index(int(shares.argmax()), errors.shape)
    return Computed(float(errors[place]) / largest, float(bounds[place]) / largest, case)


def _groups(products: Sequence[QuantizedProduct], rows: int) -> Iterator[list[QuantizedProduct]]:
    """Split products into groups whose values fit into memory together."""
    group: list[QuantizedProduct] = []
    total = 0
    for product in products:
        size = rows * sum(product.weight.values.shape)
        if group and total + size > _MOST_NUMBERS:
            yield group
            group, total = [], 0
        group.append(product)
        total += size
    if group:
        yield group


def _values(product: QuantizedProduct) -> tuple[str, str]:
    return product.input.name or "", product.output.name or ""


def _size(case: Case) -> int:
    return max((array.size for array in case.feed.values()), default=0)
