"""The state that a language model keeps: sums for its mixers, tokens or keys for its other layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pom_export.mixer import MixerState


@dataclass(frozen=True)
class StreamState:
    """The state of a language model.

    Attributes:
        length: (B) int64, how many tokens are in it.
        sums: (B, L, 2, C), those of its L mixers, see `MixerState`; None where it has none.
        convolution: by layer, (B, window - 1, d), the last tokens that a causal convolution has seen.
        keys: by layer, (B, heads, P, d / heads), what self-attention looks back at; token i of a row is at i.
        values: the same.
    """

    length: Tensor
    sums: Tensor | None = None
    convolution: Mapping[str, Tensor] = field(default_factory=dict)
    keys: Mapping[str, Tensor] = field(default_factory=dict)
    values: Mapping[str, Tensor] = field(default_factory=dict)

    def mixer_states(self) -> list[MixerState]:
        """Return the state of each mixer, in order."""
        return [] if self.sums is None else [MixerState(sums, self.length) for sums in self.sums.unbind(1)]


def stacked(states: Sequence[MixerState]) -> Tensor | None:
    """Return the sums of mixers as one tensor, (B, L, 2, C); None for no mixers."""
    return torch.stack([state.sums for state in states], dim=1) if states else None


def advanced(length: Tensor, tokens: int, mask: Tensor | None) -> Tensor:
    """Return how many tokens there are with those of a call, (B) int64."""
    return length + (tokens if mask is None else mask.to(torch.int64).sum(1))


def last_tokens(seen: Tensor, count: int, mask: Tensor | None) -> Tensor:
    """Return the last `count` tokens of each row, (B, count, d).

    Args:
        seen: (B, count + N, d), `count` tokens of earlier calls and N of this one.
        count: how many are kept.
        mask: (B, N), which of the N count, those at the end left out; None: all.
    """
    if mask is None:
        return seen[:, seen.shape[1] - count :]
    first = mask.to(torch.int64).sum(1)[:, None]
    index = first + torch.arange(count, device=seen.device)
    return seen.gather(1, index[..., None].expand(-1, -1, seen.shape[2]))


def append_tokens(past: Tensor, new: Tensor, length: Tensor, mask: Tensor | None) -> Tensor:
    """Return keys or values with those of a call behind them, token i of each row at i, (B, heads, P + N, e).

    Args:
        past: (B, heads, P, e).
        new: (B, heads, N, e).
        length: (B) int64, how many of the P there are in each row, the first ones; P without a mask.
        mask: (B, N), which of the N count, those at the end left out; None: all.
    """
    joined = torch.cat([past, new], dim=2)
    if mask is None:
        return joined
    # Where a row has fewer than P tokens, those of the call follow these at once.
    slots = torch.arange(joined.shape[2], device=past.device)
    skipped = past.shape[2] - length[:, None]
    index = torch.where(slots < length[:, None], slots, slots + skipped).clamp(max=joined.shape[2] - 1)
    return joined.gather(2, index[:, None, :, None].expand(-1, joined.shape[1], -1, joined.shape[3]))
