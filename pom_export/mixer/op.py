"""`torch.ops.pom.polynomial_aggregation`: the op registered with PyTorch, traceable and differentiable."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor

from pom_export.contract import (
    CLAMP_HIGH,
    CLAMP_LOW,
    DEFAULT_DEGREE,
    DEFAULT_EPSILON,
    DEFAULT_ROTARY_BLOCKS,
    LEAKY_SLOPE,
    MAX_DEGREE,
    MAX_MEANS_OF_NOTHING,
    MIN_DEGREE,
    POWER,
    PRODUCT,
    check_attributes,
)
from pom_export.mixer import reference


def check(
    x: Tensor,
    coefficients: Tensor | None,
    mask: Tensor | None,
    mode: str,
    epsilon: float,
    degree: int,
    cos: Tensor | None,
    sin: Tensor | None,
    rotary_blocks: int,
) -> None:
    """Raise ValueError, naming the value, if the op's contract is violated."""
    check_attributes(mode, epsilon, degree, rotary_blocks, PRODUCT if coefficients is None else POWER)
    if x.dim() != 3 or x.shape[2] < 1:
        raise ValueError(f"x must be (batch, tokens, channels) with at least one channel, got shape {tuple(x.shape)}")
    for name, tensor in (("x", x), ("coefficients", coefficients), ("cos", cos), ("sin", sin)):
        if tensor is not None and not tensor.is_floating_point():
            raise ValueError(f"{name} must be floating, got {tensor.dtype}")
    _check_polynomial(x, coefficients, degree)
    if mask is not None:
        _check_mask(x, mask, mode)
    if (cos is None) != (sin is None):
        raise ValueError("cos and sin must be given together")
    if cos is not None and sin is not None:
        if coefficients is None:
            raise ValueError("the product form takes no cos and sin")
        _check_rotation(x, cos, sin, rotary_blocks)


def _check_polynomial(x: Tensor, coefficients: Tensor | None, degree: int) -> None:
    if coefficients is None:
        if x.shape[2] % degree:
            raise ValueError(f"x must have a multiple of degree {degree} channels, got {x.shape[2]}")
        return
    if coefficients.dim() != 2 or coefficients.shape[0] != x.shape[2]:
        raise ValueError(f"coefficients must be ({x.shape[2]}, degree), got shape {tuple(coefficients.shape)}")
    if not MIN_DEGREE <= coefficients.shape[1] <= MAX_DEGREE:
        raise ValueError(f"coefficients must have {MIN_DEGREE} to {MAX_DEGREE} columns, got {coefficients.shape[1]}")


def _check_mask(x: Tensor, mask: Tensor, mode: str) -> None:
    if mode == "features":
        raise ValueError('mode "features" takes no mask')
    if mask.dim() != 2:
        raise ValueError(f"mask must be (batch or 1, tokens), got shape {tuple(mask.shape)}")
    torch._check(mask.shape[1] == x.shape[1], lambda: f"mask has {mask.shape[1]} tokens, x has {x.shape[1]}")
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise ValueError(f"mask must be bool or floating, got {mask.dtype}")
    if mask.requires_grad:
        raise ValueError("the mask is not differentiable; detach it")


def _check_rotation(x: Tensor, cos: Tensor, sin: Tensor, rotary_blocks: int) -> None:
    if x.shape[2] % (2 * rotary_blocks):
        raise ValueError(f"x must have a multiple of {2 * rotary_blocks} channels to be rotated, got {x.shape[2]}")
    for name, table in (("cos", cos), ("sin", sin)):
        if table.dim() not in {2, 3} or table.shape[-1] != x.shape[2] // 2:
            raise ValueError(
                f"{name} must be (tokens, {x.shape[2] // 2}) or (batch, tokens, {x.shape[2] // 2}), "
                f"got shape {tuple(table.shape)}"
            )
        if table.requires_grad:
            raise ValueError(f"{name} is not differentiable; detach it")
    tokens = cos.shape[-2]
    torch._check(tokens == x.shape[1], lambda: f"cos and sin have {tokens} tokens, x has {x.shape[1]}")
    if cos.shape != sin.shape:
        raise ValueError(f"cos and sin must be of one shape, got {tuple(cos.shape)} and {tuple(sin.shape)}")


def check_sizes(x: Tensor, mask: Tensor | None, cos: Tensor | None) -> None:
    """Raise ValueError for a batch size other than 1 and x's, if sizes are numbers, which they are not in a trace."""
    for name, tensor, rank in (("mask", mask, 2), ("cos", cos, 3)):
        if tensor is not None and tensor.dim() == rank and tensor.shape[0] not in {1, x.shape[0]}:
            raise ValueError(f"{name} must have 1 or {x.shape[0]} rows, got {tensor.shape[0]}")


def _tie_rows(x: Tensor, mask: Tensor | None, cos: Tensor | None) -> None:
    """Tell a trace that tensors with as many rows as x always have as many, and that others always have one row."""
    symbolic = [
        tensor.shape[0]
        for tensor, rank in ((mask, 2), (cos, 3))
        if tensor is not None and tensor.dim() == rank and type(tensor.shape[0]) is not int
    ]
    if not symbolic:
        return
    from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

    for rows in symbolic:
        # A number that depends on data can't be compared in a trace.
        with contextlib.suppress(GuardOnDataDependentSymNode):
            if rows != x.shape[0]:
                torch._check(rows == 1)


@torch.library.custom_op("pom::polynomial_aggregation", mutates_args=())
def polynomial_aggregation(
    x: Tensor,
    coefficients: Tensor | None,
    mask: Tensor | None,
    mode: str,
    epsilon: float = DEFAULT_EPSILON,
    degree: int = DEFAULT_DEGREE,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    rotary_blocks: int = DEFAULT_ROTARY_BLOCKS,
) -> Tensor:
    """Aggregate the polynomial of tokens; see `reference.polynomial_aggregation` for shapes and dtypes.

    Raises:
        ValueError: a shape, the mode or the degree violates the contract; the message names the value.
    """
    check(x, coefficients, mask, mode, epsilon, degree, cos, sin, rotary_blocks)
    check_sizes(x, mask, cos)
    means = x.shape[0] * x.shape[2]
    if mode == "mean" and x.shape[1] == 0 and means > MAX_MEANS_OF_NOTHING:
        raise ValueError(f"x has no tokens, and their means would be {means} zeros, more than {MAX_MEANS_OF_NOTHING}")
    y = reference.polynomial_aggregation(
        x, coefficients, mask, mode, epsilon, degree=degree, cos=cos, sin=sin, rotary_blocks=rotary_blocks
    )
    return y.clone() if y is x else y


@polynomial_aggregation.register_fake
def _fake(
    x: Tensor,
    coefficients: Tensor | None,
    mask: Tensor | None,
    mode: str,
    epsilon: float = DEFAULT_EPSILON,
    degree: int = DEFAULT_DEGREE,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    rotary_blocks: int = DEFAULT_ROTARY_BLOCKS,
) -> Tensor:
    check(x, coefficients, mask, mode, epsilon, degree, cos, sin, rotary_blocks)
    _tie_rows(x, mask, cos)
    return x.new_empty((x.shape[0], 1 if mode == "mean" else x.shape[1], x.shape[2]))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001 (torch's signature)
    x, coefficients, mask, ctx.mode, ctx.epsilon, ctx.degree, cos, sin, ctx.rotary_blocks = inputs
    ctx.save_for_backward(x, coefficients, mask, cos, sin)


def _grad_features(grad: Tensor, x: Tensor, weights: Tensor | None, mode: str, epsilon: float) -> Tensor:
    """Return the gradient of the features p, given that of y: the adjoint of the (prefix) mean."""
    if mode == "features":
        return grad
    if weights is None:
        counts = torch.full_like(grad[:1, :, :1], max(x.shape[1], 1)) if mode == "mean" else None
        scaled = grad / (reference.token_counts(x, grad.dtype) if counts is None else counts)
    else:
        total = weights.sum(1, keepdim=True) if mode == "mean" else weights.cumsum(1)
        scaled = reference.weighted_mean(grad, total, epsilon)
    if mode == "causal":
        scaled = scaled.flip(1).cumsum(1).flip(1)
    scaled = scaled.expand(x.shape)
    return scaled if weights is None else scaled * weights


def _backward_power(x: Tensor, coefficients: Tensor, grad_p: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of x and of the coefficients, given that of p."""
    h = reference.activation(x)
    powers = torch.arange(1, coefficients.shape[1] + 1, dtype=x.dtype, device=x.device)
    # p'(h) = sum_j j c_j h^(j-1), written as a polynomial without constant term plus c_1.
    scaled = coefficients.to(x.dtype) * powers
    slope = scaled[:, 0] + (reference.horner(h, scaled[:, 1:]) if scaled.shape[1] > 1 else 0)
    leaky = torch.where(x > 0, 1.0, LEAKY_SLOPE)
    inside = (h > CLAMP_LOW) & (h < CLAMP_HIGH)
    power, columns = torch.ones_like(h), []
    for _ in range(coefficients.shape[1]):
        power = power * h
        columns.append((grad_p * power).sum((0, 1)))
    return torch.where(inside, grad_p * slope * leaky, 0.0), torch.stack(columns, dim=1)


def _backward_product(x: Tensor, degree: int, grad_p: Tensor) -> Tensor:
    """Return the gradient of x: that of factor g_j is q_{j-1} (d_j + g_{j+1} (d_{j+1} + g_{j+2} (...)))."""
    chunks, grads = x.chunk(degree, dim=-1), grad_p.chunk(degree, dim=-1)
    products = reference.products(x, degree)
    result, behind = [], torch.zeros_like(grads[0])
    for j in range(degree - 1, -1, -1):
        behind = grads[j] + behind
        factor = behind * products[j - 1] if j else behind
        result.append(torch.ops.aten.gelu_backward(factor, chunks[j]))
        behind = behind * torch.nn.functional.gelu(chunks[j])
    return torch.cat(result[::-1], dim=-1)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, coefficients, mask, cos, sin = ctx.saved_tensors
    dtype = reference.accumulation_dtype(x.dtype)
    x_active, weights = reference.token_weights(x.to(dtype), mask, dtype)
    grad_p = _grad_features(grad.to(dtype), x, weights, ctx.mode, ctx.epsilon)
    if cos is not None:
        # The adjoint of a rotation is its inverse.
        grad_p = reference.rotate(grad_p, cos.to(dtype), -sin.to(dtype), ctx.rotary_blocks)
    grad_coefficients = None
    if coefficients is None:
        grad_x = _backward_product(x_active, ctx.degree, grad_p)
    else:
        grad_x, grad_coefficients = _backward_power(x_active, coefficients, grad_p)
        grad_coefficients = grad_coefficients.to(coefficients.dtype)
    return grad_x.to(x.dtype), grad_coefficients, *[None] * 7


polynomial_aggregation.register_autograd(_backward, setup_context=_setup_context)
