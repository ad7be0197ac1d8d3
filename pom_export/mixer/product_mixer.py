"""The Polynomial Mixer layer, v1 (arXiv 2411.12663), plain and grouped, with the official parameter names."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn
from torch.nn import functional

from pom_export.mixer.aggregation import Mask, Polynomial, aggregate, select
from pom_export.mixer.config import ProductMixerConfig

# What the official code adds to every masked sum of weights.
_EPSILON = 1e-7


class ProductMixer(nn.Module):
    """Mix tokens through the mean of running products of GELU features; linear in the number of tokens.

    y = W_a (s * a), with s = sigmoid(W_s query + b_s) and a the aggregate of the context's features.
    State dict names are those of the official v1 `PoM`, and with `n_head` of its grouped form.

    Args:
        dim: model width d.
        degree: number of factors K.
        expand: channels of one factor per model dimension k; C = K * k * d.
        n_head: groups of the context projection, and channels that share a gate value; None: not grouped.
        bias: whether the projections have biases.

    Raises:
        InputError: a hyper-parameter is out of range.
    """

    def __init__(self, dim: int, degree: int, expand: int, n_head: int | None = None, bias: bool = True) -> None:
        super().__init__()
        self.config = config = ProductMixerConfig(dim, degree, expand, n_head, bias)
        if n_head is None:
            self.po_proj: nn.Module = nn.Linear(dim, config.channels, bias=bias)
        else:
            self.po_proj = nn.Conv1d(dim, config.channels, kernel_size=1, groups=n_head, bias=bias)
        self.se_proj = nn.Linear(dim, config.gate_width, bias=bias)
        self.ag_proj = nn.Linear(config.channels, dim, bias=bias)

    def forward(
        self, query: Tensor, context: Tensor | None = None, mask: Mask = None, *, causal: bool = False
    ) -> Tensor:
        """Mix the context into every query token.

        Args:
            query: (B, T, d).
            context: (B, N, d), or None for the query itself.
            mask: as in `PolynomialMixer.forward`.
            causal: as in `PolynomialMixer.forward`.

        Returns:
            (B, T, d). Where a row of the mask sums to 0 the aggregate is 0.

        Raises:
            ValueError: a mask of another kind or rank.
        """
        projected = self._project(query if context is None else context)
        gate = functional.sigmoid(self.se_proj(query))
        polynomial = Polynomial(None, self.config.degree, _EPSILON)
        return cast("Tensor", self.ag_proj(select(gate, aggregate(projected, polynomial, mask, causal))))

    def _project(self, context: Tensor) -> Tensor:
        """Return the projected context, (B, N, C)."""
        if self.config.n_head is None:
            return cast("Tensor", self.po_proj(context))
        return cast("Tensor", self.po_proj(context.transpose(1, 2))).transpose(1, 2)
