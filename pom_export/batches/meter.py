"""Progress and throughput of a run."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

Progress = Callable[[str], None]
_SECONDS_BETWEEN: Final = 1.0  # reports of progress


class Meter:
    """Reports progress and throughput from time to time.

    Args:
        sequences: how many there are.
        progress: takes a line.
    """

    def __init__(self, sequences: int, progress: Progress) -> None:
        self._sequences = sequences
        self._progress = progress
        self._done = self._tokens = 0
        self._started = self._told = time.perf_counter()

    @property
    def seconds(self) -> float:
        """The time since the start."""
        return time.perf_counter() - self._started

    def count(self, sequences: int, tokens: int) -> None:
        """Count sequences that are done, and their tokens."""
        self._done += sequences
        self._tokens += tokens
        now = time.perf_counter()
        if now - self._told >= _SECONDS_BETWEEN:
            self._told = now
            seconds = now - self._started
            rates = f"{self._done / seconds:,.0f} sequences/s, {self._tokens / seconds:,.0f} tokens/s"
            self._progress(f"{self._done:,} of {self._sequences:,} sequences: {rates}")
