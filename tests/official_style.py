"""Modules as users have them: with the official layers' parameters, attributes and signatures, plainly written.

They share no code with the toolkit; the arithmetic is checked against the golden cases.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


def _aggregate(p: Tensor, mask: Any, epsilon: float) -> Tensor:
    if mask is None:
        return p.mean(1, keepdim=True)
    if isinstance(mask, str):
        mask = torch.tril(torch.ones(p.shape[1], p.shape[1], device=p.device)).unsqueeze(0)
    weights = mask.to(p.dtype)
    if weights.dim() == 2:
        weights = weights.unsqueeze(1)
    return weights @ p / (epsilon + weights.sum(-1, keepdim=True))


class PoM(nn.Module):
    """v2, with the names of the official class."""

    def __init__(self, dim: int, degree: int, expand: int, n_groups: int, n_sel_heads: int, bias: bool = False) -> None:
        super().__init__()
        self.dim, self.order, self.n_groups, self.n_sel_heads = dim, degree, n_groups, n_sel_heads
        channels = dim * expand
        gates = n_sel_heads if n_sel_heads > 1 else channels
        if n_groups > 1:
            self.po_proj = nn.Conv1d(dim, channels, 1, bias=bias, groups=n_groups)
            self.se_proj = nn.Linear(dim, gates)
        else:
            self.qc_proj = nn.Linear(dim, channels + gates, bias=False)
            self.se_bias = nn.Parameter(torch.randn(gates))
        self.po_coeff = nn.Parameter(torch.randn(channels, degree))
        self.ag_proj = nn.Linear(channels, dim, bias=bias)

    def forward(self, xq: Tensor, xc: Tensor | None = None, mask: Any = None) -> Tensor:
        context = xq if xc is None else xc
        channels = self.po_coeff.shape[0]
        if self.n_groups > 1:
            u, s = self.po_proj(context.transpose(1, 2)).transpose(1, 2), self.se_proj(xq)
        else:
            weight = self.qc_proj.weight
            u, s = context @ weight[:channels].T, xq @ weight[channels:].T + self.se_bias
        h = functional.leaky_relu(u, 0.01).clamp(min=-0.1, max=6.0)
        p = sum(self.po_coeff[:, j] * h ** (j + 1) for j in range(self.order))
        gate = functional.hardsigmoid(s)
        if self.n_sel_heads > 1:
            gate = gate.repeat_interleave(channels // self.n_sel_heads, dim=-1)
        return self.ag_proj(gate * _aggregate(p, mask, 0.0))


class SeparatePoM(nn.Module):
    """v2 with separate projections of context and gate, with the names of the official class of early 2026."""

    def __init__(self, dim: int, degree: int, expand: int, n_groups: int, n_sel_heads: int, bias: bool = False) -> None:
        super().__init__()
        self.dim, self.order, self.n_groups, self.n_sel_heads = dim, degree, n_groups, n_sel_heads
        channels = dim * expand
        self.po_proj = nn.Linear(dim, channels, bias=False)
        self.po_coeff = nn.Parameter(torch.randn(channels, degree))
        self.se_proj = nn.Linear(dim, n_sel_heads if n_sel_heads > 1 else channels)
        self.ag_proj = nn.Linear(channels, dim, bias=bias)

    def forward(self, xq: Tensor, xc: Tensor | None = None, mask: Any = None) -> Tensor:
        h = functional.leaky_relu(self.po_proj(xq if xc is None else xc), 0.01).clamp(min=-0.1, max=6.0)
        p = sum(self.po_coeff[:, j] * h ** (j + 1) for j in range(self.order))
        gate = functional.hardsigmoid(self.se_proj(xq))
        if self.n_sel_heads > 1:
            gate = gate.repeat_interleave(self.po_coeff.shape[0] // self.n_sel_heads, dim=-1)
        return self.ag_proj(gate * _aggregate(p, mask, 0.0))


class ProductPoM(nn.Module):
    """v1, plain (n_head None) or grouped, with the names of the official classes."""

    def __init__(self, dim: int, degree: int, expand: int, n_head: int | None = None, bias: bool = True) -> None:
        super().__init__()
        self.dim, self.order, self.order_expand = dim, degree, expand
        self.n_head = n_head
        channels = degree * expand * dim
        if n_head is None:
            self.po_proj: nn.Module = nn.Linear(dim, channels, bias=bias)
        else:
            self.po_proj = nn.Conv1d(dim, channels, 1, bias=bias, groups=n_head)
        self.se_proj = nn.Linear(dim, channels // (n_head or 1), bias=bias)
        self.ag_proj = nn.Linear(channels, dim, bias=bias)

    def forward(self, xq: Tensor, xc: Tensor | None = None, mask: Any = None) -> Tensor:
        context = xq if xc is None else xc
        u = self.po_proj(context) if self.n_head is None else self.po_proj(context.transpose(1, 2)).transpose(1, 2)
        factors = functional.gelu(u).chunk(self.order, dim=-1)
        running = [factors[0]]
        for factor in factors[1:]:
            running.append(running[-1] * factor)
        gate = torch.sigmoid(self.se_proj(xq)).repeat_interleave(self.n_head or 1, dim=-1)
        return self.ag_proj(gate * _aggregate(torch.cat(running, dim=-1), mask, 1e-7))


class RotaryPoM(PoM):
    """v2 with 1-D rotary positions and one gate per channel, with the names of the official class."""

    def __init__(self, dim: int, degree: int, expand: int, max_seq_len: int) -> None:
        super().__init__(dim, degree, expand, 1, 1)
        width = dim * expand // 2
        angles = torch.outer(torch.arange(max_seq_len), 10000.0 ** -(torch.arange(width) / width))
        self.register_buffer("freqs_cos", angles.cos())
        self.register_buffer("freqs_sin", angles.sin())

    def _turn(self, x: Tensor, positions: Tensor | None) -> Tensor:
        positions = torch.arange(x.shape[1]) if positions is None else positions
        cos, sin = self.freqs_cos[positions], self.freqs_sin[positions]
        first, second = x.chunk(2, dim=-1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)

    def forward(
        self,
        xq: Tensor,
        xc: Tensor | None = None,  # noqa: ARG002 (the official signature)
        mask: Any = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        weight, channels = self.qc_proj.weight, self.po_coeff.shape[0]
        u, s = xq @ weight[:channels].T, xq @ weight[channels:].T + self.se_bias
        h = functional.leaky_relu(u, 0.01).clamp(min=-0.1, max=6.0)
        p = sum(self.po_coeff[:, j] * h ** (j + 1) for j in range(self.order))
        gate = self._turn(functional.hardsigmoid(s), positions)
        return self.ag_proj(gate * _aggregate(self._turn(p, positions), mask, 0.0))
