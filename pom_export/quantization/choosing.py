"""Choose which products get how many bits, such that a model loses no more than it may."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from pom_export.graph.quantized.block_weights import QuantizedWeight
from pom_export.quantization.quality import Judge, Quality
from pom_export.quantization.trials import Trials

FLOAT32: Final = "float32"
BITS: Final = {"int4": 4, "int8": 8}
"""The types of weights, from the fewest bits, and their bits."""


@dataclass(frozen=True)
class Budget:
    """What a model may lose.

    Attributes:
        max_loss: the most by which its own measure may be worse, as a share; None: any.
        max_error: the largest error of an output, relative to its largest magnitude; None: any.
    """

    max_loss: float | None = None
    max_error: float | None = None

    @property
    def limits(self) -> bool:
        """Whether there is anything that may not be lost."""
        return self.max_loss is not None or self.max_error is not None

    def allows(self, quality: Quality, share: float = 1.0) -> bool:
        """Return whether a model's quality is within this share of the budget."""
        return self.used(quality) <= share

    def used(self, quality: Quality) -> float:
        """Return how much of the budget a model needs: 1 is all of it."""
        parts = [0.0]
        if self.max_loss is not None and quality.loss is not None:
            parts.append(quality.loss / self.max_loss)
        if self.max_error is not None:
            parts.append(quality.error / self.max_error)
        return max(parts)


Rounded = Callable[[str], Mapping[str, QuantizedWeight]]
"""Returns all products' weights in a type, by the products' names."""


@dataclass(frozen=True)
class Choice:
    """The types that products' weights get.

    Attributes:
        types: "int4", "int8" or "float32" by product.
        quality: what the model loses on the inputs that they were chosen on, with activations in float32.
        sensitivity: the root mean square error of the model's outputs if one product alone is quantized, relative to
            the outputs; empty if all of them may be, so that it was not measured.
    """

    types: Mapping[str, str]
    quality: Quality
    sensitivity: Mapping[str, float] = field(default_factory=dict)


class Chooser:
    """Chooses types of weights by trying them.

    Args:
        trials: the model.
        judge: measures what is lost.
        quick: measures it on fewer inputs, for the order of the products.
        rounded: the weights in a type.
        names: the products that may be quantized.
        budget: what may be lost.
        progress: called with one line per stage.
    """

    def __init__(
        self,
        trials: Trials,
        judge: Judge,
        quick: Judge,
        rounded: Rounded,
        names: Sequence[str],
        budget: Budget,
        progress: Callable[[str], None],
    ) -> None:
        self._trials = trials
        self._judge = judge
        self._quick = quick
        self._rounded = rounded
        self._names = names
        self._budget = budget
        self._progress = progress
        self._sensitivity: dict[str, dict[str, float]] = {}

    def choose(self, weights: str, share: float = 1.0) -> Choice:
        """Return the types for a budget: as many products as possible in a type, the others in the next wider ones.

        Args:
            weights: the type that is asked for.
            share: how much of the budget may be used.
        """
        types = dict.fromkeys(self._names, weights)
        quality = self._quality(types)
        self._progress(f"all products in {weights}: {_in_words(quality)}")
        for narrow, wide in _steps(weights):
            if self._budget.allows(quality, share):
                break
            types, quality = self._widened(types, narrow, wide, share)
        return Choice(types, quality, self._sensitivity.get(weights, {}))

    def _widened(self, types: dict[str, str], narrow: str, wide: str, share: float) -> tuple[dict[str, str], Quality]:
        """Give the fewest products that help most a wider type; all of them, if that is not enough."""
        order = self._by_sensitivity(narrow)
        found = dict.fromkeys(types, wide)
        best = self._quality(found)
        if not self._budget.allows(best, share):
            return found, best
        low, high = 0, len(order)  # low does not suffice, high does
        while high - low > 1:
            middle = (low + high) // 2
            tried = {**types, **dict.fromkeys(order[:middle], wide)}
            quality = self._quality(tried)
            self._progress(f"{middle} of {len(order)} products in {wide}: {_in_words(quality)}")
            if self._budget.allows(quality, share):
                high, found, best = middle, tried, quality
            else:
                low = middle
        return found, best

    def _by_sensitivity(self, narrow: str) -> list[str]:
        """Return the products in the order of the error that each causes alone, for the bytes that it takes."""
        if narrow not in self._sensitivity:
            rounded = self._rounded(narrow)
            found = {}
            for index, name in enumerate(self._names, 1):
                self._progress(f"product {index} of {len(self._names)} alone in {narrow}: {name}")
                found[name] = self._quick.quality(self._trials.run_with({name: rounded[name]})).rms_error
            self._sensitivity[narrow] = found
        errors = self._sensitivity[narrow]
        sizes = {name: self._trials.products[name].size for name in self._names}
        return sorted(self._names, key=lambda name: (-(errors[name] ** 2) / sizes[name], name))

    def _quality(self, types: Mapping[str, str]) -> Quality:
        used = {kind: self._rounded(kind) for kind in {*types.values()} - {FLOAT32}}
        weights = {name: used[kind][name] for name, kind in types.items() if kind != FLOAT32}
        return self._judge.quality(self._trials.run_with(weights))


def _steps(weights: str) -> list[tuple[str, str]]:
    """Return the types from the narrowest on, each with the next wider one."""
    kinds = [*list(BITS)[list(BITS).index(weights) :], FLOAT32]
    return list(itertools.pairwise(kinds))


def _in_words(quality: Quality) -> str:
    lost = "" if quality.loss is None else f"{quality.measure} worse by {quality.loss:.2%}, "
    return f"{lost}largest error {quality.error:.2e}"
