"""Files that a quantized one is chosen from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pom_export.quantization.choosing import Choice
from pom_export.quantization.quality import Quality
from pom_export.quantization.recipes import Recipe
from pom_export.quantization.speed import CALL, DECODE, PREFILL, Speed

FASTER: Final = 0.9
"""The time of a less accurate form relative to that of a more accurate one, from which on it is worth that.

The times of the same file differ by a few percent from run to run.
"""


@dataclass(frozen=True)
class Candidate:
    """A quantized file, and how good and fast it is.

    Attributes:
        file: the file.
        recipe: the form of its products.
        choice: their types.
        quality: on the inputs that were held out.
        speed: of its calls.
    """

    file: Path
    recipe: Recipe
    choice: Choice
    quality: Quality
    speed: list[Speed] = field(default_factory=list)

    def time(self, purpose: str) -> float:
        """Return how long calls for a purpose take relative to the original's."""
        wanted = {"both": (DECODE, PREFILL, CALL), "decode": (DECODE, CALL), "prefill": (PREFILL, CALL)}[purpose]
        ratios = [each.ratio for each in self.speed if each.what in wanted]
        return math.prod(ratios) ** (1 / len(ratios)) if ratios else 1.0


def most_suitable(made: Sequence[Candidate], purpose: str) -> Candidate:
    """Return the most accurate of those files that no other is much faster than, in calls for a purpose."""
    fastest = min(each.time(purpose) for each in made)
    fast = [each for each in made if each.time(purpose) * FASTER <= fastest]
    return min(fast, key=lambda each: each.quality.rms_error)
