"""Paths of outputs: one that cannot be written is refused before torch is imported; missing folders are created."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pom_export.cli.main import run

CHECKPOINT = str(Path(__file__).parents[1] / "data" / "golden" / "v2_base" / "checkpoint.pt")


def test_a_missing_folder_is_made(tmp_path: Path) -> None:
    assert run(["export", CHECKPOINT, "-o", str(tmp_path / "new" / "m.onnx"), "--samples", "1", "-q"]) == 0
    report = tmp_path / "pages" / "report.html"
    assert run(["verify", str(tmp_path / "new" / "m.onnx"), "--report", str(report), "-q"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "pages"]
    assert [path.name for path in report.parent.iterdir()] == ["report.html"]


def test_a_folder_that_was_made_goes_with_a_command_that_fails(tmp_path: Path) -> None:
    assert run(["export", str(tmp_path / "none.pt"), "-o", str(tmp_path / "new" / "m.onnx")]) == 2
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "old").mkdir()
    assert run(["export", str(tmp_path / "none.pt"), "-o", str(tmp_path / "old" / "m.onnx")]) == 2
    assert (tmp_path / "old").is_dir()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export", CHECKPOINT, "-o", "none/none/m.onnx"], "folder none/none does not exist, nor does none"),
        (["build", "m.onnx", "-o", "none/none/m.engine"], "Create it: mkdir -p none/none"),
        (["verify", "m.onnx", "--report", "none/none/r.html"], "mkdir -p none/none"),
        (["generate", "m.onnx", "--prompt", "a", "--save-state", "none/none/s.npz"], "mkdir -p none/none"),
        (["export", CHECKPOINT, "-o", "."], "output . is a folder"),
        (["export", CHECKPOINT, "-o", "/proc/m.onnx"], "cannot write to /proc"),
    ],
)
def test_what_cannot_be_written_is_found_before_torch_is_imported(
    arguments: list[str], message: str, tmp_path: Path
) -> None:
    check = (
        f"import sys; from pom_export.cli.main import run; code = run({arguments!r}); "
        "print(code, [m for m in ('torch', 'onnx', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.strip() == "2 []"
    assert message in done.stderr
    assert list(tmp_path.iterdir()) == []
