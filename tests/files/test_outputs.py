"""Outputs appear whole or not at all, and never in the place of something else."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from pom_export.errors import InputError
from pom_export.files import readable_file, staged_output


def write(path: str | Path, *sources: Path, **options: object) -> None:
    with staged_output(path, *sources, **options) as staged:
        staged.write_text("new")


def test_files_beside_move_too_and_nothing_else_is_left(tmp_path: Path) -> None:
    with staged_output(tmp_path / "m") as staged:
        staged.write_text("m")
        staged.with_name("m.data").write_text("data")
        assert not (tmp_path / "m").exists()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["m", "m.data"]


def test_an_error_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "m").write_text("old")
    with pytest.raises(IsADirectoryError), staged_output(tmp_path / "m") as staged:
        staged.write_bytes(tmp_path.read_bytes())
    assert [file.read_text() for file in tmp_path.iterdir()] == ["old"]


def test_no_source_is_replaced(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text("old")
    (tmp_path / "link").symlink_to("b")
    for name in ("b", "link"):
        with pytest.raises(InputError, match="is the input itself"):
            write(tmp_path / name, tmp_path / "a", tmp_path / "b")
    with pytest.raises(InputError, match=r"m.data is the input itself"):
        write_beside(tmp_path / "m", "m.data", tmp_path / "m.data")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a", "b", "link", "m.data"]


def write_beside(path: Path, name: str, source: Path) -> None:
    source.write_text("old")
    with staged_output(path, source) as staged:
        staged.write_text("new")
        staged.with_name(name).write_text("new")


def test_what_is_known_to_go_beside_is_checked_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "m.json").mkdir()
    with (
        pytest.raises(InputError, match=r"m.json is a folder"),
        staged_output(tmp_path / "m", beside=[tmp_path / "m.json"]),
    ):
        pytest.fail("the work was begun")


def test_a_folder_that_is_a_source_keeps_its_files_but_exports_into_it_may_be_repeated(tmp_path: Path) -> None:
    for name in ("model.safetensors", "config.json", "m.onnx"):
        (tmp_path / name).write_text("old")
    for name in ("model.safetensors", "config.json"):
        with pytest.raises(InputError, match="is a file of the input folder"):
            write(tmp_path / name, tmp_path)
    write(tmp_path / "m.onnx", tmp_path)
    assert (tmp_path / "m.onnx").read_text() == "new"


def test_a_link_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    for before in ("old", None):
        if before:
            (tmp_path / "store" / "m").write_text(before)
        else:
            (tmp_path / "store" / "m").unlink()
        (tmp_path / "link").unlink(missing_ok=True)
        (tmp_path / "link").symlink_to("store/m")
        write(tmp_path / "link")
        assert (tmp_path / "link").is_symlink()
        assert [file.read_text() for file in (tmp_path / "store").iterdir()] == ["new"]


def test_a_link_to_itself_is_named(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("link")
    with pytest.raises(InputError, match="leads to itself"):
        write(tmp_path / "link")


def test_stale_files_go_with_what_they_belonged_to(tmp_path: Path) -> None:
    stale = [tmp_path / "m.data", tmp_path / "m.npz"]
    for file in stale:
        file.write_text("old")
    with staged_output(tmp_path / "m", stale=lambda: stale) as staged:
        staged.write_text("new")
        staged.with_name("m.npz").write_text("new")
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"m": "new", "m.npz": "new"}
    with pytest.raises(KeyError), staged_output(tmp_path / "m", stale=lambda: [tmp_path / "m.npz"]):
        raise KeyError
    assert (tmp_path / "m.npz").exists()


def write_where_the_last_move_fails(folder: Path) -> None:
    with staged_output(folder / "m", stale=lambda: [folder / "m.npz"]) as staged:
        for name in ("m", "m.data", "m.json"):
            staged.with_name(name).write_text("new")
        (folder / "m").mkdir()


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_a_move_that_fails_leaves_what_was_there(links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    for name in ("m.data", "m.npz"):
        (tmp_path / name).write_text("old")
    with pytest.raises(InputError, match=r"cannot write .*m: Is a directory"):
        write_where_the_last_move_fails(tmp_path)
    (tmp_path / "m").rmdir()
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"m.data": "old", "m.npz": "old"}


def test_long_names_are_named_as_such(tmp_path: Path) -> None:
    for name in ("m" * 256, "m" * 5000):
        with pytest.raises(InputError, match=r"File name too long. Choose a shorter name"):
            write(tmp_path / name)
        with pytest.raises(InputError, match=r"checkpoint m.+m cannot be read: File name too long"):
            readable_file(name, "checkpoint")
    write(tmp_path / ("m" * 255))
    assert [len(file.name) for file in tmp_path.iterdir()] == [255]


def test_an_input_that_cannot_be_read_is_not_blamed_on_the_output(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="c" * 300), staged_output(tmp_path / "m", "c" * 300):
        Path("c" * 300).stat()
    with pytest.raises(InputError, match=r"cannot write .*m: No space"), staged_output(tmp_path / "m"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert list(tmp_path.iterdir()) == []


def test_names_that_are_no_utf8_are_refused(tmp_path: Path) -> None:
    name = os.fsdecode(b"m\xff")
    with pytest.raises(InputError, match=r"m\\udcff has a name that is not UTF-8"):
        write(tmp_path / name)
    with pytest.raises(InputError, match="has a name that is not UTF-8"):
        readable_file(tmp_path / name, "model")


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("file/m", "Not a directory"),
        ("none/m", "does not exist"),
        ("fifo", "is not a regular file"),
        (".", "is a folder"),
    ],
)
def test_places_that_take_no_file(place: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(InputError, match=message):
        write(tmp_path / place)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["fifo", "file"]


def test_a_name_that_ends_as_a_folders_is_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="new/ is a folder"):
        write(f"{tmp_path}/new/")
    assert list(tmp_path.iterdir()) == []
