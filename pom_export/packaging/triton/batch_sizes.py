"""Choose the sizes of batches from what `pom-export bench` measured."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, Final

from pom_export.errors import InputError
from pom_export.files import AnyPath, readable_file
from pom_export.json_text import parse_json

_LARGEST: Final = 16 << 20
# A batch is preferred if it delivers this share of the best one's rows a second.
_NEARLY: Final = 0.9


def preferred_sizes(results: AnyPath, backend: str) -> list[int]:
    """Return the batches that deliver nearly the most rows a second, at every length that was timed.

    Args:
        results: results.json, which `pom-export bench` wrote.
        backend: which of its backends counts.

    Raises:
        InputError: it cannot be read, is another file, or has a single batch size.
    """
    rates = _rates(results, backend)
    sizes = sorted({batch for by_batch in rates.values() for batch in by_batch})
    if len(sizes) < 2:
        timed = f"batch {sizes[0]} alone" if sizes else f"nothing of {backend}"
        raise InputError(f"{os.fspath(results)} has timed {timed}", "Time several, such as 1, 4, 16 and 64")
    good = [
        batch
        for batch in sizes
        if all(rate[batch] >= _NEARLY * max(rate.values()) for rate in rates.values() if batch in rate)
    ]
    return good or [sizes[-1]]


def _rates(results: AnyPath, backend: str) -> Mapping[int, Mapping[int, float]]:
    """Return rows a second, by tokens and batch."""
    file = readable_file(results, "file of bench results")
    rates: dict[int, dict[int, float]] = defaultdict(dict)
    try:
        values = parse_json(file.read_bytes()) if file.stat().st_size <= _LARGEST else {}
        for point in values["points"]:
            if backend in point["timings"]:
                batch, tokens, median = _sizes(point, point["timings"][backend])
                rates[tokens][batch] = batch / median
    except (ValueError, LookupError, TypeError, ArithmeticError) as error:
        raise InputError(f"{file} is not a result of bench", "Give the results.json that it wrote") from error
    return rates


def _sizes(point: Mapping[str, Any], timing: Mapping[str, Any]) -> tuple[int, int, float]:
    """Return a point's batch, tokens and milliseconds.

    Raises:
        ValueError: one of them cannot be.
    """
    batch, tokens, median = point["batch"], point["tokens"], timing["median_ms"]
    if not (isinstance(batch, int) and isinstance(tokens, int) and batch > 0 and median > 0):
        raise ValueError(point)
    return batch, tokens, float(median)
