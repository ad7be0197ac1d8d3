"""Process one long text, and save the state at each context along the way."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.stream.inputs import drawn_tokens, state_file
from pom_export.bench.machine import resident_bytes
from pom_export.bench.options import BenchOptions
from pom_export.bench.runners import session_settings
from pom_export.runtime.streaming.session import CHUNK, StreamingSession


@dataclass(frozen=True)
class Prefill:
    """How long the tokens of a context took, and the memory after them.

    Attributes:
        seconds: since the first token.
        resident_bytes: resident memory of the process just after the last token.
    """

    seconds: float
    resident_bytes: int


def prefill(model: Path, contexts: Sequence[int], options: BenchOptions, kernels: bool) -> dict[int, Prefill]:
    """Process as many random bytes as the longest context has, and save the state at each context beside the model.

    Args:
        model: a stateful export.
        contexts: numbers of tokens.
        options: threads, and the seed of the text.
        kernels: whether to use our library.
    """
    stream = StreamingSession(model, session_options=session_settings(options.threads), kernels=kernels)
    text = drawn_tokens(options.seed, max(contexts))
    seconds, found = 0.0, {}
    for context in sorted(contexts):
        started = time.perf_counter()
        for start in range(stream.length, context, CHUNK):
            stream.prefill_last(text[None, start : min(start + CHUNK, context)].astype("int64"))
        seconds += time.perf_counter() - started
        stream.snapshot().save(state_file(model.parent, context))
        found[context] = Prefill(seconds, resident_bytes())
    return found
