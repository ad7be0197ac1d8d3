"""Hostile files for every reader, the same ones each time; `make fuzz` goes on with others."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.fuzzing.client import Client, Outcome
from tests.fuzzing.formats import FORMATS, valid
from tests.fuzzing.regressions import REGRESSIONS

# How many of each format, in all more than a thousand; those that are slow are fewer.
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
    "safetensors": 150,
    "state": 90,
    "tokenizer": 60,
}


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with Client() as running:
        yield running


def test_good_files_are_taken(client: Client) -> None:
    # So what is refused below is refused for what was done to it.
    outcomes = [client.run("valid", seed) for seed in range(valid.COUNT)]
    assert _bad(outcomes) == ""
    assert {outcome.arguments[0] for outcome in outcomes if outcome.code == 0} >= {"inspect", "export", "verify"}


@pytest.mark.parametrize("name", COUNTS)
def test_hostile_files_are_refused_or_computed(client: Client, name: str) -> None:
    seeds = dict.fromkeys((*range(COUNTS[name]), *REGRESSIONS.get(name, ())))
    outcomes = [client.run(name, seed) for seed in seeds]
    assert _bad(outcomes) == ""
    # They get past the first check: what is wrong with them is told in many ways.
    reasons = {re.sub(r"\d+|/\S+", "", outcome.said)[:60] for outcome in outcomes if outcome.code}
    assert len(reasons) > COUNTS[name] // 20


def test_every_format_has_its_cases() -> None:
    assert COUNTS.keys() == FORMATS.keys() - {"valid"} >= REGRESSIONS.keys()
    assert sum(COUNTS.values()) > 1000


def _bad(outcomes: list[Outcome]) -> str:
    return "\n".join(str(outcome) for outcome in outcomes if outcome.faults)
