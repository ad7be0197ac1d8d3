"""A file and those beside it always come from one command, whoever else writes there or is killed."""

from __future__ import annotations

import multiprocessing
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from pom_export.errors import InputError
from pom_export.files import locks, staged_output, staging
from pom_export.files.locks import FolderLock
from tests.files.killing import killed_at_every_moment


def write_pair(folder: Path, text: str) -> None:
    with staged_output(folder / "m", beside=[folder / "m.json"], stale=lambda: [folder / "m.old"]) as staged:
        staged.write_text(text)
        staged.with_name("m.json").write_text(text)


def contents(folder: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in folder.iterdir() if file.is_file()}


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_a_kill_leaves_the_old_file_or_the_new_pair(
    links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not links:
        monkeypatch.setattr(staging.os, "link", no_links)
    seen = set()
    old = {"m": "old", "m.json": "old", "m.old": "old"}
    for name in old:
        (tmp_path / name).write_text("old")
    for moment in killed_at_every_moment(lambda: write_pair(tmp_path, "new")):
        found = contents(tmp_path)
        # The old file's companions are there as long as the old file is.
        assert found["m"] == "new" or (found.keys() == old.keys() and found["m.old"] == "old")
        assert found["m"] == "old" or found["m.json"] == "new"
        seen.add((found["m"], found["m.json"]))
        # The next command leaves what it would have left if run alone.
        write_pair(tmp_path, "next")
        assert contents(tmp_path) == {"m": "next", "m.json": "next"}
        assert len(list(tmp_path.iterdir())) == 2, moment
        for name in old:
            (tmp_path / name).write_text("old")
    assert seen == {("old", "old"), ("old", "new"), ("new", "new")}


def no_links(*_: Any, **__: Any) -> None:
    raise PermissionError


def test_two_processes_leave_pairs(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(3, timeout=60)

    def write(name: str) -> None:
        for number in range(60):
            barrier.wait()
            write_pair(tmp_path, f"{name}{number}")
            barrier.wait()
            barrier.wait()

    processes = [context.Process(target=write, args=(name,)) for name in "ab"]
    for process in processes:
        process.start()
    for number in range(60):
        barrier.wait()
        barrier.wait()
        found = contents(tmp_path)
        assert found.keys() == {"m", "m.json"}
        assert found["m"] == found["m.json"]
        assert found["m"][1:] == str(number)
        barrier.wait()
    for process in processes:
        process.join()
        assert process.exitcode == 0


def test_one_waits_while_the_other_is_between_two_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    between, waiting = threading.Event(), threading.Event()
    move, pause = Path.replace, time.sleep

    def slow_move(file: Path, place: Path) -> Path:
        moved = move(file, place)
        if place.name == "m.json" and moved.read_text() == "first":
            between.set()
            assert waiting.wait(60)
            assert contents(tmp_path) == {"m.json": "first"}
        return moved

    def noticed_pause(seconds: float) -> None:
        waiting.set()
        pause(seconds)

    monkeypatch.setattr(Path, "replace", slow_move)
    monkeypatch.setattr(locks.time, "sleep", noticed_pause)
    first = threading.Thread(target=write_pair, args=(tmp_path, "first"))
    first.start()
    assert between.wait(60)
    write_pair(tmp_path, "second")
    first.join()
    assert contents(tmp_path) == {"m": "second", "m.json": "second"}


def test_what_is_stale_is_asked_for_when_the_files_are_moved(tmp_path: Path) -> None:
    """Another command may have replaced the pair since."""
    with staged_output(tmp_path / "m", stale=lambda: tmp_path.glob("m.*")) as staged:
        staged.write_text("second")
        write_pair(tmp_path, "first")
    assert contents(tmp_path) == {"m": "second"}


def test_a_stale_file_that_is_a_source_stays(tmp_path: Path) -> None:
    source = tmp_path / "m.old"
    source.write_text("old")
    with staged_output(tmp_path / "m", source, stale=lambda: [source]) as staged:
        staged.write_text("new")
    assert contents(tmp_path) == {"m": "new", "m.old": "old"}


def test_what_is_the_same_is_not_touched(tmp_path: Path) -> None:
    """Weights that are named by their content: the old graph needs them until it is replaced."""
    (tmp_path / "m.data").write_text("weights")
    before = (tmp_path / "m.data").stat()  # reading it may change the time of its last access
    with staged_output(tmp_path / "m") as staged:
        staged.write_text("new")
        staged.with_name("m.data").write_text("weights")
    after = (tmp_path / "m.data").stat()
    assert (after.st_ino, after.st_ctime_ns) == (before.st_ino, before.st_ctime_ns)


def test_files_beside_a_link_are_beside_it(tmp_path: Path) -> None:
    for name in ("links", "store"):
        (tmp_path / name).mkdir()
    (tmp_path / "links" / "m").symlink_to("../store/m")
    write_pair(tmp_path / "links", "new")
    assert contents(tmp_path / "links") == {"m": "new", "m.json": "new"}
    assert contents(tmp_path / "store") == {"m": "new"}
    assert len(list((tmp_path / "links").iterdir())) == 2
    assert len(list((tmp_path / "store").iterdir())) == 1


def test_a_folder_that_stays_locked_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_PATIENCE_SECONDS", 0.0)
    with FolderLock([tmp_path, tmp_path]) as sure:
        assert sure
        with pytest.raises(InputError, match=f"another process has locked {tmp_path}"):
            write_pair(tmp_path, "new")
    write_pair(tmp_path, "new")
    assert contents(tmp_path) == {"m": "new", "m.json": "new"}


def test_where_folders_cannot_be_locked_outputs_are_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    with FolderLock([tmp_path]) as sure:
        assert not sure
    write_pair(tmp_path, "new")
    assert contents(tmp_path) == {"m": "new", "m.json": "new"}
    assert len(list(tmp_path.iterdir())) == 2
