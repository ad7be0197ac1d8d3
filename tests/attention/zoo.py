"""Attention blocks of common libraries, as small as possible."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

DIM, HEADS = 8, 2


class TimmAttention(nn.Module):
    """Like timm's vision transformers."""

    def __init__(self, dim: int = DIM, heads: int = HEADS, inner: int | None = None, bias: bool = True) -> None:
        super().__init__()
        inner = inner or dim
        self.num_heads, self.head_dim = heads, inner // heads
        self.qkv = nn.Linear(dim, 3 * inner, bias=bias)
        self.q_norm, self.k_norm = nn.LayerNorm(self.head_dim), nn.LayerNorm(self.head_dim)
        self.attn_drop = nn.Dropout(0.25)
        self.proj = nn.Linear(inner, dim)
        self.proj_drop = nn.Dropout(0.5)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        drop = self.attn_drop.p if self.training else 0.0
        y = functional.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v, attn_mask, drop, is_causal)
        return self.proj_drop(self.proj(y.transpose(1, 2).flatten(2)))


class Adapted(nn.Module):
    """Like peft's low-rank adapters."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base
        self.lora_A = nn.Linear(base.in_features, 2, bias=False)
        self.lora_B = nn.Linear(2, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.lora_B(self.lora_A(x))


class WindowAttention(TimmAttention):
    """Like Swin: with a bias by relative position."""

    def __init__(self) -> None:
        super().__init__()
        self.relative_position_bias_table = nn.Parameter(torch.zeros(9, HEADS))


class RotaryAttention(TimmAttention):
    """Like EVA: needs a second input."""

    def forward(self, x: Tensor, rope: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x + rope)


class LlamaAttention(nn.Module):
    """Like transformers' Llama: grouped keys and values, and the heads in a config."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(num_attention_heads=4)
        self.q_proj, self.o_proj = nn.Linear(DIM, DIM, bias=False), nn.Linear(DIM, DIM, bias=False)
        self.k_proj, self.v_proj = nn.Linear(DIM, DIM // 2, bias=False), nn.Linear(DIM, DIM // 2, bias=False)

    def forward(self, hidden_states: Tensor, position_embeddings: Any) -> Any: ...


class BertSelfAttention(nn.Module):
    """Like transformers' BERT: the output projection is elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.num_attention_heads = HEADS
        self.query, self.key, self.value = (nn.Linear(DIM, DIM) for _ in range(3))


class GPTAttention(nn.Module):
    """Like nanoGPT."""

    def __init__(self) -> None:
        super().__init__()
        self.n_head = HEADS
        self.c_attn, self.c_proj = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)


class Conv1D(nn.Module):
    """Like transformers' GPT-2: a linear layer under another name."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.nf, self.nx = outputs, inputs
        self.weight = nn.Parameter(torch.zeros(inputs, outputs))


class GPT2Attention(nn.Module):
    """Like transformers' GPT-2."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = HEADS
        self.c_attn, self.c_proj = Conv1D(3 * DIM, DIM), Conv1D(DIM, DIM)


class FunctionalAttention(nn.Module):
    """Attention that only its code reveals."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(DIM, 3 * DIM)

    def forward(self, x: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(*self.mix(x).chunk(3, dim=-1))


class Outer(FunctionalAttention):
    """Its forward is attention, and it also holds another attention module."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(DIM, HEADS)


class OwnAttention(nn.MultiheadAttention):
    """A subclass with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x, x, x)[0]


class Lookalikes(nn.Module):
    """No attention, only names and shapes that resemble it."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = HEADS
        self.qkv, self.proj = nn.Linear(DIM, 2 * DIM), nn.Linear(DIM, DIM)
        self.query, self.key = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)
        self.q = self.k = self.v = 3
        self.c_attn = nn.Linear(DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        """Do without scaled_dot_product_attention."""
        return x  # not scaled_dot_product_attention(x, x, x)


def transformer() -> nn.Transformer:
    return nn.Transformer(DIM, HEADS, 1, 1, 16, batch_first=True)
