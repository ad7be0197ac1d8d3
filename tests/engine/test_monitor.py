"""What a build reports while it runs."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from pom_export.engine import monitor
from pom_export.engine.backend import load_backend

pytestmark = pytest.mark.usefixtures("tensorrt_rtx")


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def cancelled() -> threading.Event:
    return threading.Event()


@pytest.fixture
def observer(said: list[str], cancelled: threading.Event) -> Any:
    return monitor.make_monitor(load_backend("tensorrt-rtx").module, said.append, cancelled)


def run_phases(observer: Any) -> bool:
    observer.phase_start("Building", None, 2)
    observer.phase_start("Cloning", "Building", 1000)
    goes_on = all(observer.step_complete("Cloning", step) for step in range(1000))
    observer.phase_finish("Cloning")
    observer.phase_start("Timing", "Cloning", 7)
    return goes_on


def test_outer_phases_are_reported_and_steps_are_not(observer: Any, said: list[str]) -> None:
    assert run_phases(observer)
    assert said == ["Building (2 steps)", "Cloning (1000 steps)"]


def test_a_long_phase_reports_its_progress(observer: Any, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "_SECONDS_BETWEEN_LINES", 0)
    run_phases(observer)
    assert said[2] == "Cloning: step 1 of 1000"


def test_a_cancelled_build_stops_at_its_next_step(observer: Any, cancelled: threading.Event) -> None:
    cancelled.set()
    assert not run_phases(observer)
