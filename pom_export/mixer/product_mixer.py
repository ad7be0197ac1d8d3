"""The Polynomial Mixer layer, v1 (arXiv 2411.12663), plain and grouped, with the official parameter names."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn
from torch.nn import functional

from pom_export.mixer.aggregation import Polynomial
from pom_export.mixer.base import Mixer
from pom_export.mixer.config import ProductMixerConfig

# The official code adds this to every masked sum of weights.
_EPSILON = 1e-7


class ProductMixer(Mixer):
    """Mix tokens through the mean of running products of GELU features; linear in the number of tokens.

    y = W_a (s * a), with s = sigmoid(W_s query + b_s) and a the aggregate of the context's features. State dict names
    are those of the official v1 `PoM` or, with `n_head`, of its grouped form.

    Args:
        dim: model width d.
        degree: number of factors K.
        expand: channels of one factor per model dimension k; C = K * k * d.
        n_head: number of groups of the context projection, and of channels that share a gate value; None: not grouped.
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

    def _project(self, query: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        source = query if context is None else context
        if self.config.n_head is None:
            projected = cast("Tensor", self.po_proj(source))
        else:
            projected = cast("Tensor", self.po_proj(source.transpose(1, 2))).transpose(1, 2)
        return projected, functional.sigmoid(self.se_proj(query))

    def _polynomial(self) -> Polynomial:
        return Polynomial(None, self.config.degree, _EPSILON)
