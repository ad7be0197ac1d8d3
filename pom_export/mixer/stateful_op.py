"""`torch.ops.pom.stateful_polynomial_aggregation`: the op with the sums of earlier calls as its state.

Formulas: `pom_export.contract`. It is for inference only and has no gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pom_export.contract import DEFAULT_DEGREE, DEFAULT_EPSILON, DEFAULT_ROTARY_BLOCKS, MAX_LENGTH
from pom_export.mixer import op, reference


def _check(x: Tensor, mask: Tensor | None, past_state: Tensor, past_length: Tensor, mode: str) -> None:
    """Raise ValueError, naming the value, if the contract of a state is violated."""
    if mode == "features":
        raise ValueError('mode "features" sums nothing and has no state')
    if mask is not None and mask.dtype != torch.bool:
        raise ValueError(f"a state counts whole tokens: the mask must be bool, got {mask.dtype}")
    if past_state.dim() != 3 or past_state.shape[1:] != (2, x.shape[2]):
        raise ValueError(f"past_state must be (batch, 2, {x.shape[2]}), got shape {tuple(past_state.shape)}")
    if past_state.dtype != reference.accumulation_dtype(x.dtype):
        raise ValueError(f"past_state must be {reference.accumulation_dtype(x.dtype)}, got {past_state.dtype}")
    if past_length.dim() != 1 or past_length.dtype != torch.int64:
        raise ValueError(f"past_length must be (batch) int64, got {past_length.dtype} {tuple(past_length.shape)}")
    for name, past in (("past_state", past_state), ("past_length", past_length)):
        rows = past.shape[0]
        torch._check(rows == x.shape[0], lambda name=name, rows=rows: f"{name} has {rows} rows, x has {x.shape[0]}")


def _check_lengths(past_length: Tensor, tokens: int) -> None:
    """Raise ValueError for an invalid length, or one to which the call's tokens cannot be added."""
    most = MAX_LENGTH - tokens
    for wrong in past_length[(past_length < 0) | (past_length > most)][:1].tolist():
        raise ValueError(f"past_length must be 0 to {most} where {tokens} tokens are added, got {wrong}")


def _counts(x: Tensor, mask: Tensor | None, past_length: Tensor, mode: str) -> Tensor:
    """Return the number of tokens in each mean, (B, 1 or N) int64, since float32 cannot count beyond 2^24."""
    if mask is None:
        steps = x.shape[1] if mode == "mean" else torch.arange(1, x.shape[1] + 1, device=x.device)
    else:
        steps = mask.sum(1, keepdim=True) if mode == "mean" else mask.cumsum(1)
    return past_length[:, None] + steps if mode == "causal" or mask is not None else (past_length + steps)[:, None]


def _advance(past_state: Tensor, added: Tensor) -> Tensor:
    """Add a sum (B, C) to the state (B, 2, C), and return the rounded sum with what it has lost to rounding."""
    if added.dtype == torch.float64:
        total = past_state.sum(1) + added
        rounded = total.float().double()
        return torch.stack([rounded, total - rounded], dim=1).to(past_state.dtype)
    # Knuth's two-sum, then Dekker's of its result and all that was lost.
    old, lost = past_state.unbind(1)
    updated = old + added
    taken = updated - old
    lost = lost + ((old - (updated - taken)) + (added - taken))
    rounded = updated + lost
    return torch.stack([rounded, lost - (rounded - updated)], dim=1)


@torch.library.custom_op("pom::stateful_polynomial_aggregation", mutates_args=())
def stateful_polynomial_aggregation(
    x: Tensor,
    coefficients: Tensor | None,
    mask: Tensor | None,
    past_state: Tensor,
    past_length: Tensor,
    mode: str,
    epsilon: float = DEFAULT_EPSILON,
    degree: int = DEFAULT_DEGREE,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    rotary_blocks: int = DEFAULT_ROTARY_BLOCKS,
) -> tuple[Tensor, Tensor, Tensor]:
    """Aggregate the polynomial of a call's tokens and of all earlier ones.

    Args:
        x: (B, N, C), projected context tokens of this call.
        coefficients: (C, K), form "power"; None: form "product".
        mask: (B or 1, N) bool, True for valid tokens; None: all are valid.
        past_state: (B, 2, C), the sum of the features of earlier calls and what it has lost to rounding; float64 if x
            is, else float32.
        past_length: (B) int64, the number of tokens in that sum.
        mode: "causal", or "mean" to let every token see the whole call (block-causal).
        epsilon: added to the number of tokens if there is a mask.
        degree: K of form "product".
        cos: as in `reference.polynomial_aggregation`.
        sin: as in `reference.polynomial_aggregation`.
        rotary_blocks: as in `reference.polynomial_aggregation`.

    Returns:
        y, (B, 1, C) for "mean", else (B, N, C), of x's dtype; present_state and present_length, like the past ones.

    Raises:
        ValueError: a shape, type, length or attribute violates the contract; the message names the value.
    """
    op.check(x, coefficients, mask, mode, epsilon, degree, cos, sin, rotary_blocks)
    op.check_sizes(x, mask, cos)
    _check(x, mask, past_state, past_length, mode)
    _check_lengths(past_length, x.shape[1])
    dtype = reference.accumulation_dtype(x.dtype)
    # The features of masked tokens are 0.
    p, _ = reference.weighted_features(x, coefficients, mask, degree, cos, sin, rotary_blocks)
    added = p.sum(1)
    sums = p.cumsum(1) if mode == "causal" else added[:, None]
    before = past_state.to(dtype).sum(1, keepdim=True)
    counts = _counts(x, mask, past_length, mode)
    y = reference.mean(before + sums, counts.to(dtype)[..., None], 0.0 if mask is None else epsilon)
    tokens = x.shape[1] if mask is None else mask.sum(1)
    return y.to(x.dtype), _advance(past_state, added), past_length + tokens


@stateful_polynomial_aggregation.register_fake
def _fake(
    x: Tensor,
    coefficients: Tensor | None,
    mask: Tensor | None,
    past_state: Tensor,
    past_length: Tensor,
    mode: str,
    epsilon: float = DEFAULT_EPSILON,
    degree: int = DEFAULT_DEGREE,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    rotary_blocks: int = DEFAULT_ROTARY_BLOCKS,
) -> tuple[Tensor, Tensor, Tensor]:
    op.check(x, coefficients, mask, mode, epsilon, degree, cos, sin, rotary_blocks)
    _check(x, mask, past_state, past_length, mode)
    y = x.new_empty((x.shape[0], 1 if mode == "mean" else x.shape[1], x.shape[2]))
    return y, torch.empty_like(past_state), torch.empty_like(past_length)
