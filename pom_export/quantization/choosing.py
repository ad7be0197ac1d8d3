"""Choose which products get how many bits, such that a model loses no more than it may."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from pom_export.quantization.quality import Judge, Quality, Run

FLOAT32: Final = "float32"
# Lines about a loop over the products, about.
_FEW_LINES: Final = 4


@dataclass(frozen=True)
class Budget:
    """What a model may lose.

    Attributes:
        max_loss: the most by which its own measure may be worse, as a share; None: any.
        max_error: the largest error of an output, relative to its largest magnitude; None: any.
        max_rms: the largest root mean square error of an output, relative to that of the output; None: any.
        is_default: whether nobody asked for it, so that it does not matter if a model has no measure.
    """

    max_loss: float | None = None
    max_error: float | None = None
    max_rms: float | None = None
    is_default: bool = False

    @property
    def limits(self) -> bool:
        """Whether a loss or the largest error is limited."""
        return self.max_loss is not None or self.max_error is not None

    def allows(self, quality: Quality) -> bool:
        """Return whether a model's quality is within the budget."""
        return self.used(quality) <= 1

    def used(self, quality: Quality) -> float:
        """Return how much of the budget a model needs: 1 is all of it."""
        parts = [0.0]
        if self.max_loss is not None and quality.loss is not None:
            parts.append(quality.loss / self.max_loss)
        if self.max_error is not None:
            parts.append(quality.error / self.max_error)
        if self.max_rms is not None:
            parts.append(quality.rms_error / self.max_rms)
        return max(parts)


RunWith = Callable[[Mapping[str, str]], Run]
"""Returns what runs the model with the types of some products' weights, by the products' names."""


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
        run_with: runs the model with some products quantized.
        judge: measures what is lost.
        quick: measures it on fewer inputs, for the order of the products.
        sizes: how many weights the products have that may be quantized.
        kinds: the types that they may get, the narrowest first, and float32 as the last.
        budget: what may be lost.
        progress: called with one line per stage.
    """

    def __init__(
        self,
        run_with: RunWith,
        judge: Judge,
        quick: Judge,
        sizes: Mapping[str, int],
        kinds: Sequence[str],
        budget: Budget,
        progress: Callable[[str], None],
    ) -> None:
        self._run_with = run_with
        self._judge = judge
        self._quick = quick
        self._sizes = sizes
        self._kinds = kinds
        self._budget = budget
        self._progress = progress
        self._narrowest: Quality | None = None
        self._sensitivity: dict[str, dict[str, float]] = {}

    def choose(self, at_least: float = 0.0) -> Choice:
        """Return the types for a budget: as many products as possible in the narrowest, the others in the next ones.

        Args:
            at_least: share of the products that get the next wider type in any case; above 1, all of them do, and the
                rest is the share that gets the one after it.
        """
        first = self._kinds[0]
        types = dict.fromkeys(self._sizes, first)
        if self._narrowest is None:
            self._narrowest = self._quality(types)
            self._progress(f"all products in {first}: {_in_words(self._narrowest)}")
        quality = self._narrowest
        for step, (narrow, wide) in enumerate(itertools.pairwise(self._kinds)):
            fewest = math.ceil(min(max(at_least - step, 0.0), 1.0) * len(types))
            if not fewest and self._budget.allows(quality):
                break
            types, quality = self._widened(types, narrow, wide, fewest)
        return Choice(types, quality, self._sensitivity.get(first, {}))

    def _widened(self, types: dict[str, str], narrow: str, wide: str, fewest: int) -> tuple[dict[str, str], Quality]:
        """Give the products that help most a wider type: as few as suffice, but no fewer than `fewest`."""
        order = self._by_sensitivity(narrow)
        found = dict.fromkeys(types, wide)
        best = self._quality(found)
        if not self._budget.allows(best):
            return found, best
        low, high = max(fewest - 1, 0), len(order)  # low does not suffice, high does
        while high - low > 1:
            middle = (low + high) // 2
            tried = {**types, **dict.fromkeys(order[:middle], wide)}
            quality = self._quality(tried)
            self._progress(f"{middle} of {len(order)} products in {wide}: {_in_words(quality)}")
            if self._budget.allows(quality):
                high, found, best = middle, tried, quality
            else:
                low = middle
        return found, best

    def _by_sensitivity(self, narrow: str) -> list[str]:
        """Return the products in the order of the error that each causes alone, for the bytes that it takes."""
        if narrow not in self._sensitivity:
            found = {}
            for done, name in enumerate(self._sizes):
                tell_some(self._progress, f"alone in {narrow}", done, len(self._sizes))
                found[name] = self._quick.quality(self._run_with({name: narrow})).rms_error
            self._sensitivity[narrow] = found
        errors = self._sensitivity[narrow]
        return sorted(self._sizes, key=lambda name: (-(errors[name] ** 2) / self._sizes[name], name))

    def _quality(self, types: Mapping[str, str]) -> Quality:
        return self._judge.quality(self._run_with(types))


def tell_some(progress: Callable[[str], None], what: str, done: int, count: int) -> None:
    """Say of a few products of many what is done with each: the one after `done` others of `count`."""
    if not done % max(1, count // _FEW_LINES):
        progress(f"{what}: product {done + 1} of {count}")


def _in_words(quality: Quality) -> str:
    lost = "" if quality.loss is None else f"{quality.measure} worse by {quality.loss:.2%}, "
    return f"{lost}largest error {quality.error:.2e}"
