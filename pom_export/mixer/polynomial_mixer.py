"""The Polynomial Mixer layer, v2 (arXiv 2604.06129), with the official parameter names."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from pom_export.mixer.aggregation import Polynomial
from pom_export.mixer.base import Mixer
from pom_export.mixer.config import MixerConfig


class PolynomialMixer(Mixer):
    """Mix tokens through the mean of a learned polynomial; linear in the number of tokens.

    y = W_a (s * a), with s = hardsigmoid(W_s query + b_s) and a the aggregate of the context's polynomial features.
    State dict names are those of the official `pom.PoM`, so its checkpoints can be loaded directly.

    Args:
        dim: model width d.
        degree: polynomial degree K.
        expand: channels per model dimension k; C = k * d.
        n_groups: groups of the context projection.
        n_sel_heads: gate values per token; 0 or 1: one per channel.
        bias: whether the output (and a grouped context) projection has a bias.

    Raises:
        InputError: a hyper-parameter is out of range.
    """

    def __init__(
        self, dim: int, degree: int, expand: int, n_groups: int = 1, n_sel_heads: int = 1, bias: bool = False
    ) -> None:
        super().__init__()
        self.config = config = MixerConfig(dim, degree, expand, n_groups, n_sel_heads, bias)
        channels, gates = config.channels, config.gate_width
        if n_groups == 1:
            self.qc_proj = nn.Linear(dim, channels + gates, bias=False)
            self.se_bias = nn.Parameter(torch.zeros(gates))
        else:
            self.po_proj = nn.Conv1d(dim, channels, kernel_size=1, groups=n_groups, bias=bias)
            self.se_proj = nn.Linear(dim, gates)
        # A truncated exp(h) - 1, so that every power contributes from the first step on.
        taylor = torch.tensor([1.0 / math.factorial(j) for j in range(1, degree + 1)])
        self.po_coeff = nn.Parameter(taylor.repeat(channels, 1))
        self.ag_proj = nn.Linear(channels, dim, bias=bias)

    def _project(self, query: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        if self.config.n_groups > 1:
            source = query if context is None else context
            projected = self.po_proj(source.transpose(1, 2)).transpose(1, 2)
            return projected, functional.hardsigmoid(self.se_proj(query))
        sizes = [self.config.channels, self.config.gate_width]
        if context is None:
            projected, gate = self.qc_proj(query).split(sizes, dim=-1)
        else:
            context_weight, gate_weight = self.qc_proj.weight.split(sizes)
            projected, gate = functional.linear(context, context_weight), functional.linear(query, gate_weight)
        return projected, functional.hardsigmoid(gate + self.se_bias)

    def _polynomial(self) -> Polynomial:
        return Polynomial(self.po_coeff)
