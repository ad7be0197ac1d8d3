"""The op's mathematics in plain PyTorch: the definition that all implementations are compared with.

Formulas: `pom_export.contract`. Every mode is linear in the number of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from pom_export.contract import CLAMP_HIGH, CLAMP_LOW, DIVISOR_LIMIT, LEAKY_SLOPE, WEIGHT_SCALE


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the type in which features are computed and summed: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def activation(x: Tensor) -> Tensor:
    """Return h = clamp(leaky_relu(x, 0.01), -0.1, 6)."""
    return functional.leaky_relu(x, LEAKY_SLOPE).clamp(CLAMP_LOW, CLAMP_HIGH)


def horner(h: Tensor, coefficients: Tensor) -> Tensor:
    """Return sum_{j=1..K} coefficients[:, j-1] * h^j for h (..., C) and coefficients (C, K)."""
    total = coefficients[:, -1] * h
    for j in range(coefficients.shape[1] - 2, -1, -1):
        total = (total + coefficients[:, j]) * h
    return total


def products(x: Tensor, degree: int) -> list[Tensor]:
    """Return q_1..q_K, each (..., C / K): the running products of the GELU of x's K chunks."""
    chunks = [functional.gelu(chunk) for chunk in x.chunk(degree, dim=-1)]
    for j in range(1, degree):
        chunks[j] = chunks[j] * chunks[j - 1]
    return chunks


def rotate(x: Tensor, cos: Tensor, sin: Tensor, blocks: int = 1) -> Tensor:
    """Rotate pairs of channels.

    Args:
        x: (..., N, C).
        cos: cosines of the angles, (N, C/2), or with x's leading dimensions.
        sin: sines of the angles, shaped like `cos`.
        blocks: number of blocks that the channels are split into; channel i of a block of width W is paired with i +
            W/2.
    """
    return rotate_blocks(x, cos.chunk(blocks, dim=-1), sin.chunk(blocks, dim=-1))


def rotate_blocks(x: Tensor, cosines: Sequence[Tensor], sines: Sequence[Tensor]) -> Tensor:
    """Rotate pairs of channels as `rotate` does, with tables (N, C / 2 / blocks) for each block."""
    parts = x.chunk(2 * len(cosines), dim=-1)
    rotated = []
    for first, second, cos, sin in zip(parts[::2], parts[1::2], cosines, sines, strict=True):
        rotated += [first * cos - second * sin, second * cos + first * sin]
    return torch.cat(rotated, dim=-1)


def token_weights(x: Tensor, mask: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Return x with masked tokens set to 0, so that their values have no effect, and the mask's weights, scaled.

    Args:
        x: (B, N, C).
        mask: (B or 1, N), or None.
        dtype: type of the weights.

    Returns:
        (B, N, C), and WEIGHT_SCALE times the mask as (B or 1, N, 1), or None.
    """
    if mask is None:
        return x, None
    weights = mask.to(dtype).unsqueeze(-1)
    return x.masked_fill(weights == 0, 0), weights * WEIGHT_SCALE


def safe_ratio(total: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Return total / (weight + epsilon), or 0 where the weight is 0."""
    return total / (weight + epsilon).masked_fill(weight == 0, torch.inf)


def weighted_mean(total: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Return total / (weight + epsilon) for weights that `token_weights` has scaled; see `mean`."""
    return mean(total, weight, epsilon * WEIGHT_SCALE)


def mean(total: Tensor, weight: Tensor, epsilon: float = 0.0) -> Tensor:
    """Return total / (weight + epsilon): 0 where the weight is 0, NaN where the divisor exceeds float32's range."""
    divisor, absent = weight + epsilon, weight == 0
    limit = torch.inf if divisor.dtype == torch.float64 else DIVISOR_LIMIT
    fits = divisor.isfinite() & (divisor.abs() <= limit)
    # Dividing by 0 would make the gradient NaN. The result is 0 whatever the sum.
    divisor = divisor.masked_fill(~fits, torch.nan).masked_fill(absent, torch.inf)
    return (total / divisor).masked_fill(absent, 0)


def token_counts(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return 1, 2, ..., N as a tensor of shape (N, 1)."""
    return torch.arange(1, x.shape[1] + 1, dtype=dtype, device=x.device).unsqueeze(-1)


def features(x: Tensor, coefficients: Tensor | None, degree: int) -> Tensor:
    """Return p, (B, N, C): the polynomial of form "power", or of form "product" without coefficients."""
    if coefficients is None:
        return torch.cat(products(x, degree), dim=-1)
    return horner(activation(x), coefficients.to(x.dtype))


def weighted_features(
    x: Tensor,
    coefficients: Tensor | None,
    mask: Tensor | None,
    degree: int,
    cos: Tensor | None,
    sin: Tensor | None,
    rotary_blocks: int,
) -> tuple[Tensor, Tensor | None]:
    """Return the features p (B, N, C), rotated if required, and the scaled weights (B or 1, N, 1), not yet applied."""
    dtype = accumulation_dtype(x.dtype)
    x_active, weights = token_weights(x.to(dtype), mask, dtype)
    p = features(x_active, coefficients, degree)
    if cos is not None and sin is not None:
        p = rotate(p, cos.to(dtype), sin.to(dtype), rotary_blocks)
    return p, weights


def polynomial_aggregation(
    x: Tensor,
    coefficients: Tensor | None,
    mask: Tensor | None,
    mode: str,
    epsilon: float = 0.0,
    *,
    degree: int = 0,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    rotary_blocks: int = 1,
) -> Tensor:
    """Compute the op in float32, or in float64 for float64 inputs.

    Args:
        x: (B, N, C), projected context tokens.
        coefficients: (C, K), form "power"; None: form "product".
        mask: (B or 1, N) bool or floating token weights, or None.
        mode: "mean", "causal" or "features".
        epsilon: added to a masked sum of weights.
        degree: K of form "product".
        cos: cosines of the rotation, (N, C/2) or (B, N, C/2); None: no rotation.
        sin: sines of the rotation, shaped like `cos`.
        rotary_blocks: 1 (one position per token) or 2 (row and column).

    Returns:
        (B, 1, C) for "mean", else (B, N, C), of x's dtype.
    """
    p, weights = weighted_features(x, coefficients, mask, degree, cos, sin, rotary_blocks)
    if mode == "features":
        y = p
    elif weights is not None:
        weighted = p * weights
        if mode == "mean":
            y = weighted_mean(weighted.sum(1, keepdim=True), weights.sum(1, keepdim=True), epsilon)
        else:
            y = weighted_mean(weighted.cumsum(1), weights.cumsum(1), epsilon)
    elif mode == "mean":
        y = p.sum(1, keepdim=True) / max(x.shape[1], 1)
    else:
        y = p.cumsum(1) / token_counts(x, p.dtype)
    return y.to(x.dtype)
