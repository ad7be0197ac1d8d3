"""The benchmark of many streams, on models small enough for a test; no test depends on how long anything takes."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.names import SERVING_BACKENDS
from benchmarks.serving.workload import ServingWorkload
from benchmarks.stream.models import StreamShape
from pom_export import StreamingSession
from pom_export.bench.measuring import measure_time
from pom_export.bench.options import BenchOptions, Size
from pom_export.bench.results import Point
from pom_export.bench.running import bench
from tests.other_runtimes import genai_folder

pytestmark = pytest.mark.slow

SHAPE = StreamShape(dim=16, degree=2, expand=1, heads=2, layers=2)
OPTIONS = BenchOptions(tokens=[3, 1], threads=1, warmup=0, repeats=1)
STATE = 2 * 2 * (2 * 16) * 4 + 8
"""Bytes of the sums of two mixers, and of the number of tokens."""


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> ServingWorkload:
    genai_folder()
    workload = ServingWorkload(SHAPE)
    workload.turn_s = 0.0
    workload.prepare(OPTIONS, tmp_path_factory.mktemp("serving"), lambda _: None)
    return workload


def test_all_run_and_those_with_mixers_agree(serving: ServingWorkload) -> None:
    assert serving.backends == list(SERVING_BACKENDS)
    assert serving.sizes == [Size(1, 1), Size(1, 3)]
    (point,) = measure_time(serving, serving.backends, [Point(1, 3)], OPTIONS)
    assert point.skipped == {}
    assert point.timings.keys() == set(SERVING_BACKENDS)
    assert max(point.differences["sessions"], point.differences["genai"]) < 1e-6


@pytest.mark.parametrize("backend", SERVING_BACKENDS)
def test_each_run_is_the_next_token_of_every_stream(backend: str, serving: ServingWorkload) -> None:
    feed = serving.inputs(backend, Size(1, 3), 0)
    first = feed["input_ids"][:, 0].copy()
    bound = serving.load(backend, Size(1, 3), 1).bind(feed)
    assert bound.outputs[0].shape == (3, 256)
    if backend == "genai":
        alone = StreamingSession(serving.folder / "model.onnx", batch=3)
        np.testing.assert_allclose(bound.outputs[0], alone.step(first), atol=1e-5)
        bound.run()
        return
    if backend not in ("pool", "sessions"):
        assert (feed["input_ids"][:, 0] == first).all()
        bound.run()
        np.testing.assert_array_equal(feed["input_ids"][:, 0], bound.outputs[0].argmax(-1))
        return
    alone = StreamingSession(serving.folder / "model.onnx", batch=3)
    alone.step(first)
    tokens = bound.outputs[0].argmax(-1)
    for _ in range(3):
        expected = alone.step(tokens)
        np.testing.assert_allclose(np.concatenate(list(bound.run())).reshape(expected.shape), expected, atol=1e-5)
        tokens = expected.argmax(-1)


def test_a_whole_benchmark_in_workers() -> None:
    genai_folder()
    result = bench(ServingWorkload(SHAPE), OPTIONS)
    assert [point.tokens for point in result.points] == [1, 3]
    for point in result.points:
        assert point.timings.keys() == point.memory.keys() == set(SERVING_BACKENDS)
        assert point.facts["tokens_per_second"].keys() == set(SERVING_BACKENDS)
        held = {name: memory.tensor_bytes for name, memory in point.memory.items()}
        cache = 2 * SHAPE.layers * SHAPE.dim * 4
        assert held == {
            "pool": STATE, "sessions": STATE, "genai": STATE,
            "attention-1k": 1024 * cache, "attention-8k": 8192 * cache,
        }  # fmt: skip
