"""Run many sequences through a file: check all, divide them into batches, run, and hand out the outputs."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any

from pom_export.batches.budget import MOST_ROWS, Budget
from pom_export.batches.calling import Outputs
from pom_export.batches.interface import read_interface
from pom_export.batches.job import Job
from pom_export.batches.meter import Progress
from pom_export.batches.sinks import Collected, disk_room, file_sink
from pom_export.batches.sources import from_memory, read_source
from pom_export.batches.worker import Worker
from pom_export.engine.manifest import manifest_path
from pom_export.errors import InputError, only_ours
from pom_export.files import AnyPath, as_path
from pom_export.runtime.providers import Provider
from pom_export.runtime.session import inference_session
from pom_export.stages import logged

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunResult:
    """The outcome of `run_files`.

    Attributes:
        model: path of the ONNX file.
        inputs: path of the sequences.
        output: path of the outputs.
        sequences: how many were run.
        tokens: how many tokens they have together, without padding; None if the file's inputs have a fixed size.
        calls: how many batches they were divided into.
        padded: the dimensions in which sequences of a batch may differ.
        seconds: the time from the first batch to the last output, without loading the model.
        notes: further remarks, one line each.
    """

    model: str
    inputs: str
    output: str
    sequences: int
    tokens: int | None
    calls: int
    padded: list[str]
    seconds: float
    notes: list[str] = field(default_factory=list)

    @property
    def sequences_per_second(self) -> float:
        """Sequences by time."""
        return self.sequences / self.seconds

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens by time; None if the file's inputs have a fixed size."""
        return None if self.tokens is None else self.tokens / self.seconds

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON-serialisable values."""
        rates = {"sequences_per_second": self.sequences_per_second, "tokens_per_second": self.tokens_per_second}
        return {**asdict(self), **rates}


@only_ours
def run(
    model: Any,
    sequences: Any,
    *,
    batch: int = MOST_ROWS,
    max_tokens: int | None = None,
    providers: Sequence[Provider] | None = None,
    progress: Progress | None = None,
) -> list[Outputs]:
    """Run many sequences through a file, several per call, with the numbers that each gives by itself.

    Sequences of different lengths share a call only if padding does not change the outputs, which is found out by
    running the file; else only those of one length do. Longer sequences than 2,048 tokens go through a causal file's
    state in pieces.

    Args:
        model: path of an ONNX file, or a session from `inference_session`.
        sequences: one array per sequence if the file needs a single input, or one mapping of arrays by input. They have
            the shapes of the file's inputs without the batch: (tokens, d) or (tokens,) ids. An input named mask may be
            left out; it then keeps every token.
        batch: the most sequences in a call.
        max_tokens: the most tokens in a call, padding included; default: 1,024 on the CPU, 16,384 on other devices. A
            longer sequence is a call by itself.
        providers: execution providers, as for `inference_session`, if the model is a path.
        progress: called with a line from time to time.

    Returns:
        The outputs of each sequence by name, in the same order: arrays of the file's output shapes without the batch,
        such as (tokens, V). Arrays of sequences that shared a call are views of one array.

    Raises:
        InputError: a sequence does not fit the file, which names the sequence; or the file cannot be loaded or run.
        MissingDependencyError: onnxruntime or our library is not installed.
    """
    session = _loaded(model, providers)
    interface = read_interface(session)
    budget = Budget.for_session(session, batch, max_tokens)
    source = from_memory(sequences, interface)
    sink = Collected(len(source.keys))
    job = Job(session, Worker(session, interface, source), interface, len(source.keys))
    job.run(job.batches(budget), sink, logged(progress or _silent, _LOG))
    return sink.outputs


@only_ours
def run_files(
    model: Any,
    inputs: AnyPath,
    output: AnyPath,
    *,
    batch: int = MOST_ROWS,
    max_tokens: int | None = None,
    providers: Sequence[Provider] | None = None,
    ray: bool = False,
    progress: Progress | None = None,
) -> RunResult:
    """Run the sequences of a file or a folder through an ONNX file, as `run` does, and write their outputs.

    Args:
        model: path of an ONNX file, or a session from `inference_session`.
        inputs: an .npz archive of arrays named after the file's inputs, each with a leading axis of sequences, and if
            they were padded `lengths` (and `context_lengths`), one per sequence; or of arrays named INPUT/SEQUENCE, one
            sequence each. Or an .npy file with one such array. Or a folder whose .npy and .npz files are one sequence
            each; these are read only when they are needed.
        output: an .npz archive, an .npy file, or a folder, for outputs in the inputs' form: stacked with the given
            lengths, named OUTPUT/SEQUENCE, or files of the same names. It appears complete or not at all.
        batch: the most sequences in a call.
        max_tokens: the most tokens in a call, as for `run`.
        providers: execution providers, as for `inference_session`, if the model is a path.
        ray: spread the calls over a Ray cluster, or over this machine's processors, by Ray Data. The model and the
            inputs must be paths that every node can read.
        progress: called with a line from time to time.

    Raises:
        InputError: a file cannot be read or written; or as for `run`.
        MissingDependencyError: onnxruntime, our library or Ray is not installed.
    """
    tell = logged(progress or _silent, _LOG)
    session = _loaded(model, providers)
    interface = read_interface(session)
    budget = Budget.for_session(session, batch, max_tokens)
    source = read_source(inputs, interface)
    with ExitStack() as stack:
        sink = stack.enter_context(file_sink(output, source, interface))
        folder = as_path(output, "output")
        room = disk_room(folder if folder.is_dir() else folder.parent)
        job = Job(session, Worker(session, interface, source, room), interface, len(source.keys))
        batches = job.batches(budget)
        if ray:
            from pom_export.batches.spreading import spread

            seconds = spread(job, (model, inputs, providers), batches, sink, tell)
        else:
            seconds = job.run(batches, sink, tell)
    return RunResult(
        model=os.fspath(model) if isinstance(model, (str, os.PathLike)) else interface.name,
        inputs=os.fspath(inputs),
        output=os.fspath(output),
        sequences=len(source.keys),
        tokens=job.tokens if interface.dimensions else None,
        calls=len(batches),
        padded=[axis for axis in interface.dimensions if axis in job.behaviour.padded],
        seconds=seconds,
        notes=job.notes(),
    )


def _loaded(model: Any, providers: Sequence[Provider] | None) -> Any:
    """Return the session of a model that is a path, and any other model as it is."""
    if not isinstance(model, (str, os.PathLike)):
        return model
    if manifest_path(model).is_file():
        raise InputError(
            f"{os.fspath(model)} is an engine, and only ONNX files are run", "Give the file it was built from"
        )
    return inference_session(model, providers)


def _silent(_: str) -> None:
    pass
