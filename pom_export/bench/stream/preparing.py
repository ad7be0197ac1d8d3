"""Write the models that stream, and say which backends there are and from which contexts they run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pom_export.api.exporting import export
from pom_export.api.progress import Progress
from pom_export.bench.attention import head_count
from pom_export.bench.machine import available_bytes
from pom_export.bench.options import (
    ATTENTION,
    ATTENTION_SHARED,
    DEFAULT_CONTEXTS,
    FUNCTION,
    KERNEL,
    STREAM_BACKENDS,
    BenchOptions,
)
from pom_export.bench.stream.contestants import FILES
from pom_export.bench.stream.group_query import write_group_query
from pom_export.bench.stream.models import make_model, parameter_count, write_attention
from pom_export.bench.targets import StreamShape
from pom_export.errors import InputError, PomExportError
from pom_export.runtime.library import custom_ops_library

# Beyond it attention is not timed: its steps would take most of the time of the benchmark.
LONGEST_ATTENTION: Final = 32768
_ITEM_BYTES: Final = 4
_USABLE_SHARE: Final = 0.8
# A cache that is copied is there twice while a step runs.
_CACHES: Final = {ATTENTION: 2, ATTENTION_SHARED: 1}


@dataclass
class StreamPrepared:
    """What there is to run.

    Attributes:
        folder: holds the files.
        summary: one line about the models.
        contexts: of each backend that runs, the numbers of tokens before the one that is timed.
        not_run: why other backends that were asked for don't run.
        skipped: by context and backend, why it does not run there.
    """

    folder: Path
    summary: str
    contexts: dict[str, list[int]] = field(default_factory=dict)
    not_run: dict[str, str] = field(default_factory=dict)
    skipped: dict[int, dict[str, str]] = field(default_factory=dict)


def prepare_stream(shape: StreamShape, options: BenchOptions, folder: Path, progress: Progress) -> StreamPrepared:
    """Write into `folder` whatever the backends load.

    Raises:
        InputError: an option does not fit a stream, or no mixer can run.
    """
    if options.batch is not None and list(options.batch) != [1]:
        raise InputError("a stream is timed with batch 1", "Leave --batch out")
    asked = list(STREAM_BACKENDS) if options.backends is None else list(options.backends)
    if not {FUNCTION, KERNEL} & set(asked):
        raise InputError("no mixer can run: none was asked for", f"Name {KERNEL} or {FUNCTION}")
    model = make_model(shape, options.seed)
    peer = make_model(shape, options.seed, attention=True)
    prepared = StreamPrepared(folder, _summary(shape, parameter_count(model), parameter_count(peer)))
    contexts = sorted(DEFAULT_CONTEXTS if options.tokens is None else options.tokens)
    short = [context for context in contexts if context <= LONGEST_ATTENTION]
    progress("exporting the model with its state")
    export(model, folder / FILES[KERNEL], stateful=True)
    makers: dict[str, Callable[[], object]] = {
        FUNCTION: lambda: None,
        KERNEL: custom_ops_library,
        ATTENTION: lambda: write_attention(peer, folder / FILES[ATTENTION]),
        # One position more, for the token that is timed.
        ATTENTION_SHARED: lambda: write_group_query(peer, max(short, default=0) + 1, folder / FILES[ATTENTION_SHARED]),
    }
    for name in sorted(asked, key=lambda name: (*makers, name).index(name)):
        try:
            if name not in makers:
                raise InputError("it has no state that goes on from call to call")
            makers[name]()
        except PomExportError as error:
            prepared.not_run[name] = error.what
        else:
            prepared.contexts[name] = contexts
    if not {FUNCTION, KERNEL} & prepared.contexts.keys():
        raise InputError(f"no mixer can run: {prepared.not_run[KERNEL]}", f"Name {FUNCTION}")
    _leave_out(prepared, shape.layers * 2 * shape.dim * _ITEM_BYTES)
    return prepared


def _leave_out(prepared: StreamPrepared, token_bytes: int) -> None:
    """Take contexts off attention that would take too long, or more memory than there is."""
    available = _USABLE_SHARE * available_bytes()
    for name in _CACHES:
        kept: list[int] = []
        for context in prepared.contexts.get(name, ()):
            need = _CACHES[name] * token_bytes * context
            if context > LONGEST_ATTENTION:
                why = f"its cache is {token_bytes * context / 2**30:.1f} GiB; it is timed up to {LONGEST_ATTENTION}"
            elif need > available:
                why = f"would need {need / 2**30:.1f} GiB of memory, {available / 2**30:.1f} GiB are left"
            else:
                available -= need
                kept.append(context)
                continue
            prepared.skipped.setdefault(context, {})[name] = why
        if name in prepared.contexts:
            prepared.contexts[name] = kept


def _summary(shape: StreamShape, parameters: int, peer_parameters: int) -> str:
    return (
        f"one token a step of a language model of bytes: {shape.layers} layers of dim {shape.dim}, degree "
        f"{shape.degree}, expand {shape.expand}, {shape.heads} heads, MLPs of {4 * shape.dim}, "
        f"{parameters / 1e6:.1f} million weights; attention has {head_count(shape.dim)} heads, "
        f"{peer_parameters / 1e6:.1f} million"
    )
