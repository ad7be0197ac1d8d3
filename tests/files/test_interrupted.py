"""Signals while files are locked, staged or moved leave nothing half-written, and no lock."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from pom_export import interrupts
from pom_export.files import locks, staged_output
from pom_export.files.locks import FolderLock
from tests.conftest import SIGNALS

pytestmark = pytest.mark.usefixtures("listening")


def is_free(folder: Path) -> bool:
    """Return whether the folder could be locked through another file descriptor."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        return locks.try_lock(descriptor)
    finally:
        locks.unlock(descriptor)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_the_waiting_for_a_lock(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def signalled(_: float) -> None:
        os.kill(os.getpid(), number)

    monkeypatch.setattr(locks.time, "sleep", signalled)

    def wait() -> None:
        with FolderLock([tmp_path]), staged_output(tmp_path / "m"):
            pytest.fail("the folder is locked")

    with pytest.raises(KeyboardInterrupt):
        wait()
    assert is_free(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("step", ["mkdir", "open", "replace", "stale"])
def test_a_signal_at_any_step_leaves_all_or_nothing(step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def signalled(function: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            os.kill(os.getpid(), signal.SIGTERM)
            return function(*arguments, **options)

        return call

    def stale() -> list[Path]:
        if step == "stale":
            os.kill(os.getpid(), signal.SIGTERM)
        return []

    def work() -> None:
        with staged_output(tmp_path / "m", stale=stale) as staged:
            staged.write_text("m")
            staged.with_name("m.json").write_text("{}")
        interrupts.check()

    if step == "open":
        monkeypatch.setattr(os, "open", signalled(os.open))
    elif step != "stale":
        monkeypatch.setattr(Path, step, signalled(getattr(Path, step)))
    with pytest.raises(KeyboardInterrupt):
        work()
    monkeypatch.undo()
    assert sorted(file.name for file in tmp_path.iterdir()) == (["m", "m.json"] if step == "replace" else [])
    assert is_free(tmp_path)
