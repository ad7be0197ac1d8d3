"""What the tests of the benchmark share: a result that was not measured."""

from __future__ import annotations

import pytest

from pom_export.bench.results import BenchResult, Memory, Point
from pom_export.bench.roofline import Bandwidth, Roofline
from pom_export.bench.statistics import Summary

MIB = 1 << 20


def timed(milliseconds: float) -> Summary:
    return Summary(milliseconds, 0.9 * milliseconds, 1.2 * milliseconds, 0.8 * milliseconds, 5)


@pytest.fixture
def result() -> BenchResult:
    """Two sizes on three backends, one of which did not run at the second."""
    points = [
        Point(1, 256, {"plain": timed(5), "kernel": timed(2), "matmul": timed(1.6)}, memory_roofline_ms=0.2),
        Point(1, 1024, {"kernel": timed(8), "matmul": timed(8)}, skipped={"plain": "would need 99.0 GiB"}),
    ]
    points[0].memory = {"plain": Memory(30 * MIB, 7 * MIB), "kernel": Memory(3 * MIB, 7 * MIB)}
    return BenchResult(
        "a layer",
        ["plain", "kernel", "matmul"],
        {"tensorrt": "it needs a GPU, and none is here"},
        points,
        {
            "processor": "Some CPU",
            "torch": "2",
            "onnxruntime": "1",
            "pom_cpu_kernel": "avx2",
            "date": "2026-01-02T03:04:05",
        },
        {"threads": 2, "dtype": "float32"},
        Roofline([Bandwidth(1 * MIB, 4e10, 3e10), Bandwidth(4 * MIB, 2e10, 1e10)], 1e11),
    )
