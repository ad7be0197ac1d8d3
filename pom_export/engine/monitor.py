"""Report TensorRT's progress in a few lines, and stop a build."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

# A build that takes minutes has thousands of steps. Apart from the outer phases, only one line per this many seconds is
# shown.
_SECONDS_BETWEEN_LINES = 5.0


def make_monitor(trt: Any, progress: Callable[[str], None], cancelled: threading.Event) -> Any:
    """Return a TensorRT progress monitor.

    Args:
        trt: TensorRT's module.
        progress: called with one line per stage.
        cancelled: set to stop the build at its next step.
    """

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}
            self._outer = ""
            self._said = time.monotonic()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._steps[phase_name] = num_steps
            if parent_phase is None:
                self._outer = phase_name
            if parent_phase in {None, self._outer}:
                self._say(f"{phase_name} ({num_steps} steps)")

        def phase_finish(self, phase_name: str) -> None:
            pass

        def step_complete(self, phase_name: str, step: int) -> bool:
            if time.monotonic() - self._said >= _SECONDS_BETWEEN_LINES:
                self._say(f"{phase_name}: step {step + 1} of {self._steps.get(phase_name, step + 1)}")
            return not cancelled.is_set()

        def _say(self, line: str) -> None:
            self._said = time.monotonic()
            progress(line)

    return Monitor()
