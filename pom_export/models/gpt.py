"""The public language model of PoM: modded-nanogpt with Polynomial Mixers, and its hybrid with self-attention.

Source: github.com/davidpicard/modded-nanogpt-SOAP-pom. State dict names are those of its checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from pom_export.errors import InputError
from pom_export.mixer import MixerState, ProductMixer, ProductMixerConfig
from pom_export.mixer.reference import rotate
from pom_export.models.streaming import StreamState, advanced, append_tokens, stacked

_NORM_EPSILON = 1e-6
_ROPE_BASE = 10000.0
# The product of an integer below 2048 and a multiple of 2^-12 up to 1 fits into the 24 bits of a float32.
_STEP, _GRID = 2048, 4096


@dataclass(frozen=True)
class GPTConfig:
    """Hyper-parameters of `GPT`, with the official names.

    Attributes:
        vocab_size: number of tokens V.
        n_layer: number of blocks.
        n_head: number of heads in the rotation of the embeddings.
        n_embd: model width d.
        mixer_heads: number of heads of each mixer.
        attention_heads: number of heads of self-attention, if there is any.
        degree: number of factors K of each mixer.
        expand: channels of one factor per model dimension k.
        mlp_width: hidden width of each block's MLP.
        attention_layers: indices of the blocks that have self-attention instead of a mixer.

    Raises:
        InputError: a value is out of range.
    """

    vocab_size: int
    n_layer: int
    n_head: int
    n_embd: int
    mixer_heads: int
    attention_heads: int
    degree: int
    expand: int
    mlp_width: int
    attention_layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("vocab_size", "n_layer", "n_head", "n_embd", "attention_heads", "mlp_width"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("n_head", "attention_heads"):
            if self.n_embd % getattr(self, name) or self.n_embd // getattr(self, name) % 2:
                raise InputError(
                    f"{name} must divide n_embd into heads of even width, got {getattr(self, name)} and {self.n_embd}"
                )
        if not set(self.attention_layers) <= set(range(self.n_layer)):
            raise InputError(f"attention_layers must be below {self.n_layer}, got {self.attention_layers}")
        _ = self.mixer

    @property
    def mixer(self) -> ProductMixerConfig:
        """Hyper-parameters of every mixer."""
        return ProductMixerConfig(self.n_embd, self.degree, self.expand, self.mixer_heads, bias=False)


def _norm(x: Tensor) -> Tensor:
    return functional.rms_norm(x, x.shape[-1:], eps=_NORM_EPSILON)


class Rotary(nn.Module):
    """Rotates the channels of each head by the tokens' positions."""

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.register_buffer("inv_freq", _ROPE_BASE ** -(torch.arange(0, head_dim, 2).float() / head_dim))

    def forward(self, x: Tensor, start: Tensor | None = None) -> Tensor:
        """Rotate x, (B, heads, N, head_dim), at positions 0 to N - 1, or counted from `start` (B)."""
        positions = torch.arange(x.shape[-2], device=x.device)
        if start is not None:
            positions = start[:, None, None] + positions  # for every head
        cos, sin = _tables(self.get_buffer("inv_freq"), positions)
        # The public code rotates in the opposite direction to the mixers.
        return rotate(x, cos, -sin).to(x.dtype)


def _tables(frequencies: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cosines and sines (..., F) of positions (...) times frequencies (F), as precise as the frequencies.

    In float32, the product of 4096 and a frequency near 1 has an error of 2e-4. Positions are therefore split into
    multiples of 2048 and a remainder, and frequencies into multiples of 2^-12 and a remainder. Products with the
    multiples are then exact and those with the remainders small, and the sines and cosines of the angles follow from
    those of the parts.
    """
    exact, steps, rest = (p.to(frequencies.dtype) for p in (positions, positions // _STEP * _STEP, positions % _STEP))
    coarse = torch.round(frequencies * _GRID) / _GRID
    first, *others = (p[..., None] * f for p, f in ((steps, coarse), (rest, coarse), (exact, frequencies - coarse)))
    cos, sin = first.cos(), first.sin()
    for angle in others:
        c, s = angle.cos(), angle.sin()
        cos, sin = cos * c - sin * s, sin * c + cos * s
    return cos, sin


def _split_heads(x: Tensor, n_head: int) -> Tensor:
    """Reshape x (B, N, d) to (B, heads, N, head_dim)."""
    return x.unflatten(-1, (n_head, -1)).transpose(1, 2)


def _join_heads(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(-2)


class CausalMixer(nn.Module):
    """A grouped v1 mixer over the tokens so far."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.pom = ProductMixer(config.n_embd, config.degree, config.expand, config.mixer_heads, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, N, d) for x (B, N, d)."""
        return cast("Tensor", self.pom(x, causal=True))

    def stream(self, x: Tensor, state: MixerState, mask: Tensor | None) -> tuple[Tensor, MixerState]:
        """Return (B, N, d) for x (B, N, d), and the state including its tokens."""
        return self.pom.stream(x, state, mask)


class CausalSelfAttention(nn.Module):
    """Softmax attention to the tokens so far, with rotary positions."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.n_head = config.attention_heads
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=False)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.rotary = Rotary(config.n_embd // config.attention_heads)

    def forward(
        self,
        x: Tensor,
        past: tuple[Tensor, Tensor] | None = None,
        length: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, tuple[Tensor, Tensor]]:
        """Attend to the tokens so far.

        Args:
            x: (B, N, d), tokens of this call.
            past: keys and values (B, heads, P, head_dim) of earlier tokens, or None.
            length: with a past: (B) int64, the number of earlier tokens; P without a mask.
            mask: with a past: (B, N), True for the call's valid tokens, with masked ones at the end; None: all are
                valid.

        Returns:
            (B, N, d) and, with a past, the keys and values including those of this call.
        """
        query, key, value = _split_heads(self.c_attn(x), 3 * self.n_head).chunk(3, dim=1)
        # Rotated together, with a single table of sines.
        query, key = self.rotary(torch.cat((query, key), dim=1), length).chunk(2, dim=1)
        if past is None or length is None:
            attended = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
            return cast("Tensor", self.c_proj(_join_heads(attended)))
        key, value = (append_tokens(cache, new, length, mask) for cache, new in zip(past, (key, value), strict=True))
        positions = length[:, None] + torch.arange(x.shape[1], device=x.device)
        seen = torch.arange(key.shape[2], device=x.device) <= positions[..., None]
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=seen[:, None])
        return cast("Tensor", self.c_proj(_join_heads(attended))), (key, value)


class MLP(nn.Module):
    """Two linear layers around a GELU."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, config.mlp_width, bias=False)
        self.c_proj = nn.Linear(config.mlp_width, config.n_embd, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, N, d) for x (B, N, d)."""
        return cast("Tensor", self.c_proj(functional.gelu(self.c_fc(x))))


class Block(nn.Module):
    """x + scale * mixer(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: GPTConfig, index: int) -> None:
        super().__init__()
        self.attn = CausalSelfAttention(config) if index in config.attention_layers else CausalMixer(config)
        self.mlp = MLP(config)
        self.scale = 1 / math.sqrt(2 * config.n_layer)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, N, d) for x (B, N, d)."""
        return self.add_mlp(x + self.scale * self.attn(_norm(x)))

    def add_mlp(self, x: Tensor) -> Tensor:
        """Return x + mlp(norm(x))."""
        return x + cast("Tensor", self.mlp(_norm(x)))


class GPT(nn.Module):
    """Token embedding rotated by position, blocks, and the same embedding as output projection."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(config.vocab_size, config.n_embd),
                "h": nn.ModuleList(Block(config, index) for index in range(config.n_layer)),
            }
        )
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.lm_head.weight = cast("nn.Embedding", self.transformer["wte"]).weight
        self.rotary = Rotary(config.n_embd // config.n_head)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return the logits of each next token.

        Args:
            input_ids: (B, N) int64.

        Returns:
            (B, N, V).
        """
        x = self.transformer["wte"](input_ids)
        x = _join_heads(self.rotary(_split_heads(x, self.config.n_head)))
        for block in cast("nn.ModuleList", self.transformer["h"]):
            x = block(x)
        return cast("Tensor", self.lm_head(_norm(x)))

    def stream(self, input_ids: Tensor, past: StreamState, mask: Tensor | None = None) -> tuple[Tensor, StreamState]:
        """Return the logits of each next token, and the state including this call's tokens.

        Args:
            input_ids: (B, N) int64, tokens of this call.
            past: the state of earlier tokens.
            mask: (B, N) bool, True for valid tokens, with masked ones at the end; None: all are valid.

        Returns:
            (B, N, V), and the state.
        """
        x = self.transformer["wte"](input_ids)
        x = _join_heads(self.rotary(_split_heads(x, self.config.n_head), past.length))
        remaining, states = iter(past.mixer_states()), []
        keys, values = {}, {}
        for index, block in enumerate(cast("Iterable[Block]", self.transformer["h"])):
            layer, normed = str(index), _norm(x)
            if isinstance(block.attn, CausalMixer):
                mixed, state = block.attn.stream(normed, next(remaining), mask)
                states.append(state)
            else:
                cache = (past.keys[layer], past.values[layer])
                mixed, (keys[layer], values[layer]) = block.attn(normed, cache, past.length, mask)
            x = block.add_mlp(x + block.scale * mixed)
        length = advanced(past.length, input_ids.shape[1], mask)
        return cast("Tensor", self.lm_head(_norm(x))), StreamState(length, stacked(states), {}, keys, values)

    def empty_state(self, batch: int) -> StreamState:
        """Return the state before the first token."""
        weight, config = self.lm_head.weight, self.config
        blocks = cast("Iterable[Block]", self.transformer["h"])
        states = [block.attn.pom.empty_state(batch) for block in blocks if isinstance(block.attn, CausalMixer)]
        heads = (config.attention_heads, 0, config.n_embd // config.attention_heads)
        caches = {str(layer): weight.new_zeros(batch, *heads) for layer in config.attention_layers}
        length = torch.zeros(batch, dtype=torch.int64, device=weight.device)
        return StreamState(length, stacked(states), {}, caches, dict(caches))
