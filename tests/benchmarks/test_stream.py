"""The stream benchmark, on models small enough for a test; no test depends on how long anything takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.stream.group_query import write_group_query
from benchmarks.stream.inputs import drawn_tokens, past_bytes, state_file
from benchmarks.stream.models import StreamShape, make_model
from benchmarks.stream.prefill import prefill
from benchmarks.stream.workload import StreamWorkload
from pom_export.bench.measuring import measure_time
from pom_export.bench.options import BenchOptions, Size
from pom_export.bench.results import Point
from pom_export.bench.running import bench
from pom_export.errors import InputError, ParityError
from pom_export.runtime import State, StreamingSession

pytestmark = pytest.mark.slow

SHAPE = StreamShape(dim=16, degree=2, expand=1, heads=2, layers=2)
ALL = ["function", "kernel", "attention", "attention-shared"]
CONTEXTS = [1, 5, 12]
SIZES = [Size(1, context) for context in CONTEXTS]
SEED = 3
TWICE = BenchOptions(threads=1, seed=SEED, warmup=0, repeats=2)
CACHE = 2 * SHAPE.layers * SHAPE.dim * 4  # bytes per token


def silent(_: str) -> None:
    pass


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> StreamWorkload:
    """All files, and the states after all contexts."""
    workload = StreamWorkload(SHAPE)
    options = BenchOptions(tokens=CONTEXTS[::-1], seed=SEED)
    workload.write_models(options, tmp_path_factory.mktemp("stream"), silent)
    found = prefill(workload.file_of("kernel"), CONTEXTS[::-1], TWICE, kernels=True)
    assert list(found) == CONTEXTS
    assert all(each.resident_bytes > 0 for each in found.values())
    return workload


def outputs_of(stream: StreamWorkload, name: str, feed: dict[str, np.ndarray]) -> dict[str, Any]:
    runner: Any = stream.load(name, SIZES[0], 1)
    names = [value.name for value in runner._session.get_outputs()]
    return dict(zip(names, runner.bind(feed).outputs, strict=True))


def test_all_backends_run_from_all_contexts_and_agree(stream: StreamWorkload) -> None:
    assert stream.backends == ALL
    assert stream.not_run == {}
    assert stream.sizes == SIZES
    for found in measure_time(stream, ALL, [Point(*size) for size in SIZES], TWICE):
        assert found.skipped == {}
        assert {name: timed.runs for name, timed in found.timings.items()} == dict.fromkeys(ALL, 2)
        assert found.differences.keys() == {"kernel", "attention-shared"}
        assert max(found.differences.values()) < 1e-5


def test_a_whole_benchmark_in_workers() -> None:
    options = BenchOptions(("kernel", "attention-shared"), (1, 20), threads=1, warmup=0, repeats=3, memory=False)
    result = bench(StreamWorkload(SHAPE), options)
    assert [point.tokens for point in result.points] == [1, 20]
    for point in result.points:
        assert point.timings.keys() == {"kernel", "attention-shared"}
        assert {timing.runs for timing in point.timings.values()} == {3}
        assert point.facts["prefill"]["resident_bytes"] > 0
    assert result.facts["last_over_first"].keys() == {"kernel", "attention-shared"}


def test_states_are_those_of_so_many_real_tokens(stream: StreamWorkload) -> None:
    text = drawn_tokens(SEED, 13).astype(np.int64)
    assert list(text[:5]) == list(drawn_tokens(SEED, 5))
    session = StreamingSession(stream.file_of("kernel"))
    for context in CONTEXTS:
        session.reset()
        session.prefill(text[:context])
        saved = State.load(state_file(stream.folder, context))
        assert saved.lengths.tolist() == [context]
        for name, array in session.snapshot().arrays.items():
            np.testing.assert_allclose(saved.arrays[name], array, rtol=1e-5, atol=1e-6)


def test_a_step_is_the_model_on_the_next_token(stream: StreamWorkload) -> None:
    text = torch.from_numpy(drawn_tokens(SEED, 13).astype(np.int64))[None]
    with torch.inference_mode():
        expected = make_model(SHAPE, SEED)(text)[:, -1]
    logits = outputs_of(stream, "kernel", stream.inputs("kernel", Size(1, 12), SEED))["logits"]
    np.testing.assert_allclose(logits[:, 0], expected.numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["attention", "attention-shared"])
def test_attention_is_that_of_the_model(name: str, stream: StreamWorkload) -> None:
    """Starting without a context, token by token: each step's cache goes into the next one."""
    text = drawn_tokens(SEED, 6).astype(np.int64)
    with torch.inference_mode():
        expected = make_model(SHAPE, SEED, attention=True)(torch.from_numpy(text)[None]).numpy()
    feed = stream.inputs(name, Size(1, 0), SEED)
    if name == "attention-shared":
        feed = {key: np.zeros((1, 1, 6, 16), np.float32) if "key_values" in key else a for key, a in feed.items()}
    for place in range(6):
        feed |= {"input_ids": text[None, place : place + 1], "past_length": np.array([place])}
        outputs = outputs_of(stream, name, feed)
        np.testing.assert_allclose(outputs["logits"][:, 0], expected[:, place], rtol=1e-4, atol=1e-4)
        presents = {key.replace("present", "past_key_values"): array for key, array in outputs.items()}
        feed |= {key: array.copy() for key, array in presents.items() if key in feed}


def test_only_the_cache_in_place_is_written_to(stream: StreamWorkload) -> None:
    caches = {}
    for name in ("attention", "attention-shared"):
        feed = stream.inputs(name, Size(1, 5), SEED)
        before = feed["past_key_values.1.value"].copy()
        outputs = outputs_of(stream, name, feed)
        after, caches[name] = feed["past_key_values.1.value"], outputs["present.1.value"]
        np.testing.assert_array_equal(after[:, :, :5], before[:, :, :5])
        assert np.shares_memory(after, caches[name]) is (name == "attention-shared")
        assert past_bytes(feed, 5) == 5 * CACHE + 8
    np.testing.assert_allclose(*caches.values(), rtol=1e-5, atol=1e-6)


def test_backends_that_differ_end_the_benchmark(stream: StreamWorkload) -> None:
    file = stream.file_of("attention-shared")
    saved = file.read_bytes()
    file.unlink()
    try:
        write_group_query(make_model(SHAPE, SEED + 1, attention=True), 13, file)
        with pytest.raises(ParityError, match="at tokens before 1: attention-shared and attention differ by"):
            measure_time(stream, ALL, [Point(*size) for size in SIZES], TWICE)
    finally:
        file.write_bytes(saved)


def test_memory_is_measured_against_no_context(stream: StreamWorkload) -> None:
    found = {name: stream.measure_memory(name, Size(1, 12), TWICE) for name in ALL}
    assert all(each.growth_bytes is not None and each.growth_bytes >= 0 for each in found.values())
    # The sums of 2 layers, 2 * 16 channels each with their rounding errors, and one length.
    state, cache = 2 * 2 * 32 * 4 + 8, 12 * CACHE + 8
    assert [found[name].tensor_bytes for name in ALL] == [state, state, cache, cache]


def test_attention_is_not_run_where_it_would_take_too_much(stream: StreamWorkload) -> None:
    long, longer = Size(1, 16384), Size(1, 40000)
    assert stream.bytes_needed("attention", long) == 2 * stream.bytes_needed("attention-shared", long)
    assert stream.bytes_needed("attention-shared", long) == 16384 * CACHE
    assert stream.bytes_needed("kernel", longer) == 0
    assert stream.excluded("attention-shared", long) is None
    assert "timed up to 32768" in (stream.excluded("attention-shared", longer) or "")
    assert stream.excluded("kernel", longer) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": (2,)}, "batch 1"),
        ({"backends": ["attention-shared"]}, "no mixer can run"),
    ],
)
def test_what_no_stream_supports_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        bench(StreamWorkload(SHAPE), BenchOptions(**options))


def test_an_odd_width_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="heads of even width"):
        StreamWorkload(StreamShape(dim=15)).write_models(BenchOptions(), tmp_path, silent)
