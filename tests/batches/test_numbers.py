"""Batches give what each sequence gives by itself, in every mode."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import pom_export
from pom_export.batches import calling
from pom_export.batches.calling import Caller, Row
from pom_export.batches.interface import read_interface
from pom_export.batches.probing import Behaviour, probe
from pom_export.errors import InputError
from pom_export.graph.exported_model import TOKENS
from pom_export.mixer import PolynomialMixer
from tests.slow_cases import slow_cases
from tests.small_models import VOCABULARY, hybrid, image_model

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
WIDTH = 32
Sequence = Mapping[str, np.ndarray]
LENGTHS = (7, 1, 40, 7, 23, 2, 150, 40, 3, 22)


def mixed(random: np.random.Generator, count: int, width: int = WIDTH) -> np.ndarray:
    return random.standard_normal((count, width)).astype(np.float32)


class Own(nn.Module):
    """A user's model, whose second mixer takes a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.first = PolynomialMixer(16, degree=2, expand=2)
        self.second = PolynomialMixer(16, degree=3, expand=1)


class Careful(Own):
    """Averages over the tokens that its mask keeps."""

    def forward(self, tokens: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        y = self.second(tokens + self.first(tokens, mask=keep), mask=keep)
        weights = keep.unsqueeze(-1).to(y.dtype)
        return (y * weights).sum(1) / weights.sum(1)


class Careless(Own):
    """Averages over all tokens, whatever its mask keeps."""

    def forward(self, tokens: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        return self.second(tokens + self.first(tokens, mask="causal"), mask=keep).mean(1)


class Mingled(Own):
    """Adds the mean of all rows to each."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        y = self.second(self.first(tokens, mask="causal"), mask="causal")
        return y + y.mean(0, keepdim=True)


def own(kind: type[Own], path: Path) -> None:
    torch.manual_seed(0)
    examples: tuple[torch.Tensor, ...] = (torch.randn(2, 6, 16), torch.ones(2, 6, dtype=torch.bool))
    pom_export.export(kind().eval(), path, example_inputs=examples[: 1 if kind is Mingled else 2])


def mixer(name: str = "v2_base", **options: Any) -> Callable[[Path], Any]:
    return lambda path: pom_export.export(GOLDEN / name / "checkpoint.pt", path, **options)


def keeping(random: np.random.Generator, count: int) -> Sequence:
    return {"tokens": mixed(random, count, 16), "keep": np.append(random.random(count - 1) < 0.7, [True])}


# By name: how to export a file, a sequence of it, and the dimensions that may be padded.
Case = tuple[Callable[[Path], Any], Callable[[np.random.Generator, int], Any], set[str]]
CASES: dict[str, Case] = {
    "no mask": (mixer(mask="none"), mixed, set()),
    "causal": (mixer(mask="causal"), mixed, {TOKENS}),
    "padding": (
        mixer(mask="padding"), lambda random, n: {"x": mixed(random, n), "mask": random.random(n) < 0.6}, {TOKENS}
    ),
    "full": (
        mixer(mask="full"), lambda random, n: {"x": mixed(random, n), "mask": random.random((n, n)) < 0.6}, {TOKENS}
    ),
    "cross": (
        mixer("v2_cross", cross=True),
        lambda random, n: {"x": mixed(random, n), "context": mixed(random, 1 + n % 3)},
        {TOKENS},
    ),
    "cross with padding": (
        mixer("v2_cross", cross=True, mask="padding"),
        lambda random, n: {"x": mixed(random, 1 + n % 5), "context": mixed(random, n), "mask": random.random(n) < 0.6},
        {TOKENS, "context_tokens"},
    ),
    "positions": (
        mixer("rope1d_heads", mask="causal", positions=True),
        lambda random, n: {"x": mixed(random, min(n, 60)), "positions": np.arange(min(n, 60)) + n % 2},
        {TOKENS},
    ),
    "streaming with a mask": (
        mixer(mask="padding", stateful=True),
        lambda random, n: {"x": mixed(random, n), "mask": np.arange(n) < n - n // 4},
        {TOKENS},
    ),
    "streaming hybrid": (
        lambda path: pom_export.export(hybrid(), path, stateful=True),
        lambda random, n: random.integers(0, VOCABULARY, n),
        {TOKENS},
    ),
    "image model": (
        lambda path: pom_export.export(image_model(), path),
        lambda random, _: {
            "x": random.standard_normal((3, 8, 8)).astype(np.float32),
            "t": np.float32(random.random()),
            "y": np.int64(random.integers(0, 4)),
        },
        set(),
    ),
    "own, careful": (lambda path: own(Careful, path), keeping, {TOKENS}),
    "own, careless": (lambda path: own(Careless, path), keeping, set()),
    "own, mingled": (lambda path: own(Mingled, path), lambda random, n: mixed(random, n, 16), set()),
}  # fmt: skip

SLOW = {
    "no mask",
    "padding",
    "full",
    "cross",
    "streaming hybrid",
    "image model",
    "own, careful",
    "positions",
    "cross with padding",
}


def alone(session: Any, sequence: Any) -> list[np.ndarray]:
    """Return what a sequence gives in a call of its own."""
    interface = read_interface(session)
    named = sequence if isinstance(sequence, dict) else {next(iter(interface.inputs)): sequence}
    specs = interface.inputs
    feed = {n: a[np.newaxis] if interface.batch_axis(specs[n]) == 0 else a for n, a in named.items()}
    outputs = session.run(list(interface.outputs), feed | interface.empty_past(1))
    return [output[0] for output in outputs]


def assert_as_alone(session: Any, sequences: list[Any], found: list[dict[str, np.ndarray]]) -> None:
    assert len(found) == len(sequences)
    for sequence, outputs in zip(sequences, found, strict=True):
        for array, expected in zip(outputs.values(), alone(session, sequence), strict=True):
            assert array.shape == expected.shape
            assert array.dtype == expected.dtype
            np.testing.assert_allclose(array, expected, rtol=1e-5, atol=1e-5 * max(np.abs(expected).max(), 1e-3))


class Counting:
    """A session that counts its calls."""

    def __init__(self, session: Any) -> None:
        self.session = session
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)

    def run(self, *arguments: Any) -> Any:
        self.calls += 1
        return self.session.run(*arguments)


@pytest.mark.parametrize("name", slow_cases(CASES, SLOW.__contains__))
def test_numbers_are_those_of_one_sequence_at_a_time(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calling, "PIECE", 32)
    export, draw, padded = CASES[name]
    export(tmp_path / "m.onnx")
    session = Counting(pom_export.inference_session(tmp_path / "m.onnx"))
    random = np.random.default_rng(0)
    sequences = [draw(random, length) for length in LENGTHS]

    found = pom_export.run(session, sequences, batch=4, max_tokens=200)

    assert_as_alone(session, sequences, found)
    interface = read_interface(session)
    assert probe(Caller(session, interface), interface) == Behaviour(name != "own, mingled", frozenset(padded))


def test_long_sequences_go_through_the_state_in_pieces(tmp_path: Path) -> None:
    pom_export.export(GOLDEN / "v2_base" / "checkpoint.pt", tmp_path / "m.onnx", mask="causal", stateful=True)
    session = Counting(pom_export.inference_session(tmp_path / "m.onnx"))
    random = np.random.default_rng(0)
    sequences = [mixed(random, length) for length in (5000, 2049, 4096, 2048)]
    interface = read_interface(session)
    rows = [Row("it", {"x": each}, {TOKENS: len(each)}) for each in sequences]

    found = Caller(session, interface).call(rows)

    assert session.calls == 3
    assert_as_alone(session, sequences, found)


def test_few_calls_for_many_sequences_and_none_for_none(tmp_path: Path) -> None:
    pom_export.export(GOLDEN / "v2_base" / "checkpoint.pt", tmp_path / "m.onnx", mask="causal")
    session = Counting(pom_export.inference_session(tmp_path / "m.onnx"))
    random = np.random.default_rng(0)
    sequences = [mixed(random, length) for length in random.integers(10, 20, 500)]
    interface = read_interface(session)
    probe(Caller(session, interface), interface)
    probing, session.calls = session.calls, 0
    found = pom_export.run(session, sequences, batch=100, max_tokens=10**4)
    assert session.calls == probing + 5
    assert_as_alone(session, sequences, found)
    assert pom_export.run(session, []) == []


def test_a_file_of_fixed_sizes_is_filled_up(tmp_path: Path) -> None:
    pom_export.export(GOLDEN / "v2_base" / "checkpoint.pt", tmp_path / "m.onnx", mask="causal", static=(2, 16))
    session = Counting(pom_export.inference_session(tmp_path / "m.onnx"))
    sequences = [mixed(np.random.default_rng(seed), 16) for seed in range(5)]
    found = pom_export.run(session, sequences)
    for sequence, outputs in zip(sequences, found, strict=True):
        (expected,) = session.run(None, {"x": np.stack([sequence, sequence])})
        np.testing.assert_allclose(outputs["y"], expected[0], rtol=1e-5, atol=1e-6)
    with pytest.raises(InputError, match=r"sequence 1: x has the shape \[15, 32\], not \[16, 32\]"):
        pom_export.run(session, [sequences[0], sequences[1][:15]])
