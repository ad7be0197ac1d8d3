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
        length: (B) int64, the number of tokens so far.
        sums: (B, L, 2, C), the sums of its L mixers, see `MixerState`; None if it has none.
        convolution: by layer, (B, window - 1, d), the last tokens seen by a causal convolution.
        keys: by layer, (B, heads, P, d / heads), the keys of self-attention, where token i of a row is at index i.
        values: the values of self-attention, shaped like `keys`.
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
    """Stack the sums of mixers into one tensor, (B, L, 2, C); None if there are no mixers."""
    return torch.stack([state.sums for state in states], dim=1) if states else None


def advanced(length: Tensor, tokens: int, mask: Tensor | None) -> Tensor:
    """Return the number of tokens including those of a call, (B) int64."""
    return length + (tokens if mask is None else mask.to(torch.int64).sum(1))


def last_tokens(seen: Tensor, count: int, mask: Tensor | None) -> Tensor:
    """Return the last `count` tokens of each row, (B, count, d).

    Args:
        seen: (B, count + N, d), `count` tokens of earlier calls and N of this one.
        count: number of tokens to keep.
        mask: (B, N), True for valid tokens among the N, with masked ones at the end; None: all are valid.
    """
    if mask is None:
        return seen[:, seen.shape[1] - count :]
    first = mask.to(torch.int64).sum(1)[:, None]
    index = first + torch.arange(count, device=seen.device)
    return seen.gather(1, index[..., None].expand(-1, -1, seen.shape[2]))


def append_tokens(past: Tensor, new: Tensor, length: Tensor, mask: Tensor | None) -> Tensor:
    """Append a call's keys or values, so that token i of each row is at index i, (B, heads, P + N, e).

    Args:
        past: (B, heads, P, e).
        new: (B, heads, N, e).
        length: (B) int64, how many of the P are in use in each row, starting with the first; P without a mask.
        mask: (B, N), True for valid tokens among the N, with masked ones at the end; None: all are valid.
    """
    joined = torch.cat([past, new], dim=2)
    if mask is None:
        return joined
    # If a row has fewer than P tokens, those of the call follow directly after them.
    slots = torch.arange(joined.shape[2], device=past.device)
    skipped = past.shape[2] - length[:, None]
    index = torch.where(slots < length[:, None], slots, slots + skipped).clamp(max=joined.shape[2] - 1)
    return joined.gather(2, index[:, None, :, None].expand(-1, joined.shape[1], -1, joined.shape[3]))
