"""A small causal language model built from Polynomial Mixers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from pom_export.errors import InputError
from pom_export.mixer import MixerConfig, MixerState, PolynomialMixer
from pom_export.models.streaming import StreamState, advanced, last_tokens, stacked


@dataclass(frozen=True)
class LanguageModelConfig:
    """Hyper-parameters of `LanguageModel`.

    Attributes:
        vocab_size: number of tokens V; 256 for a model of bytes.
        n_layers: number of blocks.
        window: number of tokens that the input convolution sees, including the current one.
        mlp_width: hidden width of each block's MLP.
        mixer: hyper-parameters of every block's mixer; its `dim` is the model width.

    Raises:
        InputError: a value is out of range.
    """

    vocab_size: int
    n_layers: int
    window: int
    mlp_width: int
    mixer: MixerConfig

    def __post_init__(self) -> None:
        for name in ("vocab_size", "n_layers", "window", "mlp_width"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")


class CausalConvolution(nn.Conv1d):
    """A convolution over the current token and those just before it, which provides local order.

    A mean of polynomials knows which tokens came before, but not in which order.
    """

    def __init__(self, dim: int, window: int) -> None:
        super().__init__(dim, dim, kernel_size=window, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, N, d) for x (B, N, d)."""
        padded = functional.pad(x.transpose(1, 2), (self.kernel_size[0] - 1, 0))
        return super().forward(padded).transpose(1, 2)

    def stream(self, x: Tensor, past: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return (B, N, d) for x (B, N, d), and what the next call needs.

        Args:
            x: tokens of this call.
            past: (B, window - 1, d), the tokens before them; zeros at the start.
            mask: (B, N), True for valid tokens, with masked ones at the end; None: all are valid.
        """
        seen = torch.cat([past, x], dim=1)
        return super().forward(seen.transpose(1, 2)).transpose(1, 2), last_tokens(seen, past.shape[1], mask)


class Block(nn.Module):
    """x + mixer(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: LanguageModelConfig) -> None:
        super().__init__()
        mixer = config.mixer
        self.mixer_norm = nn.RMSNorm(mixer.dim, eps=1e-6)
        self.mixer = PolynomialMixer(
            mixer.dim, mixer.degree, mixer.expand, mixer.n_groups, mixer.n_sel_heads, mixer.bias
        )
        self.mlp_norm = nn.RMSNorm(mixer.dim, eps=1e-6)
        self.mlp_up = nn.Linear(mixer.dim, config.mlp_width, bias=False)
        self.mlp_down = nn.Linear(config.mlp_width, mixer.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, N, d) for x (B, N, d)."""
        return self._mlp(x + self.mixer(self.mixer_norm(x), mask="causal"))

    def stream(self, x: Tensor, state: MixerState, mask: Tensor | None) -> tuple[Tensor, MixerState]:
        """Return (B, N, d) for x (B, N, d), and the state including its tokens."""
        mixed, present = self.mixer.stream(self.mixer_norm(x), state, mask)
        return self._mlp(x + mixed), present

    def _mlp(self, x: Tensor) -> Tensor:
        return x + cast("Tensor", self.mlp_down(functional.gelu(self.mlp_up(self.mlp_norm(x)))))


class LanguageModel(nn.Module):
    """Token embedding, causal convolution, PoM blocks, and the same embedding as output projection.

    Every hyper-parameter can be read from the shapes of its state dict.
    """

    def __init__(self, config: LanguageModelConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.mixer.dim
        self.embedding = nn.Embedding(config.vocab_size, dim)
        nn.init.normal_(self.embedding.weight, std=dim**-0.5)
        self.convolution = CausalConvolution(dim, config.window)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = nn.RMSNorm(dim, eps=1e-6)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return the logits of each next token.

        Args:
            input_ids: (B, N) int64.

        Returns:
            (B, N, V).
        """
        x = self.embedding(input_ids)
        x = x + self.convolution(x)
        for block in self.blocks:
            x = block(x)
        return functional.linear(self.norm(x), self.embedding.weight)

    def stream(self, input_ids: Tensor, past: StreamState, mask: Tensor | None = None) -> tuple[Tensor, StreamState]:
        """Return the logits of each next token, and the state including this call's tokens.

        Args:
            input_ids: (B, N) int64, tokens of this call.
            past: the state of earlier tokens.
            mask: (B, N) bool, True for valid tokens, with masked ones at the end; None: all are valid.

        Returns:
            (B, N, V), and the state.
        """
        x = self.embedding(input_ids)
        window: dict[str, Tensor] = {}
        if past.convolution:
            convolved, window["0"] = self.convolution.stream(x, past.convolution["0"], mask)
        else:  # the window only contains the current token
            convolved = self.convolution(x)
        x = x + convolved
        states = []
        for block, state in zip(self.blocks, past.mixer_states(), strict=True):
            x, present = cast("Block", block).stream(x, state, mask)
            states.append(present)
        logits = functional.linear(self.norm(x), self.embedding.weight)
        length = advanced(past.length, input_ids.shape[1], mask)
        return logits, StreamState(length, stacked(states), convolution=window)

    def empty_state(self, batch: int) -> StreamState:
        """Return the state before the first token."""
        weight, window = self.embedding.weight, self.config.window - 1
        states = [cast("Block", block).mixer.empty_state(batch) for block in self.blocks]
        tokens = weight.new_zeros(batch, window, weight.shape[1])
        return StreamState(states[0].length, stacked(states), convolution={"0": tokens} if window else {})
