"""What every layer of mixers is: projections, the aggregate of the context, a gate, a projection back."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor, nn

from pom_export.mixer.aggregation import Mask, Polynomial, aggregate, select


class Mixer(nn.Module):
    """y = W_a (s * a): the gate s is the query's, the aggregate a that of the context's polynomial features."""

    ag_proj: nn.Linear

    def forward(
        self, query: Tensor, context: Tensor | None = None, mask: Mask = None, *, causal: bool = False
    ) -> Tensor:
        """Mix the context into every query token.

        Args:
            query: (B, T, d).
            context: (B, N, d), or None for the query itself.
            mask: None: every token counts; "causal": token i sees tokens 0..i; (B, N): token weights, bool, integer
                or floating; (B, T, N): weights for each query token. Batch size 1 broadcasts.
            causal: the same as mask "causal", and goes with a (B, N) mask too.

        Returns:
            (B, T, d). Where a row of the mask sums to 0 the aggregate is 0 (the official v2 code gives NaN).

        Raises:
            ValueError: a mask of another kind or rank.
        """
        projected, gate = self._project(query, context)
        return self.ag_proj(select(gate, aggregate(projected, self._polynomial(), mask, causal)))

    @abstractmethod
    def _project(self, query: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the projected context (B, N, C) and the gate (B, T, S)."""

    @abstractmethod
    def _polynomial(self) -> Polynomial:
        """Return the polynomial of the features."""
