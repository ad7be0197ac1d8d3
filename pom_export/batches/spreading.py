"""Spread batches over processes and machines by Ray Data; each worker loads the file for itself."""

from __future__ import annotations

import io
import logging
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import Any, Final

import numpy as np

from pom_export.batches.interface import Array, read_interface
from pom_export.batches.job import Job
from pom_export.batches.meter import Meter, Progress
from pom_export.batches.sinks import Sink
from pom_export.batches.sources import SEPARATOR, read_source
from pom_export.batches.worker import Worker
from pom_export.errors import InputError, MissingDependencyError, PomExportError, explained, reason_of
from pom_export.runtime.session import default_session_options, inference_session

# The model, the inputs and the execution providers, as `run_files` takes them.
Task = tuple[Any, Any, Any]
_INSTALL: Final = "Install it: pip install 'ray[data]>=2.40'"
_LONGEST_END: Final = 60.0  # seconds that Ray Data's threads get to end


class _Spread:
    """Runs batches in a worker of Ray Data's. Errors are returned, because Ray would wrap them in its own traces.

    Args:
        task: what to run.
    """

    def __init__(self, task: Task) -> None:
        self._worker: Worker | None = None
        self._error = ("", "")
        model, inputs, providers = task
        try:
            options = default_session_options()
            options.intra_op_num_threads = 1  # a worker for each processor
            session = inference_session(model, providers, session_options=options)
            interface = read_interface(session)
            self._worker = Worker(session, interface, read_source(inputs, interface))
        except Exception as error:  # noqa: BLE001 (returned)
            self._error = _parts(error)

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Run a batch, a list of indices, and return its outputs as an archive."""
        (what, hint), content = self._error, io.BytesIO()
        if self._worker is not None:
            try:
                outputs = self._worker.outputs([int(index) for index in row["batch"]])
                named = {f"{index}{SEPARATOR}{name}": a for index, each in outputs for name, a in each.items()}
                np.savez(content, **named)  # type: ignore[arg-type]
            except Exception as error:  # noqa: BLE001 (returned)
                what, hint = _parts(error)
        return {"what": what, "hint": hint, "outputs": content.getvalue()}


def _parts(error: Exception) -> tuple[str, str]:
    known = explained(error)
    return known.what, known.hint


def spread(job: Job, task: Task, batches: Sequence[Sequence[int]], sink: Sink, progress: Progress) -> float:
    """Run batches in Ray's workers, hand their outputs to a sink, and return the seconds that this took.

    Args:
        job: the sequences, which were checked.
        task: the model's and the inputs' paths, and the execution providers.
        batches: the batches, by index.
        sink: takes the outputs.
        progress: takes a line from time to time.

    Raises:
        InputError: the model is not a path, or a batch or Ray failed.
        MissingDependencyError: Ray Data is not installed.
    """
    model, inputs, providers = task
    if not isinstance(model, (str, os.PathLike)):
        raise InputError("the model is a session, which Ray cannot send to its workers", "Give the model's path")
    task = os.path.abspath(model), os.path.abspath(inputs), providers  # noqa: PTH100 (keeps links)
    with _ray() as ray:
        try:
            workers = max(1, min(len(batches), int(ray.cluster_resources().get("CPU", 1))))
            rows = ray.data.from_items([{"batch": list(batch)} for batch in batches], override_num_blocks=len(batches))
            done = rows.map(_Spread, fn_constructor_args=(task,), compute=ray.data.ActorPoolStrategy(size=workers))
            meter = Meter(sum(map(len, batches)), progress)
            with closing(done.iter_rows().__iter__()) as found:
                for row in found:
                    if row["what"]:
                        raise InputError(row["what"], row["hint"])
                    outputs = _by_sequence(row["outputs"])
                    for index, each in outputs.items():
                        sink.put(index, each)
                    meter.count(len(outputs), job.tokens_in(outputs))
        except PomExportError:
            raise
        except ray.exceptions.RayError as error:
            raise InputError(f"Ray failed: {reason_of(error)}", "Check its workers, or leave `ray` out") from error
        return meter.seconds


def _by_sequence(content: bytes) -> dict[int, dict[str, Array]]:
    found: dict[int, dict[str, Array]] = {}
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        for whole in archive.files:
            index, _, name = whole.partition(SEPARATOR)
            found.setdefault(int(index), {})[name] = archive[whole]
    return found


@contextmanager
def _ray() -> Iterator[Any]:
    """Yield Ray, connected; a cluster of this machine's processors that was started for this is stopped at the end."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MissingDependencyError(f"Ray Data is not installed ({reason_of(error)})", _INSTALL) from error
    ours = not ray.is_initialized()
    others = set(threading.enumerate())
    if ours:
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    context = ray.data.DataContext.get_current()
    shown, context.enable_progress_bars = context.enable_progress_bars, False
    log = logging.getLogger("ray.data")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield ray
    finally:
        log.setLevel(level)
        context.enable_progress_bars = shown
        if ours:
            _wait_for_ray_data(others)
            ray.shutdown()


def _wait_for_ray_data(others: set[threading.Thread]) -> None:
    """Wait until the threads of Ray Data have ended, except others'.

    They end a while after their iterator, and Ray ends the whole process, with exit code 1 and without a word, if one
    of them still asks something of a cluster that was shut down.
    """
    for thread in set(threading.enumerate()) - others:
        if type(thread).__module__.startswith("ray.data."):
            thread.join(_LONGEST_END)
