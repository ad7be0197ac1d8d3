"""What is to be run: check all sequences, divide them into batches, and run these one after the other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final
from weakref import WeakKeyDictionary

from pom_export.batches.budget import Budget
from pom_export.batches.interface import Interface
from pom_export.batches.meter import Meter, Progress
from pom_export.batches.planning import plan, tokens_of
from pom_export.batches.probing import Behaviour, probe
from pom_export.batches.sinks import Sink
from pom_export.batches.worker import Worker

_KNOWN: Final[WeakKeyDictionary[Any, Behaviour]] = WeakKeyDictionary()


class Job:
    """Sequences and the file that they are run through.

    Args:
        session: the onnxruntime.InferenceSession, whose behaviour is found out once.
        worker: runs batches of them.
        interface: the file's inputs and outputs.
        count: the number of sequences.

    Attributes:
        behaviour: what batches of the file may be made of.
    """

    behaviour: Behaviour

    def __init__(self, session: Any, worker: Worker, interface: Interface, count: int) -> None:
        self._worker = worker
        self._interface = interface
        self._kinds = [worker.kind(index) for index in range(count)]
        self._sizes = worker.sizes
        self._tokens = [tokens_of(interface, sizes) for sizes in self._sizes]
        self.behaviour = Behaviour(rows=False)
        if count > 1:
            known = _KNOWN.get(session)
            self.behaviour = _KNOWN[session] = probe(worker.caller, interface) if known is None else known

    @property
    def tokens(self) -> int:
        """The tokens of all sequences together."""
        return self.tokens_in(range(len(self._kinds)))

    def tokens_in(self, indices: Iterable[int]) -> int:
        """Return how many tokens some sequences have together."""
        return sum(self._tokens[self._kinds[index]] for index in indices)

    def batches(self, budget: Budget) -> list[list[int]]:
        """Return the batches, by index."""
        return plan(self._kinds, self._sizes, self._interface, self.behaviour, budget)

    def notes(self) -> list[str]:
        """Return what to know about how the sequences were run, one line each."""
        if len(self._kinds) > 1 and not self.behaviour.rows:
            return ["each sequence was run by itself: the file's rows were not shown to be independent of each other"]
        found = []
        for axis in self._interface.dimensions:
            different = len({sizes[axis] for sizes in self._sizes})
            if different > 1 and axis not in self.behaviour.padded:
                found.append(f"{different} sizes of {axis} were run apart: padding would change the outputs")
        return found

    def run(self, batches: Sequence[Sequence[int]], sink: Sink, progress: Progress) -> float:
        """Run batches one after the other, hand their outputs to a sink, and return the seconds that this took."""
        meter = Meter(len(self._kinds), progress)
        for batch in batches:
            for index, outputs in self._worker.outputs(batch):
                sink.put(index, outputs)
            meter.count(len(batch), self.tokens_in(batch))
        return meter.seconds
