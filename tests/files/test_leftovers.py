"""Staging folders of killed processes are removed by the next command; nothing else is."""

from __future__ import annotations

import os
import platform
import signal
import tempfile
from pathlib import Path

import pytest

from pom_export.errors import InputError
from pom_export.files import check_writable, scratch_folder, staged_output
from pom_export.files.locks import FolderLock
from pom_export.files.staging_folder import StagingFolder


def write(place: Path) -> None:
    with staged_output(place) as staged:
        staged.write_text("new")


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def leave(folder: Path) -> Path:
    """Kill a process that has a staging folder, and return the folder."""
    process = os.fork()
    if not process:
        staging = StagingFolder(folder)
        staging.make()
        (staging.files / "m").write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(process, 0)
    (left,) = folder.iterdir()
    return left


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path: Path) -> None:
    assert leave(tmp_path).name.startswith(".pom-export-")
    write(tmp_path / "other")
    assert names(tmp_path) == ["other"]


def test_what_a_process_works_in_is_left_to_it(tmp_path: Path) -> None:
    with staged_output(tmp_path / "one") as staged:
        staged.write_text("new")
        write(tmp_path / "two")
        process = os.fork()
        if not process:
            write(tmp_path / "three")
            os._exit(0)
        assert os.waitpid(process, 0)[1] == 0
        assert staged.read_text() == "new"
    assert names(tmp_path) == ["one", "three", "two"]


def test_a_forked_process_leaves_its_parent_s(tmp_path: Path) -> None:
    staging = StagingFolder(tmp_path)
    staging.make()
    process = os.fork()
    if not process:
        staging.remove()
        os._exit(0)
    assert os.waitpid(process, 0)[1] == 0
    assert staging.files.is_dir()
    staging.remove()
    assert names(tmp_path) == []


@pytest.mark.parametrize("kind", ["folder", "link", "file", "fifo", "longer name", "fifo as a lock", "linked lock"])
def test_what_only_has_such_a_name_stays(kind: str, tmp_path: Path) -> None:
    place, elsewhere = tmp_path / ".pom-export-abcdefgh", tmp_path / "elsewhere"
    left = leave(tmp_path)
    if kind == "folder":
        left.joinpath("lock").write_text("of the user")
        left.rename(place)
    elif kind == "longer name":
        place = left.rename(f"{place}-kept")
    elif kind == "link":
        place.symlink_to(left.rename(elsewhere))
    elif kind == "file":
        left.rename(elsewhere)
        place.write_text("text")
    elif kind == "fifo":
        left.rename(elsewhere)
        os.mkfifo(place)
    elif kind == "fifo as a lock":
        left.joinpath("lock").unlink()
        os.mkfifo(left / "lock")
        left.rename(place)
    else:
        left.joinpath("lock").rename(tmp_path / "lock")
        left.joinpath("lock").symlink_to("../lock")
        left.rename(place)
    before = names(tmp_path)
    write(tmp_path / "m")
    assert names(tmp_path) == sorted(["m", *before])
    if kind in ("folder", "link", "longer name"):
        assert (place / "files" / "m").read_text() == "half"


def test_another_machine_s_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock that another machine holds on a network file system may not be visible here."""
    left = leave(tmp_path)
    monkeypatch.setattr(platform, "node", lambda: "another")
    write(tmp_path / "m")
    assert left.is_dir()


@pytest.mark.machine
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a folder to another user")
def test_another_user_s_stays(tmp_path: Path) -> None:
    left = leave(tmp_path)
    os.chown(left, 12345, 12345)
    write(tmp_path / "m")
    assert left.is_dir()


def test_an_empty_one_goes(tmp_path: Path) -> None:
    """Its process was killed before it could lock anything."""
    (tmp_path / ".pom-export-abcdefgh").mkdir()
    write(tmp_path / "m")
    assert names(tmp_path) == ["m"]


def test_a_place_is_tried_without_a_trace(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("old")
    for name in ("old", "new"):
        check_writable(tmp_path / name, [], "state", 100_000)
    assert names(tmp_path) == ["old"]
    assert (tmp_path / "old").read_text() == "old"
    for place, message in (
        (tmp_path, "is a folder"),
        (tmp_path / "none" / "m", "mkdir -p"),
        (tmp_path / ("m" * 256), "Choose a shorter name"),
        (tmp_path / "old" / "m", "Not a directory"),
        (Path("/dev/null"), "is not a regular file"),
    ):
        with pytest.raises(InputError, match=message):
            check_writable(place, [], "state")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs Linux's /proc, where nobody can make a file")
def test_a_folder_that_takes_no_file_is_found_before_the_work() -> None:
    with pytest.raises(InputError, match="cannot write to /proc"):
        check_writable("/proc/state", [], "state")


def test_a_size_that_may_not_be_written_is_found_before_the_work(tmp_path: Path) -> None:
    process = os.fork()
    if not process:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
        check_writable(tmp_path / "m", [], "state", 1000)
        try:
            check_writable(tmp_path / "m", [], "state", 2**21)
        except InputError as error:
            os._exit(0 if "File too large" in str(error) else 1)
        os._exit(1)
    assert os.waitpid(process, 0)[1] == 0
    assert names(tmp_path) == []


def test_what_is_only_needed_for_a_while_goes_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    leave(tmp_path)
    with FolderLock([tmp_path]), scratch_folder() as scratch:
        # Nobody waits for the lock of a folder that everybody uses.
        assert len(names(tmp_path)) == 2
        (scratch / "m").write_text("new")
    with scratch_folder() as scratch:
        assert names(tmp_path) == [scratch.parent.name]
    assert names(tmp_path) == []


def test_a_folder_that_was_taken_for_a_leftover_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = os.open

    def remove_first(path: Path, flags: int, mode: int = 0o777, **options: int) -> int:
        if path.name == "lock" and not taken:
            taken.append(path)
            path.parent.rmdir()
        return opened(path, flags, mode, **options)

    taken: list[Path] = []
    monkeypatch.setattr(os, "open", remove_first)
    write(tmp_path / "m")
    assert taken
    assert names(tmp_path) == ["m"]
