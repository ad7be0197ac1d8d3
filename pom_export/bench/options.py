"""Backends, sizes and options of a benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from pom_export.bench.machine import usable_processors
from pom_export.errors import InputError
from pom_export.graph.dimensions import BATCH, CONTEXT_TOKENS, TOKENS

FUNCTION: Final = "function"
KERNEL: Final = "kernel"
TENSORRT: Final = "tensorrt"
BACKENDS: Final = (FUNCTION, KERNEL, TENSORRT)
DIMENSIONS: Final = (BATCH, TOKENS, CONTEXT_TOKENS)
"""The dynamic dimensions that a size determines in every file."""


class Size(NamedTuple):
    """A size at which a workload is timed: B and N."""

    batch: int
    tokens: int

    @property
    def dimensions(self) -> dict[str, int]:
        """The sizes of the dynamic dimensions that every file may have; a context is as long as the query."""
        return dict(zip(DIMENSIONS, (self.batch, self.tokens, self.tokens), strict=True))


@dataclass(frozen=True)
class BenchOptions:
    """Options of a benchmark.

    Attributes:
        backends: their names; None: all that apply and are available.
        tokens: sequence lengths N; None: the workload's defaults.
        batch: batch sizes B; None: the workload's defaults.
        threads: threads per backend, pinned to as many processors; default: all that the process may use.
        warmup: untimed rounds, besides each backend's first run.
        repeats: timed rounds; None: 5 to 50, as many as fit into the budget.
        budget_s: seconds after which no round after the fifth starts.
        seed: seed of random weights and inputs.
        memory: whether to measure the memory of each backend, in separate processes.

    Raises:
        InputError: there are fewer processors than threads, or the budget is not a number of seconds.
    """

    backends: Sequence[str] | None = None
    tokens: Sequence[int] | None = None
    batch: Sequence[int] | None = None
    threads: int = field(default_factory=lambda: len(usable_processors()))
    warmup: int = 2
    repeats: int | None = None
    budget_s: float = 10.0
    seed: int = 0
    memory: bool = True

    def __post_init__(self) -> None:
        most = len(usable_processors())
        if not 1 <= self.threads <= most:
            raise InputError(
                f"`threads` must be 1 to {most}, got {self.threads}", "More threads than processors wait for each other"
            )
        if not self.budget_s >= 0:  # NaN as well: no round would ever exceed it
            raise InputError(f"the time budget must be a number of seconds, 0 or more, got {self.budget_s}")
