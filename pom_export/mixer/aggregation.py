"""Code shared by all families of mixers: the kinds of mask, and the gate over the aggregate."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from pom_export.mixer.op import polynomial_aggregation
from pom_export.mixer.reference import safe_ratio
from pom_export.mixer.stateful_op import stateful_polynomial_aggregation

Mask = Tensor | Literal["causal"] | None


class Rotation(NamedTuple):
    """Tables (N, C/2) with a row per token, and the number of channel blocks that are rotated independently."""

    cos: Tensor
    sin: Tensor
    blocks: int


_UNROTATED = (None, None, 1)


class Polynomial(NamedTuple):
    """A mixer's polynomial: coefficients (C, K) or the degree of form "product", and the epsilon for masked sums."""

    coefficients: Tensor | None
    degree: int = 0
    epsilon: float = 0.0


class MixerState(NamedTuple):
    """What a mixer keeps of the tokens so far, of constant size; zeros before the first token.

    Attributes:
        sums: (B, 2, C), the sum of their features and what it has lost to rounding; float32, or float64 for a float64
            mixer.
        length: (B) int64, the number of tokens.
    """

    sums: Tensor
    length: Tensor


def aggregate(
    projected: Tensor,
    polynomial: Polynomial,
    mask: Mask,
    causal: bool = False,
    rotation: Rotation | None = None,
    state: MixerState | None = None,
) -> tuple[Tensor, MixerState | None]:
    """Aggregate the polynomial features of projected tokens, and of earlier tokens in a state.

    Args:
        projected: (B, N, C).
        polynomial: the mixer's polynomial.
        mask: None, "causal", (B or 1, N) token weights or (B or 1, T, N) weights for each query token; bool, integer or
            floating. With a state, (B or 1, N) bool or integer: nonzero for valid tokens.
        causal: token i only sees tokens 0..i, in addition to the (B, N) mask.
        rotation: rotation of the features, or None.
        state: the state of earlier tokens, or None.

    Returns:
        (B, 1, C), or (B, T, C) with a causal or (B, T, N) mask; and the next state if one was given.

    Raises:
        ValueError: the mask's kind or rank is not supported, or the state's size is wrong.
    """
    if isinstance(mask, str):
        if mask != "causal":
            raise ValueError(f'mask must be None, "causal" or a tensor, got {mask!r}')
        mask, causal = None, True
    if mask is not None and not mask.is_floating_point() and mask.dtype != torch.bool:
        mask = mask.to(projected.dtype if state is None else torch.bool)  # tokenizers use 0 and 1
    mode = "causal" if causal else "mean"
    if state is not None:
        return _stream(projected, polynomial, mask, mode, rotation, state)
    weights = mask
    if mask is not None and mask.dim() == 3:
        if causal:
            raise ValueError("a (B, T, N) mask determines which tokens are seen, and cannot be combined with causal")
        mode, weights = "features", None
    elif mask is not None and mask.dim() != 2:
        raise ValueError(f"mask must be (B, N) or (B, T, N), got shape {tuple(mask.shape)}")
    cos, sin, blocks = rotation if rotation is not None else _UNROTATED
    coefficients, degree, epsilon = polynomial
    result = polynomial_aggregation(projected, coefficients, weights, mode, epsilon, degree, cos, sin, blocks)
    if mode != "features" or mask is None:
        return result, None
    full = mask.to(result.dtype)
    return safe_ratio(full @ result, full.sum(-1, keepdim=True), epsilon), None


def _stream(
    projected: Tensor,
    polynomial: Polynomial,
    mask: Tensor | None,
    mode: str,
    rotation: Rotation | None,
    state: MixerState,
) -> tuple[Tensor, MixerState]:
    cos, sin, blocks = rotation if rotation is not None else _UNROTATED
    coefficients, degree, epsilon = polynomial
    y, sums, length = stateful_polynomial_aggregation(
        projected, coefficients, mask, state.sums, state.length, mode, epsilon, degree, cos, sin, blocks
    )
    return y, MixerState(sums, length)


def select(gate: Tensor, aggregated: Tensor) -> Tensor:
    """Multiply the aggregate by the gate.

    Args:
        gate: (B, T, S); each value applies to C / S neighbouring channels.
        aggregated: (B, 1, C) or (B, T, C).

    Returns:
        (B, T, C).
    """
    if gate.shape[-1] == aggregated.shape[-1]:
        return gate * aggregated
    return (aggregated.unflatten(-1, (gate.shape[-1], -1)) * gate.unsqueeze(-1)).flatten(-2)
