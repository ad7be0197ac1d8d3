"""What every family of mixer has in common: the kinds of mask, and the gate over the aggregate."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from pom_export.mixer.op import polynomial_aggregation
from pom_export.mixer.reference import safe_ratio
from pom_export.mixer.stateful_op import stateful_polynomial_aggregation

Mask = Tensor | Literal["causal"] | None


class Rotation(NamedTuple):
    """Tables (N, C/2) of one position a token, and the blocks of channels that are rotated each by itself."""

    cos: Tensor
    sin: Tensor
    blocks: int


class Polynomial(NamedTuple):
    """The polynomial of a mixer: coefficients (C, K), or the degree of form "product"; what masked sums are added."""

    coefficients: Tensor | None
    degree: int = 0
    epsilon: float = 0.0


def aggregate(
    projected: Tensor, polynomial: Polynomial, mask: Mask, causal: bool = False, rotation: Rotation | None = None
) -> Tensor:
    """Aggregate the polynomial features of projected tokens.

    Args:
        projected: (B, N, C).
        polynomial: of the mixer.
        mask: None, "causal", (B or 1, N) token weights or (B or 1, T, N) weights for each query token; bool, integer
            or floating.
        causal: token i sees tokens 0..i, besides what the (B, N) mask says.
        rotation: of the features, or None.

    Returns:
        (B, 1, C), or (B, T, C) with a causal or (B, T, N) mask.

    Raises:
        ValueError: a mask of another kind or rank.
    """
    if isinstance(mask, str):
        if mask != "causal":
            raise ValueError(f'mask must be None, "causal" or a tensor, got {mask!r}')
        mask, causal = None, True
    if mask is not None and not mask.is_floating_point() and mask.dtype != torch.bool:
        mask = mask.to(projected.dtype)  # the 0 and 1 of tokenizers
    mode = "causal" if causal else "mean"
    weights = mask
    if mask is not None and mask.dim() == 3:
        if causal:
            raise ValueError("a (B, T, N) mask says itself which tokens are seen; causal does not go with it")
        mode, weights = "features", None
    elif mask is not None and mask.dim() != 2:
        raise ValueError(f"mask must be (B, N) or (B, T, N), got shape {tuple(mask.shape)}")
    cos, sin, blocks = rotation if rotation is not None else (None, None, 1)
    coefficients, degree, epsilon = polynomial
    result = polynomial_aggregation(projected, coefficients, weights, mode, epsilon, degree, cos, sin, blocks)
    if mode != "features" or mask is None:
        return result
    full = mask.to(result.dtype)
    return safe_ratio(full @ result, full.sum(-1, keepdim=True), epsilon)


class MixerState(NamedTuple):
    """What a mixer keeps of the tokens so far, however many they were; zeros for none.

    Attributes:
        sums: (B, 2, C), the sum of their features, and what rounding has lost of it; float32, or float64 for a float64
            mixer.
        length: (B) int64, how many they were.
    """

    sums: Tensor
    length: Tensor


def stream(
    projected: Tensor,
    polynomial: Polynomial,
    state: MixerState,
    mask: Tensor | None,
    causal: bool,
    rotation: Rotation | None = None,
) -> tuple[Tensor, MixerState]:
    """Aggregate the polynomial features of a call's tokens and of those in the state.

    Args:
        projected: (B, N, C).
        polynomial: of the mixer.
        state: of the tokens before these.
        mask: (B or 1, N) bool or integer, the tokens that count, or None.
        causal: token i sees tokens 0..i of the call, instead of all of it.
        rotation: of the features, or None.

    Returns:
        (B, N, C) if causal, else (B, 1, C); and the state with this call's tokens.

    Raises:
        ValueError: a mask of another kind or shape, or a state of another size.
    """
    weights = None if mask is None else mask if mask.is_floating_point() else mask.to(torch.bool)
    cos, sin, blocks = rotation if rotation is not None else (None, None, 1)
    coefficients, degree, epsilon = polynomial
    mode = "causal" if causal else "mean"
    y, sums, length = stateful_polynomial_aggregation(
        projected, coefficients, weights, state.sums, state.length, mode, epsilon, degree, cos, sin, blocks
    )
    return y, MixerState(sums, length)


def select(gate: Tensor, aggregated: Tensor) -> Tensor:
    """Multiply the aggregate by the gate.

    Args:
        gate: (B, T, S); each value serves C / S neighbouring channels.
        aggregated: (B, 1, C) or (B, T, C).

    Returns:
        (B, T, C).
    """
    if gate.shape[-1] == aggregated.shape[-1]:
        return gate * aggregated
    return (aggregated.unflatten(-1, (gate.shape[-1], -1)) * gate.unsqueeze(-1)).flatten(-2)
