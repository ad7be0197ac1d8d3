"""The algorithm of PoM's published Triton kernels, rewritten for the benchmark, with their launch shape.

One program per row of the batch and block of at most 256 channels processes all tokens in sequence, as in
pom/pom_triton.py and pom/pom_triton_causal.py of github.com/davidpicard/pom. The output is float32, and is then cast
for half-precision types.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _walk(  # noqa: ANN202
    x_ptr,  # noqa: ANN001
    coefficients_ptr,  # noqa: ANN001
    y_ptr,  # noqa: ANN001
    tokens,  # noqa: ANN001
    channels,  # noqa: ANN001
    CAUSAL: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
):
    batch = tl.program_id(0)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    here = channel < channels
    row = x_ptr + batch.to(tl.int64) * tokens * channels + channel
    out = y_ptr + batch.to(tl.int64) * (tokens if CAUSAL else 1) * channels + channel
    # The coefficients of degree 3 stay in registers.
    c1 = tl.load(coefficients_ptr + channel * 3, mask=here, other=0.0)
    c2 = tl.load(coefficients_ptr + channel * 3 + 1, mask=here, other=0.0)
    c3 = tl.load(coefficients_ptr + channel * 3 + 2, mask=here, other=0.0)
    total = tl.zeros((BLOCK,), tl.float32)
    for token in range(tokens):
        x = tl.load(row, mask=here, other=0.0, eviction_policy="evict_first").to(tl.float32)
        h = tl.minimum(tl.maximum(tl.where(x >= 0.0, x, x * 0.01), -0.1), 6.0)
        total += c1 * h + c2 * h * h + c3 * h * h * h
        if CAUSAL:
            tl.store(out, total / (token + 1), mask=here)
            out += channels
        row += channels
    if not CAUSAL:
        tl.store(out, total / tokens, mask=here)


def aggregate(x: torch.Tensor, coefficients: torch.Tensor, mode: str) -> torch.Tensor:
    """Return (B, 1, C) for "mean", (B, N, C) for "causal", of x's dtype.

    Args:
        x: (B, N, C).
        coefficients: (C, 3), float32.
        mode: "mean" or "causal".
    """
    batch, tokens, channels = x.shape
    block = min(256, triton.next_power_of_2(channels))
    causal = mode == "causal"
    y = torch.empty(batch, tokens if causal else 1, channels, device=x.device, dtype=torch.float32)
    _walk[(batch, triton.cdiv(channels, block))](x, coefficients, y, tokens, channels, causal, block)
    return y.to(x.dtype)
