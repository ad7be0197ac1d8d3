"""`torch.ops.pom.polynomial_aggregation`: the op registered with PyTorch, traceable and differentiable."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pom_export.contract import CLAMP_HIGH, CLAMP_LOW, DEFAULT_EPSILON, LEAKY_SLOPE, MAX_DEGREE, MIN_DEGREE, MODES
from pom_export.mixer import reference


def _check(x: Tensor, coefficients: Tensor, mask: Tensor | None, mode: str) -> None:
    """Raise ValueError, with the value seen, where the op's contract is not met."""
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    if x.dim() != 3:
        raise ValueError(f"x must be (batch, tokens, channels), got shape {tuple(x.shape)}")
    if coefficients.dim() != 2 or coefficients.shape[0] != x.shape[2]:
        raise ValueError(f"coefficients must be ({x.shape[2]}, degree), got shape {tuple(coefficients.shape)}")
    if not MIN_DEGREE <= coefficients.shape[1] <= MAX_DEGREE:
        raise ValueError(f"degree must be {MIN_DEGREE} to {MAX_DEGREE}, got {coefficients.shape[1]}")
    if mask is None:
        return
    if mode == "features":
        raise ValueError('mode "features" takes no mask')
    if mask.dim() != 2:
        raise ValueError(f"mask must be (batch or 1, tokens), got shape {tuple(mask.shape)}")
    torch._check(mask.shape[1] == x.shape[1], lambda: f"mask has {mask.shape[1]} tokens, x has {x.shape[1]}")
    if mask.requires_grad:
        raise ValueError("the mask is not differentiable; detach it")


@torch.library.custom_op("pom::polynomial_aggregation", mutates_args=())
def polynomial_aggregation(
    x: Tensor,
    coefficients: Tensor,
    mask: Tensor | None,
    mode: str,
    epsilon: float = DEFAULT_EPSILON,
) -> Tensor:
    """Aggregate the polynomial of tokens; see `reference.polynomial_aggregation` for shapes and dtypes.

    Raises:
        ValueError: a shape, the mode or the degree breaks the contract; the value seen is named.
    """
    _check(x, coefficients, mask, mode)
    y = reference.polynomial_aggregation(x, coefficients, mask, mode, epsilon)
    return y.clone() if y is x else y


@polynomial_aggregation.register_fake
def _fake(
    x: Tensor,
    coefficients: Tensor,
    mask: Tensor | None,
    mode: str,
    epsilon: float = DEFAULT_EPSILON,  # noqa: ARG001 (the op's signature)
) -> Tensor:
    _check(x, coefficients, mask, mode)
    return x.new_empty((x.shape[0], 1 if mode == "mean" else x.shape[1], x.shape[2]))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001 (torch's signature)
    x, coefficients, mask, ctx.mode, ctx.epsilon = inputs
    ctx.save_for_backward(x, coefficients, mask)


def _grad_features(grad: Tensor, x: Tensor, weights: Tensor | None, mode: str, epsilon: float) -> Tensor:
    """Return the gradient of the features p, given that of y: the adjoint of the (prefix) mean."""
    if mode == "features":
        return grad
    if weights is None:
        counts = torch.full_like(grad[:1, :, :1], max(x.shape[1], 1)) if mode == "mean" else None
        scaled = grad / (reference.token_counts(x, grad.dtype) if counts is None else counts)
    else:
        total = weights.sum(1, keepdim=True) if mode == "mean" else weights.cumsum(1)
        scaled = reference.safe_ratio(grad, total, epsilon)
    if mode == "causal":
        scaled = scaled.flip(1).cumsum(1).flip(1)
    scaled = scaled.expand(x.shape)
    return scaled if weights is None else scaled * weights


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
    x, coefficients, mask = ctx.saved_tensors
    dtype = reference.accumulation_dtype(x.dtype)
    x_active, weights = reference.token_weights(x.to(dtype), mask, dtype)
    grad_p = _grad_features(grad.to(dtype), x, weights, ctx.mode, ctx.epsilon)
    h = reference.activation(x_active)
    powers = torch.arange(1, coefficients.shape[1] + 1, dtype=dtype, device=x.device)
    # p'(h) = sum_j j c_j h^(j-1), written as a polynomial without constant term plus c_1.
    scaled = coefficients.to(dtype) * powers
    slope = scaled[:, 0] + (reference.horner(h, scaled[:, 1:]) if scaled.shape[1] > 1 else 0)
    leaky = torch.where(x_active > 0, 1.0, LEAKY_SLOPE)
    inside = (h > CLAMP_LOW) & (h < CLAMP_HIGH)
    grad_x = torch.where(inside, grad_p * slope * leaky, 0.0)
    power, columns = torch.ones_like(h), []
    for _ in range(coefficients.shape[1]):
        power = power * h
        columns.append((grad_p * power).sum((0, 1)))
    grad_coefficients = torch.stack(columns, dim=1)
    return grad_x.to(x.dtype), grad_coefficients.to(coefficients.dtype), None, None, None


polynomial_aggregation.register_autograd(_backward, setup_context=_setup_context)
