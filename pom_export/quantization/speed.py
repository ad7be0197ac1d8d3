"""Time files side by side on this machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pom_export.graph.exported_model import ExportedModel
from pom_export.parity.case import Arrays
from pom_export.quantization.data import IDS
from pom_export.quantization.trials import run_session
from pom_export.runtime.session import default_session_options, inference_session
from pom_export.runtime.streaming.interface import stateful_interface

DECODE: Final = "decode"
PREFILL: Final = "prefill"
CALL: Final = "call"
_PROMPT: Final = 128
# As many calls as take so long, but not more than _MOST unless these take less than the shorter time.
_SECONDS: Final = 1.5
_FEWEST_SECONDS: Final = 0.15
_FEWEST: Final = 5
_MOST: Final = 60
# Idle threads of one session would take the time of another's.
_SPINNING: Final = "session.intra_op.allow_spinning"


@dataclass(frozen=True)
class Speed:
    """How long a model's calls take here.

    Attributes:
        what: "decode" (one token), "prefill" (a prompt of 128 tokens), or "call" (of the inputs that were held out).
        original_ms: median time of the original in milliseconds.
        quantized_ms: the same of the quantized file, measured in turns with it.
    """

    what: str
    original_ms: float
    quantized_ms: float

    @property
    def ratio(self) -> float:
        """The quantized file's time relative to the original's."""
        return self.quantized_ms / self.original_ms


def speed_calls(model: ExportedModel, held_out: Sequence[Arrays]) -> dict[str, Arrays]:
    """Return the calls to time: a step and a prompt of a stream, or else the first of the given ones."""
    call = held_out[0]
    tokens = model.inputs[0].axes[1] if len(model.inputs[0].axes) > 1 else None
    if not model.stateful or model.inputs[0].name != IDS or isinstance(tokens, int):
        return {CALL: call}
    empty = stateful_interface(model).empty(1)
    count = min(_PROMPT, call[IDS].shape[1])
    return {
        DECODE: {**empty, IDS: call[IDS][:1, :1]},
        PREFILL: {**empty, IDS: call[IDS][:1, :count]},
    }


def time_files(files: Sequence[Path], calls: Mapping[str, Arrays]) -> dict[str, list[float]]:
    """Return the median time of each file in milliseconds, for each call."""
    sessions = [_quiet_session(file) for file in files]
    names = [output.name for output in sessions[0].get_outputs()]
    found = {}
    for what, call in calls.items():
        times: list[list[float]] = [[] for _ in files]
        begin = time.perf_counter()
        while _goes_on(len(times[0]), time.perf_counter() - begin):
            for session, each in zip(sessions, times, strict=True):
                start = time.perf_counter()
                run_session(session, names, call)
                each.append(time.perf_counter() - start)
        found[what] = [1000 * statistics.median(each) for each in times]
    return found


def _goes_on(calls: int, seconds: float) -> bool:
    return calls < _FEWEST or seconds < _FEWEST_SECONDS or (calls < _MOST and seconds < _SECONDS)


def _quiet_session(file: Path) -> Any:
    options = default_session_options()
    options.add_session_config_entry(_SPINNING, "0")
    return inference_session(file, session_options=options)
