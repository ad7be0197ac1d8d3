"""A process that measures one thing and ends: python -m pom_export.bench.worker JOB RESULT PARENT.

A process of its own for each size: its threads, its allocators and its peak memory are nobody else's.
"""

from __future__ import annotations

import gc
import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pom_export.bench.agreement import compare
from pom_export.bench.contestants import (
    COMPARED,
    Array,
    Contestant,
    bytes_of,
    draw_inputs,
    file_of,
    interface_of,
    load_contestant,
)
from pom_export.bench.guards import sizes_of
from pom_export.bench.machine import (
    end_with_parent,
    give_back_freed_memory,
    peak_bytes,
    pin,
    reset_peak,
    resident_bytes,
)
from pom_export.bench.options import TORCH_COMPILE
from pom_export.bench.roofline import measure_roofline
from pom_export.bench.timing import Effort, time_interleaved
from pom_export.errors import PomExportError, reason_of
from pom_export.graph.exported import read_model

_FEW_TOKENS = 8
ROOFLINE, TIME, MEMORY = "roofline", "time", "memory"


@dataclass(frozen=True)
class Job:
    """What a worker does.

    Attributes:
        task: "roofline", "time" or "memory", or one of a stream's.
        folder: where the backends' files lie.
        model: our export.
        backends: to run; one where memory is measured.
        batch: B.
        tokens: N.
        threads: for all of them.
        seed: of the inputs.
        effort: how long to time, as `Effort` takes it.
        contexts: of a stream: of each backend, how many tokens come before the one that is measured.
    """

    task: str
    folder: str
    model: str
    backends: list[str]
    batch: int
    tokens: int
    threads: int
    seed: int
    effort: dict[str, Any]
    contexts: dict[str, list[int]] = field(default_factory=dict)

    def load(self, name: str) -> Contestant:
        """Load a backend."""
        return load_contestant(name, Path(self.folder), Path(self.model), self.threads)

    def feed(self, name: str, tokens: int | None = None) -> dict[str, Array]:
        """Draw a backend's inputs, at other tokens than the job's if so asked."""
        interface = interface_of(name, Path(self.folder), Path(self.model))
        return draw_inputs(interface, sizes_of(self.batch, self.tokens if tokens is None else tokens), self.seed)

    def bytes(self, name: str, feed: dict[str, Array], outputs: list[Array]) -> int:
        """Return the bytes of a backend's weights, inputs and outputs."""
        return bytes_of(file_of(name, Path(self.folder), Path(self.model)), feed, outputs)


def measure_time(job: Job) -> dict[str, Any]:
    """Time all backends of a job against each other, after seeing that they agree.

    Raises:
        ParityError: two of them don't.
    """
    precision = read_model(job.model).precision
    loaded: dict[str, Contestant] = {}
    failed: dict[str, str] = {}
    reference: tuple[str, list[Array]] | None = None
    differences: dict[str, float] = {}
    # The reference is the first of those that are compared.
    for name in sorted(job.backends, key=lambda name: COMPARED.index(name) if name in COMPARED else len(COMPARED)):
        try:
            contestant = job.load(name)
            contestant.bind(job.feed(name))
            outputs = contestant.first()
        except Exception as error:  # noqa: BLE001 (whatever a runtime raises: the others go on)
            failed[name] = f"it failed: {reason_of(error)}"
            continue
        loaded[name] = contestant
        if name in COMPARED and reference is None:
            reference = name, [output.copy() for output in outputs]
        elif name in COMPARED and reference is not None:
            differences[name] = compare(name, outputs, *reference, precision)
    ordered = [name for name in job.backends if name in loaded]
    times = time_interleaved({name: loaded[name].run for name in ordered}, Effort(**job.effort))
    return {"times": times, "failed": failed, "differences": differences}


def measure_memory(job: Job) -> dict[str, Any]:
    """Return how far resident memory grows over what it was with the model loaded, while a backend runs twice."""
    (name,) = job.backends
    contestant = job.load(name)
    feed = job.feed(name)
    # So that the growth is that of the run, not of libraries that load with the first one. What is compiled for a
    # size is compiled before.
    small = feed if name == TORCH_COMPILE else job.feed(name, min(_FEW_TOKENS, job.tokens))
    if name == TORCH_COMPILE or any(small[key].size < feed[key].size for key in feed):
        contestant.bind(small)
        contestant.first()
    contestant.bind(feed)
    gc.collect()
    give_back_freed_memory()
    reset = reset_peak()
    before = resident_bytes()
    outputs = contestant.first()
    contestant.run()
    grown = max(0, peak_bytes() - before)
    return {"growth_bytes": grown if reset else None, "tensor_bytes": job.bytes(name, feed, outputs)}


def work(job: Job) -> dict[str, Any]:
    """Do a job."""
    pin(job.threads)
    if job.task == ROOFLINE:
        return measure_roofline(job.threads, Path(job.folder)).to_dict()
    if job.contexts:
        from pom_export.bench.stream.work import stream_work

        return stream_work(job)
    return measure_time(job) if job.task == TIME else measure_memory(job)


def main(arguments: list[str]) -> int:
    """Do the job in the first file, write the result or what went wrong to the second."""
    job_file, result_file, parent = arguments
    end_with_parent(int(parent))
    try:
        result = work(Job(**json.loads(Path(job_file).read_text())))
    except PomExportError as error:
        result = {"error": error.what, "hint": error.hint, "exit_code": error.exit_code}
    except Exception as error:  # noqa: BLE001 (the parent says it)
        result = {"error": f"{type(error).__name__}: {reason_of(error)}", "hint": "", "exit_code": 2}
    Path(result_file).write_text(json.dumps(result))
    return 0


def to_json(job: Job) -> str:
    """Return what `main` reads."""
    return json.dumps(asdict(job))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
