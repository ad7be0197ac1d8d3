"""Folders of outputs appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from pom_export.errors import InputError
from pom_export.files import staged_folder
from tests.files.killing import killed_at_every_moment


def write(path: Path, text: str = "new", **options: object) -> None:
    with staged_folder(path, **options) as staged:
        (staged / "inner").mkdir()
        (staged / "inner" / "file").write_text(text)


def tree(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()}


def test_it_appears_with_all_that_is_in_it(tmp_path: Path) -> None:
    with staged_folder(tmp_path / "f") as staged:
        (staged / "file").write_text("new")
        assert not (tmp_path / "f").exists()
    assert tree(tmp_path) == {"f/file": "new"}
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "f"]


def test_an_error_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "old").write_text("old")
    with pytest.raises(ZeroDivisionError), staged_folder(tmp_path / "f", lambda _: True) as staged:
        (staged / "file").write_text(str(1 / 0))
    assert tree(tmp_path) == {"f/old": "old"}
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_only_what_is_replaceable_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "old").write_text("old")
    with pytest.raises(InputError, match="exists and is not empty") as caught:
        write(tmp_path / "f", replaceable=lambda folder: (folder / "mark").exists(), hint="Rename it")
    assert caught.value.hint == "Rename it"
    (tmp_path / "f" / "mark").touch()
    write(tmp_path / "f", replaceable=lambda folder: (folder / "mark").exists())
    assert tree(tmp_path) == {"f/inner/file": "new"}


def test_files_links_and_missing_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path)
    for name, message in (("file", "no folder"), ("link", "a link"), ("none/f", "does not exist")):
        with pytest.raises(InputError, match=message):
            write(tmp_path / name, replaceable=lambda _: True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]


@pytest.mark.parametrize("name", ["", ".", "..", "f/..", "/"])
def test_places_without_a_name_are_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "f").mkdir()
    monkeypatch.chdir(tmp_path / "f")
    with pytest.raises(InputError, match="is a place, not the name of a folder"):
        write(Path(name), replaceable=lambda _: True)
    assert list((tmp_path / "f").iterdir()) == []


def test_what_came_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="exists and is not empty"), staged_folder(tmp_path / "f"):
        write(tmp_path / "f", "theirs")
    assert tree(tmp_path) == {"f/inner/file": "theirs"}
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_a_killed_process_leaves_nothing_half_written(tmp_path: Path) -> None:
    write(tmp_path / "f", "old")

    def work() -> None:
        write(tmp_path / "f", "new", replaceable=lambda _: True)

    seen = []
    for _ in killed_at_every_moment(work):
        found = tree(tmp_path / "f")
        assert found in ({}, {"inner/file": "old"}, {"inner/file": "new"})
        seen.append(found.get("inner/file"))
        write(tmp_path / "f", "old", replaceable=lambda _: True)
        assert [path.name for path in tmp_path.iterdir()] == ["f"]
    assert {"old", "new"} < set(seen)
