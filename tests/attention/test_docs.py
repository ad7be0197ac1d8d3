"""docs/pom.md is right: its Python code runs, and `pom-export scan` prints what the page shows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from pom_export.cli.main import run

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "pom.md").read_text()


@pytest.mark.slow
def test_its_python_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) >= 5
    names: dict[str, Any] = {}
    exec("\n".join(blocks), names)
    assert names["result"].aggregations == 3


def test_its_scan_is_what_is_printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    shown = re.search(r"\$ pom-export (scan .*)\n((?s:.*?))```", PAGE)
    assert shown
    assert run(shown[1].split()) == 0
    assert capsys.readouterr().out == shown[2]


def test_its_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", PAGE):
        assert (ROOT / "docs" / target).exists(), target
    anchors = {
        re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.*)$", PAGE, re.M)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", PAGE)) <= anchors
