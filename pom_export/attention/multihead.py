"""A Polynomial Mixer as a drop-in replacement for `nn.MultiheadAttention`."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor, nn

from pom_export.attention.masks import context_mask, values_readable
from pom_export.errors import InputError
from pom_export.mixer import PolynomialMixer


class _NoPackedWeights:
    """Stands in for `in_proj_weight`, which a PoM lacks.

    `nn.TransformerEncoder` has a fast path that computes attention from that tensor and packs padded batches into
    nested tensors. It avoids that path for anything that overrides torch functions.
    """

    @classmethod
    def __torch_function__(cls, *_: Any, **__: Any) -> Any:
        return NotImplemented


class MultiheadPolynomialMixer(nn.Module):
    """A drop-in replacement for `nn.MultiheadAttention`: same constructor, same call, linear in the number of tokens.

    It contains a `PolynomialMixer` as `mixer`, with one gate per head (one per channel if `num_heads` is 1). Whatever
    has no equivalent in PoM is refused: a bias added to scores, a value other than the key, masks that differ by head.

    Args:
        embed_dim: model width d.
        num_heads: gate values per token; must divide expand * embed_dim.
        dropout: in training, each context token is left out of a sequence's mean with this probability. Attention's
            dropout does the same to its weights; a mean needs no rescaling.
        bias: whether the projections have a bias.
        add_bias_kv: must be False.
        add_zero_attn: must be False.
        kdim: width of the context, if it is not `embed_dim`; the context is then first projected to `embed_dim`.
        vdim: must equal `kdim`.
        batch_first: whether inputs are (batch, tokens, d) instead of (tokens, batch, d).
        device: device of the weights.
        dtype: type of the weights.
        degree: polynomial degree K.
        expand: channels per model dimension.
        n_groups: groups of the context projection.

    Raises:
        InputError: a hyper-parameter is out of range, or has no equivalent in PoM.
    """

    # Attributes that torch's Transformer layers check before they use a fast path, which must never happen here.
    _qkv_same_embed_dim = False
    in_proj_weight = _NoPackedWeights()
    in_proj_bias = None
    bias_k = bias_v = None
    add_zero_attn = False

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        degree: int = 3,
        expand: int = 2,
        n_groups: int = 1,
    ) -> None:
        super().__init__()
        self.embed_dim, self.num_heads, self.dropout, self.batch_first = embed_dim, num_heads, dropout, batch_first
        self.kdim = embed_dim if kdim is None else kdim
        self.vdim = embed_dim if vdim is None else vdim
        self._check_arguments(add_bias_kv, add_zero_attn)
        self.head_dim = embed_dim // num_heads
        with contextlib.nullcontext() if device is None else torch.device(device):
            self.mixer = PolynomialMixer(embed_dim, degree, expand, n_groups, num_heads, bias)
            self.context_proj = nn.Linear(self.kdim, embed_dim, bias=bias) if self.kdim != embed_dim else None
        self.to(dtype=dtype)

    def _check_arguments(self, add_bias_kv: bool, add_zero_attn: bool) -> None:
        if self.num_heads < 1:
            raise InputError(f"num_heads must be at least 1, got {self.num_heads}")
        if not 0 <= self.dropout <= 1:
            raise InputError(f"dropout must be from 0 to 1, got {self.dropout}")
        for name, value in (("add_bias_kv", add_bias_kv), ("add_zero_attn", add_zero_attn)):
            if value:
                raise InputError(f"{name}=True has no meaning for PoM", "PoM has neither keys nor scores; leave it out")
        if self.kdim != self.vdim:
            raise InputError(
                f"kdim is {self.kdim} and vdim is {self.vdim}; PoM has a single context", "Give both the same width"
            )

    @property
    def out_proj(self) -> nn.Linear:
        """The output projection, under attention's name."""
        return self.mixer.ag_proj

    def extra_repr(self) -> str:  # noqa: D102 (torch's)
        return f"{self.embed_dim}, num_heads={self.num_heads}, dropout={self.dropout}, batch_first={self.batch_first}"

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,  # noqa: ARG002 (attention's signature)
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,  # noqa: ARG002
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        """Mix the context into every query token.

        Args:
            query: (L, B, d), (B, L, d) with `batch_first`, or (L, d).
            key: the context: (S, B, kdim), (B, S, kdim) with `batch_first`, or (S, kdim).
            value: the key itself, or a tensor equal to it.
            key_padding_mask: (B, S) or (S): True, or -inf, for context tokens to ignore.
            need_weights: has no effect, as a PoM has no weights to return.
            attn_mask: (L, S) or (B * num_heads, L, S): True, or -inf, for what a query must not see. A causal one runs
                in linear time. It is recognised by its values, except while tracing, where `is_causal` decides.
            average_attn_weights: has no effect.
            is_causal: whether `attn_mask` is causal. Without an `attn_mask`, it also means causal, and no L x L mask is
                created.

        Returns:
            The output, shaped like the query, and None. Where a query may see nothing, the aggregate is 0 and the
            output is the bias of `out_proj`.

        Raises:
            InputError: key and value differ, an input is nested or has another rank, or a mask has no equivalent in
                PoM.
        """
        context = _one_context(key, value)
        itself = query is key
        batched = query.dim() == 3
        query, context = self._batch_major(query), self._batch_major(context)
        if not batched:
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        sizes = (context.shape[0], query.shape[1], context.shape[1])
        mask = context_mask(key_padding_mask, attn_mask, is_causal, sizes, self.num_heads)
        keep = self._drop_tokens(mask.keep, context)
        if self.context_proj is not None:
            context = self.context_proj(context)
        y = self.mixer(query, None if itself else context, keep, causal=mask.causal)
        if not batched:
            return y.squeeze(0), None
        return y if self.batch_first else y.transpose(0, 1), None

    def _batch_major(self, tokens: Tensor) -> Tensor:
        """Return (B, N, d)."""
        if tokens.is_nested:
            raise InputError(
                "nested tensors are not supported", "Build nn.TransformerEncoder with enable_nested_tensor=False"
            )
        if tokens.dim() not in {2, 3}:
            raise InputError(f"an input has shape {tuple(tokens.shape)}", "Give (tokens, d), or a batch of those")
        if tokens.dim() == 2:
            return tokens.unsqueeze(0)
        return tokens if self.batch_first else tokens.transpose(0, 1)

    def _drop_tokens(self, keep: Tensor | None, context: Tensor) -> Tensor | None:
        """In training, return the mask with tokens dropped at random."""
        if not self.training or self.dropout == 0:
            return keep
        lucky = torch.rand(context.shape[:2], device=context.device) >= self.dropout
        if keep is None:
            return lucky
        return keep & (lucky if keep.dim() == 2 else lucky.unsqueeze(1))


def _one_context(key: Tensor, value: Tensor) -> Tensor:
    """Return the key if the value is the same."""
    if key is value:
        return key
    if not values_readable():
        raise InputError(
            "key and value are two different tensors, and their values cannot be compared while tracing",
            "Pass the same tensor as both",
        )
    if key.is_nested or value.is_nested or key.shape != value.shape or not torch.equal(key, value):
        raise InputError(
            f"key and value differ (shapes {tuple(key.shape)} and {tuple(value.shape)}); PoM has a single context",
            "Pass the same tensor as both",
        )
    return key
