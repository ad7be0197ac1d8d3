"""Hyper-parameters of one Polynomial Mixer layer."""

from __future__ import annotations

from dataclasses import dataclass

from pom_export.contract import MAX_DEGREE, MIN_DEGREE
from pom_export.errors import InputError


@dataclass(frozen=True)
class MixerConfig:
    """Hyper-parameters of a v2 Polynomial Mixer (arXiv 2604.06129), with the official names.

    Attributes:
        dim: model width d.
        degree: polynomial degree K, 1 to 16.
        expand: channels per model dimension k; the mixer has C = k * d channels.
        n_groups: groups of the context projection; must divide d.
        n_sel_heads: gate values a token; 0 or 1 mean one a channel. Otherwise it must divide C.
        bias: whether the output (and a grouped context) projection has a bias.

    Raises:
        InputError: a value is out of range.
    """

    dim: int
    degree: int
    expand: int
    n_groups: int = 1
    n_sel_heads: int = 1
    bias: bool = False

    def __post_init__(self) -> None:
        for name in ("dim", "expand", "n_groups"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not MIN_DEGREE <= self.degree <= MAX_DEGREE:
            raise InputError(f"degree must be {MIN_DEGREE} to {MAX_DEGREE}, got {self.degree}")
        if self.dim % self.n_groups:
            raise InputError(f"n_groups must divide dim, got {self.n_groups} and {self.dim}")
        if self.n_sel_heads < 0 or (self.n_sel_heads > 1 and self.channels % self.n_sel_heads):
            raise InputError(f"n_sel_heads must divide expand * dim = {self.channels}, got {self.n_sel_heads}")

    @property
    def channels(self) -> int:
        """Number of polynomial channels C."""
        return self.expand * self.dim

    @property
    def gate_width(self) -> int:
        """Number of gate values a token, S: C, or the number of selection heads."""
        return self.n_sel_heads if self.n_sel_heads > 1 else self.channels
