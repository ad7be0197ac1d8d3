"""Estimate the cost of a layer's backends before they run: an N x N matrix could exhaust the memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from benchmarks.attention import attention_bytes, attention_flops
from benchmarks.names import ATTENTION, MATMUL, PLAIN, TORCH, TORCH_COMPILE
from benchmarks.products import Product
from pom_export.bench.options import Size

_ITEM_BYTES: Final = 4
_PUBLISHED: Final = (TORCH, TORCH_COMPILE, PLAIN)
# N x N matrices: the mask, what it is made of, and a copy in its product.
_SQUARES: Final = 3
# Besides the stacked powers and their weighted copy: projections, features, gate, product.
_ROWS: Final = 6


@dataclass(frozen=True)
class Work:
    """What the estimates are based on.

    Attributes:
        products: the model's matrix products with constant weights.
        mixers: channels and degree of each mixer.
        causal: whether the mixers' masks are causal.
        dim: width of the layer, if attention is timed beside it.
    """

    products: Sequence[Product]
    mixers: Sequence[tuple[int, int]] = ()
    causal: bool = False
    dim: int = 0

    def bytes_needed(self, backend: str, size: Size, exported: int) -> int:
        """Return the approximate peak memory of a run, without weights.

        Args:
            backend: its name.
            size: B and N.
            exported: the memory that our export needs.
        """
        if backend == MATMUL:
            return self.traffic_bytes(size)
        if backend == ATTENTION:
            return exported + attention_bytes(self.dim, *size)
        if backend not in _PUBLISHED or not self.mixers:
            return exported
        widest = max(channels * (2 * degree + _ROWS) for channels, degree in self.mixers)
        squares = _SQUARES * size.tokens if self.causal else 0
        return exported + _ITEM_BYTES * size.batch * size.tokens * (widest + squares)

    def flops(self, backend: str, size: Size) -> int:
        """Return the approximate number of multiplications and additions of a run."""
        if backend == ATTENTION:
            return attention_flops(self.dim, *size)
        total = sum(product.flops(size.dimensions) for product in self.products)
        if backend in _PUBLISHED and self.causal:
            total += sum(2 * size.batch * channels * size.tokens**2 for channels, _ in self.mixers)
        return total

    def traffic_bytes(self, size: Size) -> int:
        """Return the bytes that the products read and write."""
        return sum(product.traffic_bytes(size.dimensions) for product in self.products)
