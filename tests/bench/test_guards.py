"""What is left out before it brings a machine down."""

from __future__ import annotations

import pytest

from pom_export.bench.guards import estimate_bytes, estimate_flops, reason_to_skip
from pom_export.bench.preparing import Work
from pom_export.bench.products import Product

GIB = 1 << 30
PRODUCTS = [
    Product(("batch", "tokens"), 512, 2048, from_input=True),
    Product(("batch", "tokens"), 1024, 512, to_output=True),
]
CAUSAL = Work(PRODUCTS, [(1024, 3)], causal=True, dim=512)
MEAN = Work(PRODUCTS, [(1024, 3)], causal=False, dim=512)


@pytest.mark.parametrize("backend", ["torch", "torch-compile", "plain", "attention"])
def test_a_square_matrix_is_foreseen(backend: str) -> None:
    assert estimate_bytes(backend, CAUSAL, 1, 65536) > 16 * GIB
    why = reason_to_skip(backend, CAUSAL, (1, 65536), 8 * GIB, 1e15, 1.0)
    assert why is not None
    assert "GiB of memory, 8.0 GiB are left" in why


@pytest.mark.parametrize("backend", ["function", "kernel", "matmul"])
def test_what_is_linear_is_let_through(backend: str) -> None:
    assert reason_to_skip(backend, CAUSAL, (1, 65536), 8 * GIB, 1e11, 30.0) is None
    assert estimate_bytes(backend, CAUSAL, 1, 65536) < 4 * GIB


def test_the_published_mean_has_no_square() -> None:
    assert estimate_bytes("torch", MEAN, 1, 65536) < 8 * GIB
    assert estimate_flops("torch", MEAN, 1, 65536) == estimate_flops("kernel", MEAN, 1, 65536)


def test_a_long_run_is_foreseen() -> None:
    why = reason_to_skip("plain", CAUSAL, (1, 131072), 1 << 50, 1e11, 30.0)
    assert why is not None
    assert "the limit is 30 s" in why
    assert estimate_flops("attention", CAUSAL, 1, 16) == 4 * 16 * 512 * (1024 + 16)
