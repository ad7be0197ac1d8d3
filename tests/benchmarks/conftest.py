"""Fixtures of the benchmarks' tests: results that were not measured."""

from __future__ import annotations

import pytest

from benchmarks.layer.workload import LayerWorkload
from benchmarks.serving.workload import ServingWorkload
from benchmarks.stream.models import StreamShape
from benchmarks.stream.workload import StreamWorkload
from pom_export.bench.results import BenchResult, Memory, Point, Summary

MIB = 1 << 20
MACHINE = {
    "processor": "Some CPU",
    "torch": "2",
    "onnxruntime": "1",
    "pom_cpu_kernel": "avx2",
    "date": "2026-01-02T03:04:05",
}
OPTIONS = {"threads": 2, "dtype": "float32"}


def timed(milliseconds: float) -> Summary:
    return Summary(milliseconds, 0.9 * milliseconds, 1.2 * milliseconds, 0.8 * milliseconds, 1.5 * milliseconds, 5)


@pytest.fixture
def layer_result() -> BenchResult:
    """Two sizes on three backends, one of which did not run at the second."""
    points = [
        Point(1, 256, {"plain": timed(5), "kernel": timed(2), "matmul": timed(1.6)}),
        Point(1, 1024, {"kernel": timed(8), "matmul": timed(8)}, skipped={"plain": "would need 99.0 GiB"}),
    ]
    points[0].facts["memory_roofline_ms"] = 0.2
    points[0].memory = {"plain": Memory(30 * MIB, 7 * MIB), "kernel": Memory(3 * MIB, 7 * MIB)}
    backends = ["plain", "kernel", "matmul"]
    return BenchResult("a layer", backends, {}, points, MACHINE, OPTIONS, LayerWorkload.labels)


@pytest.fixture
def stream_result() -> BenchResult:
    """Two contexts on three backends, two of which are attention and did not run after the longer one."""
    why = "its cache is 16.0 GiB; it is timed up to 32768"
    points = [
        Point(1, 1, {"kernel": timed(2), "attention": timed(5), "attention-shared": timed(1)}),
        Point(
            1, 1 << 20, {"kernel": timed(2.02)}, {"kernel": Memory(0, MIB // 16)},
            {"attention": why, "attention-shared": why},
        ),
    ]  # fmt: skip
    points[0].memory = {"kernel": Memory(0, MIB // 16), "attention": Memory(6 * MIB, 3 * MIB)}
    backends = ["kernel", "attention", "attention-shared"]
    return BenchResult("a model", backends, {}, points, MACHINE, OPTIONS, StreamWorkload.labels)


@pytest.fixture
def serving_result() -> BenchResult:
    """One and eight streams; the caches of eight did not fit."""
    points = [
        Point(1, 1, {"pool": timed(2), "sessions": timed(2), "attention-8k": timed(16)}),
        Point(1, 8, {"pool": timed(4), "sessions": timed(16)}, skipped={"attention-8k": "would need 99.0 GiB"}),
    ]
    points[1].memory = {"pool": Memory(MIB // 4, MIB // 8), "sessions": Memory(MIB // 8, MIB // 8)}
    backends = ["pool", "sessions", "attention-8k"]
    result = BenchResult("many streams", backends, {}, points, MACHINE, OPTIONS, ServingWorkload.labels)
    ServingWorkload(StreamShape()).complete(result)
    return result
