"""What a worker does for a stream: take in a million tokens, time steps, measure memory."""

from __future__ import annotations

import gc
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pom_export.bench.agreement import compare
from pom_export.bench.contestants import session_settings
from pom_export.bench.machine import give_back_freed_memory, resident_bytes
from pom_export.bench.options import KERNEL
from pom_export.bench.stream.contestants import (
    ALIKE,
    FILES,
    Array,
    StepContestant,
    drawn_tokens,
    open_stream,
    past_bytes,
    state_file,
    step_inputs,
    step_of,
)
from pom_export.bench.timing import Effort, time_interleaved
from pom_export.errors import ParityError, reason_of
from pom_export.runtime.streaming.session import CHUNK, StreamingSession

if TYPE_CHECKING:
    from pom_export.bench.worker import Job

PREFILL: Final = "stream-prefill"
STEPS: Final = "stream-steps"
MEMORY: Final = "stream-memory"
_RUNS = 3


def stream_work(job: Job) -> dict[str, Any]:
    """Do a job."""
    return {PREFILL: prefill, STEPS: measure_steps, MEMORY: measure_memory}[job.task](job)


def prefill(job: Job) -> dict[str, Any]:
    """Take in one long text, and save the state at each context on the way."""
    (name,), folder = job.backends, Path(job.folder)
    options = session_settings(job.threads)
    stream = StreamingSession(folder / FILES[name], session_options=options, kernels=name == KERNEL)
    contexts = job.contexts[name]
    text = drawn_tokens(job.seed, max(contexts))
    seconds, stops = 0.0, []
    for context in sorted(contexts):
        started = time.perf_counter()
        for start in range(stream.length, context, CHUNK):
            stream.prefill_last(text[None, start : min(start + CHUNK, context)].astype("int64"))
        seconds += time.perf_counter() - started
        stream.snapshot().save(state_file(folder, context))
        stops.append({"tokens": context, "seconds": seconds, "resident_bytes": resident_bytes()})
    return {"stops": stops}


def measure_steps(job: Job) -> dict[str, Any]:
    """Time one token after every context on every backend, all in turns, after seeing that those alike agree.

    Raises:
        ParityError: two of them don't.
    """
    folder = Path(job.folder)
    steps: dict[tuple[str, int], StepContestant] = {}
    outputs: dict[tuple[str, int], Array] = {}
    held: dict[tuple[str, int], int] = {}
    failed: dict[str, str] = {}
    for name in job.backends:
        try:
            session = open_stream(name, folder, job.threads)
            for context in job.contexts[name]:
                feed = step_inputs(name, session, folder, context, job.seed)
                step = step_of(name, session)
                step.bind(feed)
                outputs[name, context] = step.first()[0].copy()
                steps[name, context], held[name, context] = step, past_bytes(feed, context)
        except Exception as error:  # noqa: BLE001 (whatever a runtime raises: the others go on)
            failed[name] = f"it failed: {reason_of(error)}"
    times = time_interleaved(
        {f"{name} {context}": step.run for (name, context), step in steps.items()}, Effort(**job.effort), settled=True
    )
    results = [
        {"backend": name, "tokens": context, "seconds": times[f"{name} {context}"], "state_bytes": held[name, context]}
        for name, context in steps
    ]
    return {"results": results, "failed": failed, "differences": _differences(outputs)}


def _differences(outputs: dict[tuple[str, int], Array]) -> list[dict[str, Any]]:
    found = []
    for reference, name in ALIKE:
        for (backend, context), output in outputs.items():
            if backend == name and (reference, context) in outputs:
                try:
                    difference = compare(name, [output], reference, [outputs[reference, context]])
                except ParityError as error:
                    raise ParityError(f"after {context} tokens {error.what}", error.hint) from error
                found.append({"backend": name, "tokens": context, "difference": difference})
    return found


def measure_memory(job: Job) -> dict[str, Any]:
    """Return what a process holds that streams from one context, and by how much that is more than from none."""
    (name,), folder = job.backends, Path(job.folder)
    (context,) = job.contexts[name]
    session = open_stream(name, folder, job.threads)
    step = step_of(name, session)
    # So that what loads with the first run does not count.
    step.bind(step_inputs(name, session, folder, 0, job.seed))
    step.first()
    gc.collect()
    give_back_freed_memory()
    before = resident_bytes()
    step.bind(step_inputs(name, session, folder, context, job.seed))
    step.first()
    for _ in range(_RUNS):
        step.run()
    gc.collect()
    give_back_freed_memory()
    after = resident_bytes()
    return {"resident_bytes": after, "growth_bytes": max(0, after - before)}
