"""The Polynomial Mixer with rotary positions: `PoMRoPE` of the official code (arXiv 2604.06129)."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from pom_export.mixer.aggregation import Mask, MixerState, Rotation, aggregate, select
from pom_export.mixer.config import MAX_GRID, MAX_SEQ_LEN, ROPE_BASE, RotaryConfig
from pom_export.mixer.polynomial_mixer import PolynomialMixer
from pom_export.mixer.reference import rotate_blocks


def frequency_tables(width: int, positions: int, base: float = ROPE_BASE) -> tuple[Tensor, Tensor]:
    """Return the cosines and sines, (positions, width) each, of angle p * base^(-i / width) for pair i at position p.

    Computed in float32, as in the official code.
    """
    frequencies = 1.0 / base ** (torch.arange(width, dtype=torch.float32) / width)
    angles = torch.outer(torch.arange(positions, dtype=torch.float32), frequencies)
    return angles.cos(), angles.sin()


class RotaryPolynomialMixer(PolynomialMixer):
    """A `PolynomialMixer` whose features and gate are rotated by their tokens' positions.

    State dict names, tables included, are those of the official `pom.PoMRoPE`.

    Args:
        dim: model width d.
        degree: polynomial degree K.
        expand: channels per model dimension k; C = k * d.
        n_groups: groups of the context projection.
        n_sel_heads: gate values per token; 0 or 1: one per channel.
        bias: whether the output (and a grouped context) projection has a bias.
        max_seq_len: number of 1-D positions.
        max_h: number of rows of 2-D positions.
        max_w: number of columns of 2-D positions.
        rope_base: base of the frequencies.
        rope_2d: whether positions are rows and columns.

    Raises:
        InputError: a hyper-parameter is out of range.
    """

    def __init__(
        self,
        dim: int,
        degree: int,
        expand: int,
        n_groups: int = 1,
        n_sel_heads: int = 1,
        bias: bool = False,
        max_seq_len: int = MAX_SEQ_LEN,
        max_h: int = MAX_GRID,
        max_w: int = MAX_GRID,
        rope_base: float = ROPE_BASE,
        rope_2d: bool = False,
    ) -> None:
        super().__init__(dim, degree, expand, n_groups, n_sel_heads, bias)
        self.rotary = RotaryConfig(max_h=max_h, max_w=max_w) if rope_2d else RotaryConfig(max_seq_len)
        self.config = replace(self.config, rotary=self.rotary)
        pairs = self.config.channels // (2 * self.rotary.blocks)
        for axis, count in zip(self._axes, self.rotary.limits, strict=True):
            cos, sin = frequency_tables(pairs, count, rope_base)
            self.register_buffer(f"{axis}_cos", cos)
            self.register_buffer(f"{axis}_sin", sin)

    @property
    def _axes(self) -> tuple[str, ...]:
        """Prefixes of the tables' names, one for each index of a position."""
        return ("freqs",) if self.rotary.blocks == 1 else ("row", "col")

    def forward(
        self,
        query: Tensor,
        context: Tensor | None = None,
        mask: Mask = None,
        positions: Tensor | None = None,
        context_positions: Tensor | None = None,
        *,
        causal: bool = False,
        state: MixerState | None = None,
    ) -> Tensor | tuple[Tensor, MixerState]:
        """Mix the context into every query token.

        Args:
            query: (B, T, d).
            context: (B, N, d), or None for the query itself.
            mask: as in `Mixer.forward`.
            positions: the query's positions, int64: (T), (B, T), or (T, 2) rows and columns; None: 0..T-1, or counted
                from the state's length, for 1-D mixers only.
            context_positions: the context's positions; None: those of the query if it is the context, else 0..N-1.
            causal: as in `Mixer.forward`.
            state: as in `Mixer.forward`.

        Returns:
            (B, T, d), and the next state if one was given.

        Raises:
            ValueError: the mask's kind or rank is not supported, the state's size is wrong, or a 2-D mixer gets no
                positions.
        """
        projected, gate = self._project(query, context)
        if positions is None and state is not None and self.rotary.blocks == 1:
            positions = self._positions_after(state, query.shape[1], mask)
        if context is None and context_positions is None:
            context_positions = positions
        tables = self._tables(context_positions, projected.shape[1])
        cos, sin = (parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1) for parts in tables)
        rotation = Rotation(cos, sin, self.rotary.blocks)
        aggregated, present = aggregate(projected, self._polynomial(), mask, causal, rotation, state)
        mixed = self.ag_proj(select(self._rotate_gate(gate, positions), aggregated))
        return mixed if present is None else (mixed, present)

    def stream(
        self,
        query: Tensor,
        state: MixerState,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
        *,
        causal: bool = True,
    ) -> tuple[Tensor, MixerState]:
        """Mix as `Mixer.stream` does, at the given positions or those that follow the state's tokens."""
        # Through __call__, as in `Mixer.stream`.
        result = self(query, mask=mask, positions=positions, causal=causal, state=state)
        return cast("tuple[Tensor, MixerState]", result)

    @staticmethod
    def _positions_after(state: MixerState, tokens: int, mask: Mask) -> Tensor:
        """Return the positions (B, T) of a call's tokens."""
        positions = state.length[:, None] + torch.arange(tokens, device=state.length.device)
        # A masked token may be beyond the last position.
        return positions.masked_fill(mask == 0, 0) if isinstance(mask, Tensor) else positions

    def _tables(
        self, positions: Tensor | None, tokens: int, stride: int = 1, width: int | None = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return the tokens' cosines and sines for each axis: every `stride`-th column, at most `width` of them."""
        if positions is None:
            if self.rotary.blocks > 1:
                raise ValueError("a mixer of 2-D positions needs them: give positions, (tokens, 2) rows and columns")
            torch._check(
                tokens <= self.rotary.max_seq_len,
                lambda: f"{tokens} tokens, but the mixer has positions for {self.rotary.max_seq_len}",
            )
        elif positions.dim() != self.rotary.blocks and positions.shape[1:] != (tokens,):
            kind = "(tokens)" if self.rotary.blocks == 1 else "(tokens, 2)"
            raise ValueError(f"positions must be {kind}, got shape {tuple(positions.shape)}")
        tables = []
        for kind in ("cos", "sin"):
            parts = []
            for axis, name in enumerate(self._axes):
                table = self.get_buffer(f"{name}_{kind}")[:, ::stride][:, :width]
                if positions is None:
                    parts.append(table[:tokens])
                else:
                    parts.append(table[positions if self.rotary.blocks == 1 else positions[:, axis]])
            tables.append(parts)
        return tables[0], tables[1]

    def _rotate_gate(self, gate: Tensor, positions: Tensor | None) -> Tensor:
        """Rotate the gate; if it has heads, pair k is rotated by the same angle as the first pair of head k."""
        blocks, gates, stride = self.rotary.blocks, gate.shape[-1], 1
        if gates != self.config.channels:
            stride = self.config.channels // gates * blocks // 2
        cosines, sines = self._tables(positions, gate.shape[1], stride, gates // (2 * blocks))
        return rotate_blocks(gate, cosines, sines).to(gate.dtype)
