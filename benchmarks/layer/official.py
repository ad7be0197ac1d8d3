"""The published algorithm in eager PyTorch, with which the other backends are compared.

Written from the formulas: every power of the polynomial is kept until they are summed, and a causal mask is an N x N
matrix. The parameters and projections are those of one of our mixers.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from pom_export.mixer import Mixer, RotaryPolynomialMixer
from pom_export.mixer.aggregation import Polynomial, select
from pom_export.mixer.reference import activation, rotate_blocks

_Module = TypeVar("_Module", bound=nn.Module)


def official_features(projected: Tensor, polynomial: Polynomial) -> Tensor:
    """Return the features p (B, N, C) of projected tokens (B, N, C): stacked powers, or v1's running products."""
    if polynomial.coefficients is None:
        factors = [functional.gelu(chunk) for chunk in projected.chunk(polynomial.degree, dim=-1)]
        running = factors[:1]
        for factor in factors[1:]:
            running.append(factor * running[-1])
        return torch.cat(running, dim=-1)
    h = activation(projected).unsqueeze(-1)
    powers = [h]
    for _ in range(polynomial.coefficients.shape[1] - 1):
        powers.append(powers[-1] * h)
    return (torch.cat(powers, dim=-1) * polynomial.coefficients).sum(-1)


def official_aggregate(features: Tensor, mask: Tensor | None, causal: bool, epsilon: float) -> Tensor:
    """Return the mean of features (B, N, C): (B, 1, C), or (B, T, C) for a causal or (B, T, N) mask.

    Args:
        features: (B, N, C).
        mask: (B, N) or (B, T, N) weights, or None.
        causal: token i sees tokens 0..i.
        epsilon: added to a sum of weights.

    Raises:
        ValueError: there is a mask besides the causal one.
    """
    if causal:
        if mask is not None:
            raise ValueError("a causal mask goes with no other one in the published code")
        batch, tokens, _ = features.shape
        mask = torch.tril(torch.ones(tokens, tokens, dtype=features.dtype, device=features.device))
        mask = mask.unsqueeze(0).expand(batch, -1, -1)
    if mask is None:
        return features.mean(dim=1, keepdim=True)
    weights = mask.to(features.dtype)
    if weights.dim() == 2:
        weights = weights.unsqueeze(-1)
        return (features * weights).sum(1, keepdim=True) / (epsilon + weights.sum(1, keepdim=True))
    return torch.einsum("bnd,bmn->bmd", features, weights) / (epsilon + weights.sum(2, keepdim=True))


class OfficialMixer(nn.Module):
    """One of our mixers with features and aggregate computed as in the published code; called like the mixer."""

    def __init__(self, mixer: Mixer) -> None:
        super().__init__()
        self.mixer = mixer

    def forward(
        self,
        query: Tensor,
        context: Tensor | None = None,
        mask: Tensor | str | None = None,
        positions: Tensor | None = None,
        context_positions: Tensor | None = None,
        *,
        causal: bool = False,
    ) -> Tensor:
        """Mix as `Mixer.forward` does."""
        if isinstance(mask, str):
            mask, causal = None, True
        projected, gate = self.mixer._project(query, context)
        polynomial = self.mixer._polynomial()
        features = official_features(projected, polynomial)
        if isinstance(self.mixer, RotaryPolynomialMixer):
            if context is None and context_positions is None:
                context_positions = positions
            cosines, sines = self.mixer._tables(context_positions, features.shape[1])
            features = rotate_blocks(features, cosines, sines)
            gate = self.mixer._rotate_gate(gate, positions)
        aggregated = official_aggregate(features, mask, causal, polynomial.epsilon)
        return self.mixer.ag_proj(select(gate, aggregated))


def with_official_mixers(module: _Module) -> _Module:
    """Return a copy of a module in which our mixers compute as the published code does."""
    copied = copy.deepcopy(module)
    for parent in list(copied.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Mixer):
                setattr(parent, name, OfficialMixer(child))
    return copied
