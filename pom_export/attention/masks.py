"""Convert the masks of `nn.MultiheadAttention` to those of a PoM, which select context tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pom_export.errors import InputError


@dataclass(frozen=True)
class ContextMask:
    """The masking arguments of a mixer.

    Attributes:
        keep: bool, True for tokens that count: (B or 1, S) or (B or 1, L, S); None: all do.
        causal: whether query i only sees the context tokens 0..i.
    """

    keep: Tensor | None
    causal: bool


def values_readable() -> bool:
    """Return whether tensors' values can be read, which is not the case while torch.export or torch.compile trace."""
    return not torch.compiler.is_compiling()


def context_mask(
    key_padding_mask: Tensor | None, attn_mask: Tensor | None, is_causal: bool, sizes: tuple[int, int, int], heads: int
) -> ContextMask:
    """Turn attention's masks into a mixer's.

    A causal `attn_mask` is recognised by its values, so that the linear causal form is used. While tracing, values
    can't be read: `is_causal` is then trusted, as torch does, and any other mask uses the general form, L x S.

    Args:
        key_padding_mask: (B, S), bool with True for tokens to ignore, or floating with 0 and -inf; or None.
        attn_mask: (L, S) or (B * heads, L, S), likewise; or None.
        is_causal: whether `attn_mask` is causal, or a causal mask is meant without giving one.
        sizes: batch B, query tokens L and context tokens S.
        heads: number of heads in a mask of rank 3.

    Raises:
        InputError: a shape, type or value has no equivalent in PoM; see the message.
    """
    batch, queries, tokens = sizes
    padding = None
    if key_padding_mask is not None:
        _check_shape("key_padding_mask", key_padding_mask, [(batch, tokens)])
        padding = _keep("key_padding_mask", key_padding_mask)
    if attn_mask is None:
        return ContextMask(padding, _checked_causal(is_causal, queries, tokens))
    shapes = [(queries, tokens), (batch * heads, queries, tokens)]
    _check_shape("attn_mask", attn_mask, shapes)
    keep = _one_for_all_heads(_keep("attn_mask", attn_mask), heads)
    if _is_causal(keep, is_causal):
        return ContextMask(padding, _checked_causal(True, queries, tokens))
    return ContextMask(keep if padding is None else keep & padding.unsqueeze(1), causal=False)


def _check_shape(name: str, mask: Tensor, shapes: list[tuple[int, ...]]) -> None:
    if not any(mask.dim() == len(shape) and tuple(mask.shape) == shape for shape in shapes):
        expected = " or ".join(str(shape) for shape in shapes)
        raise InputError(
            f"{name} has shape {tuple(mask.shape)}, expected {expected}", "Give it the shape of an attention mask"
        )


def _keep(name: str, mask: Tensor) -> Tensor:
    """Return True where a mask of attention lets a token through."""
    if mask.dtype == torch.bool:
        return mask.logical_not()
    if not mask.is_floating_point():
        raise InputError(f"{name} is {mask.dtype}", "Use bool, or floating point with 0 and -inf")
    keep = mask == 0
    if values_readable():
        others = mask[~keep & (mask != -torch.inf)]
        if others.numel():
            raise InputError(
                f"{name} adds {others[0].item():.4g} to a score, and PoM has no scores",
                "Use a mask of 0 and -inf, or bool; give positions to the tokens instead of a bias",
            )
    return keep


def _one_for_all_heads(keep: Tensor, heads: int) -> Tensor:
    """Return (1 or B, L, S) from (L, S) or (B * heads, L, S)."""
    if keep.dim() == 2:
        return keep.unsqueeze(0)
    by_head = keep.unflatten(0, (-1, heads))
    if values_readable() and not by_head.eq(by_head[:, :1]).all():
        raise InputError(
            "attn_mask differs from head to head", "PoM has one mask for all its heads; give a single mask"
        )
    return by_head[:, 0]


def _is_causal(keep: Tensor, hint: bool) -> bool:
    if not values_readable():
        return hint
    causal = bool(keep.eq(torch.ones_like(keep[0]).tril()).all())
    if hint and not causal:
        raise InputError("is_causal is set, but attn_mask is not causal", "Leave is_causal out, or give a causal mask")
    return causal and keep.shape[1] == keep.shape[2]


def _checked_causal(causal: bool, queries: int, tokens: int) -> bool:
    if causal and queries != tokens:
        raise InputError(
            f"is_causal with {queries} query tokens and {tokens} context tokens",
            "Causal PoM needs equally many of both; give an attn_mask instead",
        )
    return causal
