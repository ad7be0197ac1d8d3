"""The op's mathematics in plain PyTorch: the definition that every other executor is held to.

Formulas: `pom_export.contract`. Every mode is linear in the number of tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from pom_export.contract import CLAMP_HIGH, CLAMP_LOW, LEAKY_SLOPE


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


def token_weights(x: Tensor, mask: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Return x with absent tokens zeroed, so that whatever they hold adds nothing, and the mask as (B or 1, N, 1)."""
    if mask is None:
        return x, None
    weights = mask.to(dtype).unsqueeze(-1)
    return x.masked_fill(weights == 0, 0), weights


def safe_ratio(total: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Return total / (weight + epsilon), and 0 where the weight is 0."""
    return total / (weight + epsilon).masked_fill(weight == 0, torch.inf)


def token_counts(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return 1, 2, ..., N as (N, 1)."""
    return torch.arange(1, x.shape[1] + 1, dtype=dtype, device=x.device).unsqueeze(-1)


def polynomial_aggregation(
    x: Tensor, coefficients: Tensor, mask: Tensor | None, mode: str, epsilon: float = 0.0
) -> Tensor:
    """Compute the op in float32, or in float64 for float64 inputs.

    Args:
        x: (B, N, C), projected context tokens.
        coefficients: (C, K).
        mask: (B or 1, N) bool or floating token weights, or None.
        mode: "mean", "causal" or "features".
        epsilon: added to a masked sum of weights.

    Returns:
        (B, 1, C) for "mean", else (B, N, C), of x's dtype.
    """
    dtype = accumulation_dtype(x.dtype)
    x_active, weights = token_weights(x.to(dtype), mask, dtype)
    p = horner(activation(x_active), coefficients.to(dtype))
    if mode == "features":
        y = p
    elif weights is not None:
        weighted = p * weights
        if mode == "mean":
            y = safe_ratio(weighted.sum(1, keepdim=True), weights.sum(1, keepdim=True), epsilon)
        else:
            y = safe_ratio(weighted.cumsum(1), weights.cumsum(1), epsilon)
    elif mode == "mean":
        y = p.sum(1, keepdim=True) / max(x.shape[1], 1)
    else:
        y = p.cumsum(1) / token_counts(x, dtype)
    return y.to(x.dtype)
