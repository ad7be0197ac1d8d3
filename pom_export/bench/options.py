"""Options of a benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from pom_export.bench.machine import usable_processors
from pom_export.bench.timing import Effort
from pom_export.errors import InputError

# Beyond it no machine holds one row of anything.
_MOST: Final = 2**31 - 1


@dataclass(frozen=True)
class BenchOptions:
    """How a benchmark is run.

    Attributes:
        backends: names of the workload's backends; None: all that apply and are there.
        tokens: sequence lengths N; None: the workload's own.
        batch: batch sizes B; None: the workload's own.
        threads: of every backend, each pinned to a processor of its own; None: all that the process may use.
        effort: how long to time.
        seed: of random weights and inputs.
        memory: whether the memory of every backend is measured, each in a process of its own.

    Raises:
        InputError: an option is out of range.
    """

    backends: Sequence[str] | None = None
    tokens: Sequence[int] | None = None
    batch: Sequence[int] | None = None
    threads: int | None = None
    effort: Effort = field(default_factory=Effort)
    seed: int = 0
    memory: bool = True

    def __post_init__(self) -> None:
        for kind, values in (("tokens", self.tokens), ("batch", self.batch), ("backends", self.backends)):
            if values is not None and not values:
                raise InputError(f"{kind} is an empty list", "Name at least one")
            if values is not None and len(set(values)) < len(values):
                raise InputError(f"{kind} names one twice: {', '.join(map(str, values))}", "Name each once")
        for kind, sizes in (("tokens", self.tokens), ("batch", self.batch)):
            for size in sizes or ():
                if not 1 <= size <= _MOST:
                    raise InputError(f"{kind} must be 1 to {_MOST}, got {size}")
        _check_least("repeats", self.effort.repeats, 1)
        _check_least("warmup", self.effort.warmup, 0)
        _check_least("budget", self.effort.budget_s, 0)
        _check_least("seed", self.seed, 0)
        most = len(usable_processors())
        if self.threads is not None and not 1 <= self.threads <= most:
            raise InputError(
                f"threads must be 1 to {most}, got {self.threads}", "More than processors only wait for each other"
            )

    @property
    def thread_count(self) -> int:
        """How many threads every backend has."""
        return len(usable_processors()) if self.threads is None else self.threads


def _check_least(name: str, value: float | None, least: int) -> None:
    if value is not None and not value >= least:
        raise InputError(f"{name} must be at least {least}, got {value}")


def parse_names(text: str | None) -> tuple[str, ...] | None:
    """Return the names in a list such as "function,kernel"; None where there is no list."""
    return None if text is None else tuple(part.strip() for part in text.split(","))


def parse_sizes(text: str | None, option: str) -> tuple[int, ...] | None:
    """Return the sizes in a list such as "256,1024"; None where there is no list.

    Raises:
        InputError: it is no list of whole numbers.
    """
    parts = parse_names(text)
    if parts is None:
        return None
    if not all(part.isascii() and part.isdigit() and len(part) <= len(str(_MOST)) for part in parts):
        raise InputError(f"{option} {text!r} is no list of sizes", f"Whole numbers from 1 on, such as {option} 1,256")
    return tuple(map(int, parts))
