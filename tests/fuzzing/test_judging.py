from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

# The beginning of a fault that each command of `faulty` has.
EXPECTED = {
    "no word": "is refused without a word",
    "two lines": "says 2 lines on stderr",
    "long line": "says a line of 3000 characters",
    "escape": "prints control characters on stderr",
    "internal": "internal error",
    "code": "exit code 3",
    "forged": "prints 'sha256' twice",
    "odd line": "prints a line that is no result",
    "crash": "crashes by signal 11",
    "time": "takes no end",
    "memory": "takes 12",
    "raises": "exit code 255",
    "system": "os.system",
    "import": f"imports {'pom_canary'}",
    "eval": "runs text of the file",
    "writes": "writes ",
    "removes": "os.remove ",
    "reads": "opens ",
    "writes past Python": "changes precious/file",
    "leaves": "leaves outputs/half",
    "leaves staging": "leaves outputs/.pom-export-x",
    "accepts": "is accepted",
}


@pytest.fixture(scope="module")
def found() -> dict[str, list[str]]:
    """The faults of each misbehaving command, found in a process without threads, which can fork."""
    command = [sys.executable, "-m", "tests.fuzzing.faulty"]
    root = Path(__file__).parents[2]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True, cwd=root).stdout)


def test_what_is_right_is_no_finding(found: dict[str, list[str]]) -> None:
    assert found["nothing"] == found["refusal"] == []


@pytest.mark.parametrize("name", EXPECTED)
def test_what_is_wrong_is_seen(found: dict[str, list[str]], name: str) -> None:
    assert any(fault.startswith(EXPECTED[name]) for fault in found[name]), found[name]
    assert found.keys() == {"nothing", "refusal", *EXPECTED}
