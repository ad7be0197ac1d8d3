"""Time several functions against each other on a machine whose speed drifts."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import TypeVar

_Name = TypeVar("_Name", bound=Hashable)
_FEWEST, _MOST = 5, 50


@dataclass(frozen=True)
class Effort:
    """How long to time.

    Attributes:
        warmup: untimed rounds, besides each function's first call.
        repeats: timed rounds; None: 5 to 50, as many as fit into the budget.
        budget_s: seconds after which no round beyond the fifth starts.
    """

    warmup: int = 2
    repeats: int | None = None
    budget_s: float = 10.0


def time_interleaved(
    functions: Mapping[_Name, Callable[[], object]], effort: Effort, *, settled: bool = False
) -> dict[_Name, list[float]]:
    """Return the seconds that each function took, run by run.

    One run of each makes a round, and whoever began the last round ends the next: what slows the machine for a while
    slows all alike, and nobody always runs in the same one's wake.

    Args:
        functions: by name.
        effort: how long to time.
        settled: each timed run comes right after an untimed one of the same function, as in a loop of its own; for
            runs so short that what the one before left in the caches would be seen.
    """
    names = list(functions)
    times: dict[_Name, list[float]] = {name: [] for name in names}
    most = _MOST if effort.repeats is None else effort.repeats
    for _ in range(effort.warmup):
        for function in functions.values():
            function()
    gc.collect()
    gc.disable()
    try:
        started = time.perf_counter()
        for done in range(most if names else 0):
            spent = time.perf_counter() - started
            if effort.repeats is None and done >= _FEWEST and spent > effort.budget_s:
                break
            for name in names:
                if settled:
                    functions[name]()
                before = time.perf_counter()
                functions[name]()
                times[name].append(time.perf_counter() - before)
            names.append(names.pop(0))
    finally:
        gc.enable()
    return times
