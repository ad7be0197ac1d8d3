"""The common base of mixer layers: projections, the aggregate of the context, a gate, a projection back."""

from __future__ import annotations

from abc import abstractmethod
from typing import cast

import torch
from torch import Tensor, nn

from pom_export.mixer.aggregation import Mask, MixerState, Polynomial, aggregate, select


class Mixer(nn.Module):
    """y = W_a (s * a), with the gate s of the query and the aggregate a of the context's polynomial features."""

    ag_proj: nn.Linear

    def forward(
        self,
        query: Tensor,
        context: Tensor | None = None,
        mask: Mask = None,
        *,
        causal: bool = False,
        state: MixerState | None = None,
    ) -> Tensor | tuple[Tensor, MixerState]:
        """Mix the context into every query token.

        Args:
            query: (B, T, d).
            context: (B, N, d), or None for the query itself.
            mask: None: every token counts; "causal": token i sees tokens 0..i; (B, N): token weights, bool, integer or
                floating; (B, T, N): weights for each query token. A batch size of 1 is broadcast.
            causal: equivalent to mask "causal", but can be combined with a (B, N) mask.
            state: the state of earlier tokens; see `stream`.

        Returns:
            (B, T, d), and the next state if one was given. Where a row of the mask sums to 0, the aggregate is 0 (the
            official v2 code gives NaN).

        Raises:
            ValueError: the mask's kind or rank is not supported, or the state's size is wrong.
        """
        projected, gate = self._project(query, context)
        aggregated, present = aggregate(projected, self._polynomial(), mask, causal, state=state)
        mixed = self.ag_proj(select(gate, aggregated))
        return mixed if present is None else (mixed, present)

    def stream(
        self, query: Tensor, state: MixerState, mask: Tensor | None = None, *, causal: bool = True
    ) -> tuple[Tensor, MixerState]:
        """Mix a call's tokens and all earlier ones into every token of the call.

        If causal, calls of any lengths give the same as one `forward` of all tokens. Otherwise every token of a call
        sees the whole call and everything before it, as in the official `state_forward`, except that the latter counts
        each call as a single token.

        Args:
            query: (B, T, d), which is also the context.
            state: the state of earlier tokens; see `empty_state`.
            mask: (B or 1, T) bool or integer, nonzero for valid tokens, or None. Masked tokens do not enter the state.
            causal: token i only sees tokens 0..i of the call.

        Returns:
            (B, T, d), and the state including this call's tokens.

        Raises:
            ValueError: the mask's kind or shape is not supported, or the state's size is wrong.
        """
        # Through __call__, so that a trace records the module.
        return cast("tuple[Tensor, MixerState]", self(query, mask=mask, causal=causal, state=state))

    def empty_state(self, batch: int) -> MixerState:
        """Return the state before the first token."""
        weight = self.ag_proj.weight
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        sums = torch.zeros(batch, 2, self.ag_proj.in_features, dtype=dtype, device=weight.device)
        return MixerState(sums, torch.zeros(batch, dtype=torch.int64, device=weight.device))

    @abstractmethod
    def _project(self, query: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the projected context (B, N, C) and the gate (B, T, S)."""

    @abstractmethod
    def _polynomial(self) -> Polynomial:
        """Return the polynomial of the features."""
