"""What a run would cost, before it is tried: nobody's machine is to be brought down by an N x N matrix."""

from __future__ import annotations

from pom_export.bench.options import ATTENTION, MATMUL, PLAIN, TORCH, TORCH_COMPILE
from pom_export.bench.preparing import Work
from pom_export.graph.exported import BATCH, CONTEXT_TOKENS, TOKENS

_ITEM_BYTES = 4
_PUBLISHED = (TORCH, TORCH_COMPILE, PLAIN)
# The mask, what it is made of, and its product's copy.
_SQUARES = 3
# Beside the stacked powers and their weighted copy: projections, features, gate, product.
_ROWS = 6
_BESIDE = 2
_USABLE_SHARE = 0.8
# Without a measurement: what two cores do.
DEFAULT_FLOPS_PER_S = 1e11


def sizes_of(batch: int, tokens: int) -> dict[str, int]:
    """Return the sizes of the dynamic dimensions."""
    return {BATCH: batch, TOKENS: tokens, CONTEXT_TOKENS: tokens}


def estimate_bytes(backend: str, work: Work, batch: int, tokens: int) -> int:
    """Return about how much memory one run takes at its peak, weights left out."""
    sizes = sizes_of(batch, tokens)
    traffic = [product.traffic_bytes(sizes) for product in work.products] or [0]
    if backend == MATMUL:
        return sum(traffic)
    total = _BESIDE * max(traffic)
    if backend == ATTENTION:
        return total + _ITEM_BYTES * batch * work.attention_heads * tokens**2
    if backend in _PUBLISHED and work.mixers:
        widest = max(channels * (2 * degree + _ROWS) for channels, degree in work.mixers)
        total += _ITEM_BYTES * batch * tokens * widest
        if work.causal:
            total += _SQUARES * _ITEM_BYTES * batch * tokens**2
    return total


def estimate_flops(backend: str, work: Work, batch: int, tokens: int) -> int:
    """Return about how many multiplications and additions one run takes."""
    sizes = sizes_of(batch, tokens)
    if backend == ATTENTION:
        return work.attention_layers * 4 * batch * tokens * work.dim * (2 * work.dim + tokens)
    total = sum(product.flops(sizes) for product in work.products)
    if backend in _PUBLISHED and work.causal:
        total += sum(2 * batch * channels * tokens**2 for channels, _ in work.mixers)
    return total


def reason_to_skip(
    backend: str, work: Work, point: tuple[int, int], available: int, flops_per_s: float, longest_s: float
) -> str | None:
    """Return why a backend is not run at (batch, tokens), or None.

    Args:
        backend: its name.
        work: what there is to do.
        point: (batch, tokens).
        available: bytes of memory, those that other backends need taken off.
        flops_per_s: the machine's, for matrix products.
        longest_s: seconds that one run may take.
    """
    need = estimate_bytes(backend, work, *point)
    if need > _USABLE_SHARE * available:
        return f"would need about {need / 2**30:.1f} GiB of memory, {max(available, 0) / 2**30:.1f} GiB are left"
    seconds = estimate_flops(backend, work, *point) / flops_per_s
    if seconds > longest_s:
        return f"one run would take about {seconds:.0f} s or more, the limit is {longest_s:g} s"
    return None
