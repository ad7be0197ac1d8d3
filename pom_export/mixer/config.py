"""Hyper-parameters of one Polynomial Mixer layer, with the official names."""

from __future__ import annotations

from dataclasses import dataclass

from pom_export.contract import MAX_DEGREE, MIN_DEGREE
from pom_export.errors import InputError

# The base of the official frequency schedule, and the numbers of positions that the official classes have tables for.
ROPE_BASE = 10000.0
MAX_SEQ_LEN = 4096
MAX_GRID = 64


def _check_positive(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise InputError(f"{name} must be at least 1, got {value}")


def _check_degree(degree: int) -> None:
    if not MIN_DEGREE <= degree <= MAX_DEGREE:
        raise InputError(f"degree must be {MIN_DEGREE} to {MAX_DEGREE}, got {degree}")


@dataclass(frozen=True)
class RotaryConfig:
    """Positions of a rotary mixer (`pom.PoMRoPE`).

    Attributes:
        max_seq_len: number of 1-D positions; 0 for a 2-D mixer.
        max_h: number of rows; 0 for a 1-D mixer.
        max_w: number of columns; 0 for a 1-D mixer.

    Raises:
        InputError: neither or both kinds of positions are given.
    """

    max_seq_len: int = 0
    max_h: int = 0
    max_w: int = 0

    def __post_init__(self) -> None:
        if self.max_seq_len:
            _check_positive(max_seq_len=self.max_seq_len)
            if self.max_h or self.max_w:
                raise InputError("a rotary mixer has max_seq_len, or max_h and max_w, not both")
        else:
            _check_positive(max_h=self.max_h, max_w=self.max_w)

    @property
    def blocks(self) -> int:
        """Number of channel blocks, each rotated by an index of its own: 1, or 2 for rows and columns."""
        return 1 if self.max_seq_len else 2

    @property
    def limits(self) -> tuple[int, ...]:
        """The number of values of each index of a position."""
        return (self.max_seq_len,) if self.max_seq_len else (self.max_h, self.max_w)


@dataclass(frozen=True)
class MixerConfig:
    """Hyper-parameters of a v2 Polynomial Mixer (arXiv 2604.06129).

    Attributes:
        dim: model width d.
        degree: polynomial degree K, 1 to 16.
        expand: channels per model dimension k; the mixer has C = k * d channels.
        n_groups: groups of the context projection; must divide d.
        n_sel_heads: gate values per token; 0 or 1 means one per channel. Otherwise it must divide C.
        bias: whether the output (and a grouped context) projection has a bias.
        rotary: positions of a rotary mixer, or None.

    Raises:
        InputError: a value is out of range.
    """

    dim: int
    degree: int
    expand: int
    n_groups: int = 1
    n_sel_heads: int = 1
    bias: bool = False
    rotary: RotaryConfig | None = None

    def __post_init__(self) -> None:
        _check_positive(dim=self.dim, expand=self.expand, n_groups=self.n_groups)
        _check_degree(self.degree)
        if self.dim % self.n_groups:
            raise InputError(f"`n_groups` must divide dim, got {self.n_groups} and {self.dim}")
        if self.n_sel_heads < 0 or (self.n_sel_heads > 1 and self.channels % self.n_sel_heads):
            raise InputError(f"n_sel_heads must divide expand * dim = {self.channels}, got {self.n_sel_heads}")
        if self.rotary is not None:
            self._check_rotary(2 * self.rotary.blocks)

    def _check_rotary(self, multiple: int) -> None:
        if self.channels % multiple:
            raise InputError(f"a rotary mixer needs expand * dim divisible by {multiple}, got {self.channels}")
        if self.n_sel_heads > 1 and (self.n_sel_heads % multiple or self.channels // self.n_sel_heads < multiple):
            raise InputError(
                f"a rotary mixer needs n_sel_heads divisible by {multiple}, with at least {multiple} channels each; "
                f"got {self.n_sel_heads} heads and {self.channels} channels"
            )

    @property
    def channels(self) -> int:
        """Number of polynomial channels C."""
        return self.expand * self.dim

    @property
    def gate_width(self) -> int:
        """Number of gate values per token, S: C, or the number of selection heads."""
        return self.n_sel_heads if self.n_sel_heads > 1 else self.channels


@dataclass(frozen=True)
class ProductMixerConfig:
    """Hyper-parameters of a v1 Polynomial Mixer (arXiv 2411.12663).

    Attributes:
        dim: model width d.
        degree: number of factors K, 1 to 16.
        expand: channels of one factor per model dimension k; the mixer has C = K * k * d channels.
        n_head: number of groups of the context projection, and of channels that share a gate value; None: not grouped.
        bias: whether the projections have biases.

    Raises:
        InputError: a value is out of range.
    """

    dim: int
    degree: int
    expand: int
    n_head: int | None = None
    bias: bool = True

    def __post_init__(self) -> None:
        _check_positive(dim=self.dim, expand=self.expand, n_head=self.heads)
        _check_degree(self.degree)
        if self.dim % self.heads:
            raise InputError(f"n_head must divide dim, got {self.n_head} and {self.dim}")

    @property
    def heads(self) -> int:
        """Number of groups; 1 if the projection is not grouped."""
        return 1 if self.n_head is None else self.n_head

    @property
    def channels(self) -> int:
        """Number of channels C of all factors together."""
        return self.degree * self.expand * self.dim

    @property
    def gate_width(self) -> int:
        """Number of gate values per token."""
        return self.channels // self.heads
