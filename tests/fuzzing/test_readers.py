"""Hostile files for every reader, the same ones each time; `make fuzz` continues with others."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.fuzzing.client import Client, Outcome
from tests.fuzzing.formats import FORMATS, valid
from tests.fuzzing.regressions import REGRESSIONS

pytestmark = pytest.mark.slow

# The number of files of each format, in all more than a thousand; slow formats get fewer.
COUNTS = {
    "averages": 120,
    "checkpoint": 240,
    "folder": 80,
    "inputs": 90,
    "legacy": 80,
    "manifest": 70,
    "onnx": 140,
    "parity": 90,
    "pt2": 120,
    "quantized": 200,
    "safetensors": 150,
    "state": 90,
    "tokenizer": 60,
}


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with Client() as running:
        yield running


def test_good_files_are_taken(client: Client) -> None:
    # So whatever is refused below is refused because of what was changed.
    outcomes = [client.run("valid", seed) for seed in valid.SEEDS]
    assert _bad(outcomes) == ""
    assert {outcome.arguments[0] for outcome in outcomes if outcome.code == 0} >= {"inspect", "export", "verify"}
    assert len({tuple(Path(word).name for word in outcome.arguments) for outcome in outcomes}) == len(valid.SEEDS)


@pytest.mark.parametrize("name", COUNTS)
def test_hostile_files_are_refused_or_computed(client: Client, name: str) -> None:
    count, first = COUNTS[name], COUNTS[name] // 10
    found = _faults(client, name, (*range(first), *REGRESSIONS.get(name, ())), least_reasons=first // 4)
    found += _faults(client, name, range(first, count), least_reasons=count // 20 + 1)
    assert "\n".join(found) == ""


def test_every_format_has_its_cases() -> None:
    assert COUNTS.keys() == FORMATS.keys() - {"valid"} >= REGRESSIONS.keys()
    assert sum(COUNTS.values()) > 1000


def _faults(client: Client, name: str, seeds: Iterable[int], least_reasons: int) -> list[str]:
    """Return what is wrong with a format's cases, nothing if all is right."""
    outcomes = [client.run(name, seed) for seed in dict.fromkeys(seeds)]
    # These pass the first check, and are refused for many different reasons.
    reasons = {re.sub(r"\d+|/\S+", "", outcome.said)[:60] for outcome in outcomes if outcome.code}
    few = [] if len(reasons) >= least_reasons else [f"{name}: {len(reasons)} reasons, not {least_reasons}: {reasons}"]
    return [*(str(outcome) for outcome in outcomes if outcome.faults), *few]


def _bad(outcomes: list[Outcome]) -> str:
    return "\n".join(str(outcome) for outcome in outcomes if outcome.faults)
