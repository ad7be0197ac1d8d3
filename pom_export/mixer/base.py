"""The common base of mixer layers: projections, the aggregate of the context, a gate, a projection back."""

from __future__ import annotations

from abc import abstractmethod
from typing import cast

import torch
from torch import Tensor, nn

from pom_export.mixer.aggregation import Mask, MixerState, Polynomial, aggregate, select


class Mixer(nn.Module):
    """y = W_a (s * a): the gate s is the query's, the aggregate a that of the context's polynomial features."""

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
            mask: None: every token counts; "causal": token i sees tokens 0..i; (B, N): token weights, bool, integer
                or floating; (B, T, N): weights for each query token. Batch size 1 broadcasts.
            causal: the same as mask "causal", and goes with a (B, N) mask too.
            state: of the tokens before these; see `stream`.

        Returns:
            (B, T, d), and with a state the next one. Where a row of the mask sums to 0 the aggregate is 0 (the official
            v2 code gives NaN).

        Raises:
            ValueError: a mask of another kind or rank, or a state of another size.
        """
        projected, gate = self._project(query, context)
        aggregated, present = aggregate(projected, self._polynomial(), mask, causal, state=state)
        mixed = self.ag_proj(select(gate, aggregated))
        return mixed if present is None else (mixed, present)

    def stream(
        self, query: Tensor, state: MixerState, mask: Tensor | None = None, *, causal: bool = True
    ) -> tuple[Tensor, MixerState]:
        """Mix a call's tokens and those before them into every token of the call.

        Calls of any lengths give what one `forward` of all tokens gives, if causal. Otherwise every token of a call
        sees all of it and what came before: what the official `state_forward` computes, but that it counts each call
        as one.

        Args:
            query: (B, T, d), which is the context too.
            state: of the tokens before these; see `empty_state`.
            mask: (B or 1, T) bool or integer, the tokens that count, or None. What is left out is not in the state.
            causal: token i sees tokens 0..i of the call.

        Returns:
            (B, T, d), and the state with this call's tokens.

        Raises:
            ValueError: a mask of another kind or shape, or a state of another size.
        """
        # Through __call__, so that what is traced knows the module that it comes from.
        return cast("tuple[Tensor, MixerState]", self(query, mask=mask, causal=causal, state=state))

    def empty_state(self, batch: int) -> MixerState:
        """Return the state of no tokens."""
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
