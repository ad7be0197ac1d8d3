"""Skip what would take too long."""

from __future__ import annotations

from typing import Final

LONGEST_RUN_S: Final = 30.0
# Of two cores; used without a measurement.
DEFAULT_FLOPS_PER_S: Final = 1e11


def too_long(flops: float, flops_per_s: float = DEFAULT_FLOPS_PER_S) -> str | None:
    """Return why so many multiplications and additions would take too long, or None if they would not."""
    seconds = flops / flops_per_s
    if seconds <= LONGEST_RUN_S:
        return None
    return f"one run would take about {seconds:.0f} s or more, the limit is {LONGEST_RUN_S:g} s"
