"""Fixtures of the benchmark's tests: a result that was not measured, and an exported file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import pom_export
from pom_export.bench.results import BenchResult, Memory, Point, Summary

MIB = 1 << 20


def timed(milliseconds: float) -> Summary:
    return Summary(milliseconds, 0.9 * milliseconds, 1.2 * milliseconds, 0.8 * milliseconds, 1.5 * milliseconds, 5)


@pytest.fixture
def result() -> BenchResult:
    """Two sizes on two backends, one of which did not run at the second."""
    points = [
        Point(1, 256, {"function": timed(5), "kernel": timed(2)}),
        Point(1, 1024, {"kernel": timed(8)}, skipped={"function": "would need 99.0 GiB"}),
    ]
    points[0].memory = {"function": Memory(30 * MIB, 7 * MIB), "kernel": Memory(3 * MIB, 7 * MIB)}
    machine = {
        "processor": "Some CPU",
        "torch": "2",
        "onnxruntime": "1",
        "pom_cpu_kernel": "avx2",
        "date": "2026-01-02T03:04:05",
    }
    not_run = {"tensorrt": "it needs a GPU, and there is none here"}
    options = {"threads": 2, "dtype": "float32"}
    return BenchResult("a layer", ["function", "kernel"], not_run, points, machine, options)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal layer of dim 16."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("bench") / "m.onnx"
    pom_export.export(pom_export.PolynomialMixer(16, 2, 2).eval(), path, mask="causal")
    return path
