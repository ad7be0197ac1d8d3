"""A workload: what a benchmark times, on which backends and at which sizes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final, NamedTuple

from pom_export.bench.options import BenchOptions
from pom_export.bench.results import BenchResult, Labels, Memory
from pom_export.errors import InputError, PomExportError

if TYPE_CHECKING:
    from pom_export.api.progress import Progress
    from pom_export.bench.runners import Array, Runner

FUNCTION: Final = "function"
KERNEL: Final = "kernel"
TENSORRT: Final = "tensorrt"


class Size(NamedTuple):
    """Where a workload is timed: B and N."""

    batch: int
    tokens: int


@dataclass(frozen=True)
class Conditions:
    """What a worker needs to know besides the workload: threads of every backend, and the seed of the inputs."""

    threads: int
    seed: int


class Workload(ABC):
    """What is timed.

    One process prepares it; workers, to which it goes as a pickle, load its backends and bind them at its sizes.

    Attributes:
        known: every backend that it may have, in the order of the tables' columns, and what each is.
        alike: groups of backends that compute the same; the first that runs is what the others are compared with.
        together: whether all sizes are timed in one process, each run right after an untimed one of its own; for runs
            so short that what the one before left in the caches would be seen. Else each size has its own process.
        rounds: timed rounds where nobody says how many; None: as many as fit into a budget.
        labels: the words of its tables.
        summary: one line about what is timed.
        precision: type of weights and activations.
        backends: that run.
        not_run: why others that were asked for don't.
        sizes: to time at.
    """

    known: ClassVar[Mapping[str, str]]
    alike: ClassVar[Sequence[Sequence[str]]]
    together: ClassVar[bool] = False
    rounds: ClassVar[int | None] = None
    labels: ClassVar[Labels]

    def __init__(self) -> None:
        self.summary = ""
        self.precision = "float32"
        self.backends: list[str] = []
        self.not_run: dict[str, str] = {}
        self.sizes: list[Size] = []

    @abstractmethod
    def prepare(self, options: BenchOptions, folder: Path, progress: Progress) -> None:
        """Write into `folder` whatever the backends load, and settle backends and sizes.

        Raises:
            InputError: an option does not fit, or what is timed cannot be read.
        """

    @abstractmethod
    def load(self, backend: str, size: Size, threads: int) -> Runner:
        """Load a backend in a worker; where all sizes are timed together it is loaded once, for the first one."""

    @abstractmethod
    def inputs(self, backend: str, size: Size, seed: int) -> dict[str, Array]:
        """Return what a backend is given at a size, by the names of its inputs."""

    @abstractmethod
    def bytes_needed(self, backend: str, size: Size) -> int:
        """Return about how much memory one run takes at its peak, weights left out."""

    @abstractmethod
    def measure_memory(self, backend: str, size: Size, conditions: Conditions) -> Memory:
        """Measure a backend's memory in a worker that does nothing else."""

    def excluded(self, backend: str, size: Size) -> str | None:  # noqa: ARG002
        """Return why a backend is not timed at a size, whatever memory there is; None where it is."""
        return None

    def compared(self, outputs: Sequence[Array]) -> Sequence[Array]:
        """Return those outputs that backends of a group must have alike."""
        return outputs

    def complete(self, result: BenchResult) -> None:  # noqa: B027 (most have nothing to add)
        """Put into a result what only this workload knows."""

    def check_backends(self, names: Sequence[str] | None) -> None:
        """Raise InputError where a name is none of the workload's backends."""
        for name in names or ():
            if name not in self.known:
                raise InputError(f"unknown backend {name!r}", f"Choose of {', '.join(self.known)}")

    def offer(self, name: str, options: BenchOptions, make: Callable[[], object]) -> None:
        """Have a backend run, if it was asked for and its files can be made."""
        if options.backends is not None and name not in options.backends:
            return
        try:
            make()
        except PomExportError as error:
            self.not_run[name] = error.what
        else:
            self.backends.append(name)
            self.backends.sort(key=list(self.known).index)


def refuse(reason: str) -> Callable[[], None]:
    """Return what says why a backend cannot run."""

    def say() -> None:
        raise InputError(reason)

    return say
