"""The oldest versions are the same wherever the repository names them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pom_export.engine import backend
from pom_export.runtime import session
from pom_export.torch_patches import OLDEST

ROOT = Path(__file__).parents[1]
_REQUIREMENT = re.compile(r'"([a-z0-9-]+)>=([0-9.]+)"')
# What `make test-oldest` installs: the package's requirements, and these extras.
_EXTRAS = ("onnxruntime", "tensorrt-rtx", "text")


def accepted() -> dict[str, str]:
    """Return the lowest version that pyproject.toml allows for each package."""
    text = (ROOT / "pyproject.toml").read_text()
    lists = [re.search(r"^dependencies = \[.*?^\]", text, re.MULTILINE | re.DOTALL)]
    lists += [re.search(rf"^{extra} = \[.*\]$", text, re.MULTILINE) for extra in _EXTRAS]
    return {name: version for found in lists if found for name, version in _REQUIREMENT.findall(found[0])}


def pins() -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9-]+)==([0-9.]+)$", (ROOT / "constraints-oldest.txt").read_text(), re.MULTILINE))


def numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def test_the_oldest_are_what_is_accepted() -> None:
    lowest = accepted()
    assert len(lowest) > 10
    assert pins().keys() == lowest.keys()
    for name, pin in pins().items():
        # The first release that is accepted: 1.22 is 1.22.0.
        assert numbers(pin)[: len(numbers(lowest[name]))] == numbers(lowest[name]), name


@pytest.mark.parametrize("package", ["onnxruntime", "tensorrt-rtx-cu13"])
def test_hints_name_what_is_accepted(package: str) -> None:
    hints = [session._INSTALL_HINT, *backend.PACKAGES.values()]
    assert any(f"{package}>={accepted()[package]}" in hint for hint in hints)


def test_torch_is_refused_below_what_is_accepted() -> None:
    assert numbers(accepted()["torch"]) == OLDEST


@pytest.mark.parametrize(("end", "column"), [("OLDEST", 0), ("NEWEST", 1)])
def test_both_ends_of_python_are_tested(end: str, column: int) -> None:
    page = (ROOT / "docs" / "versions.md").read_text()
    (row,) = re.findall(r"^\| Python \| ([0-9.]+) \| ([0-9.]+) \|$", page, re.MULTILINE)
    makefile = (ROOT / "Makefile").read_text()
    assert re.findall(rf"^PYTHON_{end} \?= .* ([0-9.]+)$", makefile, re.MULTILINE) == [row[column]]
    assert f"make test-{end.lower()}\n" in (ROOT / ".ci/run").read_text()


def test_the_oldest_python_is_what_is_accepted() -> None:
    (lowest,) = re.findall(r'^requires-python = ">=([0-9.]+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert f"PYTHON_OLDEST ?= $(PYTHON) tools/find_python.py {lowest}\n" in (ROOT / "Makefile").read_text()
