"""Streams of what `export --stateful` writes, against the official code's outputs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pom_export
from pom_export import StreamingSession, merge_states

GOLDEN = Path(__file__).parents[2] / "data" / "golden"
PATHS = [pytest.param(True, id="kernel"), pytest.param(False, id="function")]


def close(actual: Any, expected: Any) -> bool:
    return bool(np.abs(actual - expected).max() <= 2e-5 * np.abs(expected).max())


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Export a golden case with a state, once for all tests."""
    folder = tmp_path_factory.mktemp("exported")

    @functools.cache
    def export(name: str, **options: Any) -> Path:
        model = folder / f"{name}.onnx"
        pom_export.export(GOLDEN / name / "checkpoint.pt", model, stateful=True, **options)
        return model

    return export


@pytest.mark.slow
@pytest.mark.parametrize("kernels", PATHS)
def test_rows_of_a_hybrid_are_independent(exported: Callable[..., Path], kernels: bool, tmp_path: Path) -> None:
    """Each row continues with its own next tokens, however many the other had, in any split and after any detour."""
    arrays = np.load(GOLDEN / "gpt_hybrid" / "io.npz")
    ids, expected = arrays["input_ids"], arrays["logits"]
    session = StreamingSession(exported("gpt_hybrid", mask="padding"), batch=2, kernels=kernels)
    random_state = np.random.default_rng(0)
    while session.lengths.min() < ids.shape[1]:
        before = session.lengths
        counts = np.minimum(random_state.integers(0, 4, 2), ids.shape[1] - before)
        if not counts.any():
            continue
        tokens = np.zeros((2, counts.max()), np.int64)
        for row, count in enumerate(counts):
            tokens[row, :count] = ids[row, before[row] : before[row] + count]
        if counts.max() == 1:
            outputs = session.step(tokens[:, 0], mask=counts == 1)[:, np.newaxis]
        else:
            outputs = session.prefill(tokens, lengths=counts)
        for row, count in enumerate(counts):
            if count:
                assert close(outputs[row, :count], expected[row, before[row] : before[row] + count])
        if session.length % 5 == 0:
            state = session.snapshot()
            state.save(tmp_path / "state")
            session = session.fork()
            session.prefill(tokens)
            session.restore(pom_export.State.load(tmp_path / "state"))


@pytest.mark.parametrize("kernels", PATHS)
def test_positions_go_with_the_tokens(exported: Callable[..., Path], kernels: bool) -> None:
    arrays = np.load(GOLDEN / "rope1d" / "io.npz")
    x, places, expected = arrays["xq"], arrays["positions"], arrays["y_causal"]
    session = StreamingSession(exported("rope1d", positions=True), batch=len(x), kernels=kernels)
    outputs = [session.prefill(x[:, :7], positions=places[:7])]
    outputs += [session.step(x[:, n], positions=places[n : n + 1])[:, np.newaxis].copy() for n in range(7, 12)]
    outputs += [session.prefill(x[:, 12:], positions=places[12:])]
    assert close(np.concatenate(outputs, 1), expected)
    with pytest.raises(pom_export.PomExportError, match="positions holds 64, beyond the model's 64 values"):
        session.step(x[:, 0], positions=[64])


@pytest.mark.parametrize("kernels", PATHS)
def test_a_mixer_s_merged_state_is_that_of_all_tokens(exported: Callable[..., Path], kernels: bool) -> None:
    arrays = np.load(GOLDEN / "v2_heads" / "io.npz")
    x, expected = arrays["xq"], arrays["y_causal"]
    parts = []
    for part in np.array_split(x[:, :-1], 3, axis=1):
        shard = StreamingSession(exported("v2_heads"), batch=len(x), kernels=kernels)
        shard.prefill(part)
        parts.append(shard.snapshot())
    merged = StreamingSession(exported("v2_heads"), batch=len(x), kernels=kernels)
    merged.restore(merge_states(*parts))
    assert close(merged.step(x[:, -1]), expected[:, -1])
    assert merged.length == x.shape[1]
