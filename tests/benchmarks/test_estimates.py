"""Runs that would bring a machine down are left out."""

from __future__ import annotations

import pytest

from benchmarks.layer.estimates import Work
from benchmarks.products import Product
from benchmarks.time_limit import too_long
from pom_export.bench.options import Size

pytestmark = pytest.mark.slow

GIB = 1 << 30
PRODUCTS = [
    Product(("batch", "tokens"), 512, 2048, from_input=True),
    Product(("batch", "tokens"), 1024, 512, to_output=True),
]
CAUSAL = Work(PRODUCTS, [(1024, 3)], causal=True, dim=512)
MEAN = Work(PRODUCTS, [(1024, 3)], causal=False, dim=512)
LONG = Size(1, 65536)
EXPORTED = 4 * 4 * 65536 * 1024


@pytest.mark.parametrize("backend", ["torch", "torch-compile", "plain", "attention"])
def test_a_square_matrix_is_foreseen(backend: str) -> None:
    assert CAUSAL.bytes_needed(backend, LONG, EXPORTED) > 16 * GIB


@pytest.mark.parametrize("backend", ["function", "kernel", "matmul"])
def test_what_is_linear_is_let_through(backend: str) -> None:
    assert CAUSAL.bytes_needed(backend, LONG, EXPORTED) < 4 * GIB
    assert too_long(CAUSAL.flops(backend, LONG)) is None


def test_the_published_mean_has_no_square() -> None:
    assert MEAN.bytes_needed("torch", LONG, EXPORTED) < 8 * GIB
    assert MEAN.flops("torch", LONG) == MEAN.flops("kernel", LONG)


def test_a_long_run_is_foreseen() -> None:
    assert "the limit is 30 s" in (too_long(CAUSAL.flops("plain", Size(1, 131072))) or "")
    assert too_long(CAUSAL.flops("plain", Size(1, 131072)), flops_per_s=1e14) is None
    assert CAUSAL.flops("attention", Size(1, 16)) == 4 * 16 * 512 * (1024 + 16)
