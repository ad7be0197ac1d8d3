"""The public image model of PoM: a diffusion transformer of pixels, JiT, with Polynomial Mixers.

Source: github.com/davidpicard/JiTpp. State dict names are those of its checkpoints, below `denoiser.net.`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, cast

import torch
from torch import Tensor, nn
from torch.nn import functional, init

from pom_export.errors import InputError
from pom_export.mixer import MixerConfig, RotaryConfig, RotaryPolynomialMixer

IN_CONTEXT_STARTS: Final = {12: 4, 24: 8, 32: 10}
"""The block before which the published models (JiT-B, -L and -H) insert their in-context tokens, by depth."""

_NORM_EPSILON = 1e-6
_FREQUENCIES, _LONGEST_PERIOD = 128, 10000.0
_INITIAL_DEVIATION = 0.02
_MLP_RATIO = 4
_SIZES = ("input_size", "patch_size", "hidden_size", "depth", "num_heads", "num_classes", "bottleneck_dim", "channels")


@dataclass(frozen=True)
class JiTConfig:
    """Hyper-parameters of `JiT`, with the official names where those exist.

    Attributes:
        input_size: height and width of an image H.
        patch_size: height and width of a patch; divides H.
        hidden_size: model width d, a multiple of 4.
        depth: number of blocks.
        num_heads: gate values per token in every mixer.
        num_classes: number of labels; one more, `num_classes` itself, means "no class".
        bottleneck_dim: width between the two layers that embed a patch.
        in_context_len: number L of in-context tokens, which carry the label.
        in_context_start: index of the block before which they are prepended to the patches.
        pom_degree: polynomial degree K of every mixer.
        pom_expand: channels per model dimension k of every mixer.
        pom_n_groups: groups of every mixer's context projection.
        mlp_width: hidden width of every MLP; 0: the authors' choice, two thirds of 4 d.
        max_h: number of rows that the mixers have positions for; 0: the number of patches.
        max_w: number of columns that they have positions for; 0: the number of patches.
        channels: number of channels of an image.

    Raises:
        InputError: a value is out of range.
    """

    input_size: int
    patch_size: int
    hidden_size: int
    depth: int
    num_heads: int
    num_classes: int
    bottleneck_dim: int
    in_context_len: int
    in_context_start: int
    pom_degree: int
    pom_expand: int
    pom_n_groups: int = 1
    mlp_width: int = 0
    max_h: int = 0
    max_w: int = 0
    channels: int = 3

    def __post_init__(self) -> None:
        for name in _SIZES:
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.input_size % self.patch_size:
            raise InputError(f"patch_size must divide input_size, got {self.patch_size} and {self.input_size}")
        if self.hidden_size % 4:  # sines and cosines of rows and columns
            raise InputError(f"hidden_size must be a multiple of 4, got {self.hidden_size}")
        defaults = {"mlp_width": _MLP_RATIO * self.hidden_size * 2 // 3, "max_h": self.side, "max_w": self.side}
        for name, default in defaults.items():
            object.__setattr__(self, name, getattr(self, name) or default)
        if self.mlp_width < 1 or self.in_context_len < 0:
            raise InputError(f"mlp_width {self.mlp_width} or in_context_len {self.in_context_len} is negative")
        if min(self.max_h, self.max_w) < self.side:
            raise InputError(f"there are {self.side} rows and columns, but positions for {self.max_h} and {self.max_w}")
        if not 0 <= self.in_context_start < self.depth:
            raise InputError(f"in_context_start must be 0 to {self.depth - 1}, got {self.in_context_start}")
        _ = self.mixer

    @property
    def side(self) -> int:
        """Number of rows, and of columns, of patches."""
        return self.input_size // self.patch_size

    @property
    def mixer(self) -> MixerConfig:
        """Hyper-parameters of every mixer."""
        rotary = RotaryConfig(max_h=self.max_h, max_w=self.max_w)
        return MixerConfig(
            self.hidden_size, self.pom_degree, self.pom_expand, self.pom_n_groups, self.num_heads, rotary=rotary
        )


def _modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale) + shift


def _grid(side: int, device: torch.device) -> Tensor:
    """Return the row and the column of each patch, (side * side, 2) int64."""
    index = torch.arange(side * side, device=device)
    return torch.stack([index // side, index % side], dim=1)


def _sines_and_cosines(dim: int, side: int) -> Tensor:
    """Return the initial embedding of the patches, (side * side, dim): half encodes the column, half the row."""
    frequencies = _LONGEST_PERIOD ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    angles = _grid(side, frequencies.device).flip(1)[..., None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(1).float()


class TimeEmbedder(nn.Module):
    """An MLP that takes cosines and sines of the time."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(2 * _FREQUENCIES, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, t: Tensor) -> Tensor:
        """Return (B, d) for t (B)."""
        steps = torch.arange(_FREQUENCIES, dtype=torch.float32, device=t.device)
        angles = t[:, None] * torch.exp(steps * (-math.log(_LONGEST_PERIOD) / _FREQUENCIES))
        embedded = torch.cat([angles.cos(), angles.sin()], dim=-1)
        return cast("Tensor", self.mlp(embedded.to(cast("nn.Linear", self.mlp[0]).weight.dtype)))


class LabelEmbedder(nn.Module):
    """A table of labels; the last row stands for "no class"."""

    def __init__(self, num_classes: int, dim: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + 1, dim)

    def forward(self, y: Tensor) -> Tensor:
        """Return (B, d) for y (B) int64."""
        return cast("Tensor", self.embedding_table(y))


class PatchEmbedder(nn.Module):
    """Projects patches to a bottleneck, and from there to the model's width."""

    def __init__(self, config: JiTConfig) -> None:
        super().__init__()
        patch = config.patch_size
        self.proj1 = nn.Conv2d(config.channels, config.bottleneck_dim, kernel_size=patch, stride=patch, bias=False)
        self.proj2 = nn.Conv2d(config.bottleneck_dim, config.hidden_size, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, N, d), row by row, for x (B, 3, H, H)."""
        return cast("Tensor", self.proj2(self.proj1(x))).flatten(2).transpose(1, 2)


class GatedMLP(nn.Module):
    """w3(silu(first) * second), where `first` and `second` are the halves of w12's result."""

    def __init__(self, config: JiTConfig) -> None:
        super().__init__()
        self.w12 = nn.Linear(config.hidden_size, 2 * config.mlp_width)
        self.w3 = nn.Linear(config.mlp_width, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, N, d) for x (B, N, d)."""
        gate, value = self.w12(x).chunk(2, dim=-1)
        return cast("Tensor", self.w3(functional.silu(gate) * value))


class Modulation(nn.Sequential):
    """Computes vectors that shift and scale tokens from time and label: a layer after a SiLU that all blocks share."""

    def __init__(self, dim: int, vectors: int) -> None:
        super().__init__(nn.SiLU(), nn.Linear(dim, vectors * dim))
        self.vectors = vectors

    def forward(self, activated: Tensor) -> Sequence[Tensor]:
        """Return the vectors, (B, 1, d) each, given the SiLU (B, 1, d) of time and label."""
        return cast("Tensor", self[1](activated)).chunk(self.vectors, dim=-1)


class Block(nn.Module):
    """A mixer and an MLP; time and label shift and scale the input of each, and scale its output."""

    def __init__(self, config: JiTConfig, mixer: nn.Module) -> None:
        super().__init__()
        dim = config.hidden_size
        self.norm1 = nn.RMSNorm(dim, eps=_NORM_EPSILON)
        self.attn = mixer
        self.norm2 = nn.RMSNorm(dim, eps=_NORM_EPSILON)
        self.mlp = GatedMLP(config)
        self.adaLN_modulation = Modulation(dim, 6)

    def forward(self, x: Tensor, activated: Tensor, positions: Tensor) -> Tensor:
        """Return (B, N, d) for x (B, N, d), the SiLU (B, 1, d) of time and label, and positions (N, 2) int64."""
        vectors = self.adaLN_modulation(activated)
        shift, scale, gate = vectors[:3]
        x = x + gate * self.attn(_modulate(self.norm1(x), shift, scale), positions=positions)
        shift, scale, gate = vectors[3:]
        return cast("Tensor", x + gate * self.mlp(_modulate(self.norm2(x), shift, scale)))


class FinalLayer(nn.Module):
    """Projects tokens to the pixels of their patches."""

    def __init__(self, config: JiTConfig) -> None:
        super().__init__()
        dim = config.hidden_size
        self.norm_final = nn.RMSNorm(dim, eps=_NORM_EPSILON)
        self.linear = nn.Linear(dim, config.patch_size**2 * config.channels)
        self.adaLN_modulation = Modulation(dim, 2)

    def forward(self, x: Tensor, activated: Tensor) -> Tensor:
        """Return (B, N, patch * patch * 3) for x (B, N, d) and the SiLU (B, 1, d) of time and label."""
        shift, scale = self.adaLN_modulation(activated)
        return cast("Tensor", self.linear(_modulate(self.norm_final(x), shift, scale)))


class JiT(nn.Module):
    """Predicts a clean image from a noisy one, the time and a label.

    The attribute `is_polynomial` tells whether its mixers are PoM's.

    Args:
        config: hyper-parameters.
        make_mixer: returns a module that mixes a block's tokens instead of a `RotaryPolynomialMixer`, for comparisons.
            It is called as `mixer(x, positions=positions)` with x (B, N, d) and positions (N, 2) int64.
    """

    def __init__(self, config: JiTConfig, make_mixer: Callable[[JiTConfig], nn.Module] | None = None) -> None:
        super().__init__()
        self.config = config
        # In the order of the official module, since averages of its parameters are saved as lists in that order.
        self.pos_embed = nn.Parameter(torch.zeros(1, config.side**2, config.hidden_size), requires_grad=False)
        if config.in_context_len:
            self.in_context_posemb = nn.Parameter(torch.zeros(1, config.in_context_len, config.hidden_size))
        self.t_embedder = TimeEmbedder(config.hidden_size)
        self.y_embedder = LabelEmbedder(config.num_classes, config.hidden_size)
        self.x_embedder = PatchEmbedder(config)
        self.is_polynomial = make_mixer is None
        make = make_mixer or _polynomial_mixer
        self.blocks = nn.ModuleList(Block(config, make(config)) for _ in range(config.depth))
        self.final_layer = FinalLayer(config)
        self._initialize()

    def _initialize(self) -> None:
        """Initialise as the authors do: every block as the identity, and the output as zeros."""
        for part in self.modules():
            if isinstance(part, nn.Linear):
                init.xavier_uniform_(part.weight)
                if part.bias is not None:
                    init.zeros_(part.bias)
        embedder = self.x_embedder
        for convolution in (embedder.proj1, embedder.proj2):
            init.xavier_uniform_(convolution.weight.flatten(1))
        init.zeros_(cast("Tensor", embedder.proj2.bias))
        tables = [self.y_embedder.embedding_table, self.t_embedder.mlp[0], self.t_embedder.mlp[2]]
        for table in tables:
            init.normal_(cast("Tensor", table.weight), std=_INITIAL_DEVIATION)
        if self.config.in_context_len:
            init.normal_(self.in_context_posemb, std=_INITIAL_DEVIATION)
        modulated = [*cast("Iterable[Block | FinalLayer]", self.blocks), self.final_layer]
        for layer in [self.final_layer.linear, *(part.adaLN_modulation[1] for part in modulated)]:
            for parameter in layer.parameters():
                init.zeros_(parameter)
        with torch.no_grad():
            self.pos_embed.copy_(_sines_and_cosines(self.config.hidden_size, self.config.side))

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Return the model's estimate of the clean image, (B, 3, H, H).

        Args:
            x: (B, 3, H, H), `t` times the image plus `1 - t` times normal noise.
            t: (B), the time: 0 for pure noise, 1 for the image.
            y: (B) int64, labels; `num_classes` for no class.
        """
        config = self.config
        label = self.y_embedder(y)[:, None]
        activated = functional.silu(self.t_embedder(t)[:, None] + label)
        tokens, positions = self.x_embedder(x) + self.pos_embed, _grid(config.side, x.device)
        for index, block in enumerate(self.blocks):
            if config.in_context_len and index == config.in_context_start:
                tokens = torch.cat([label + self.in_context_posemb, tokens], dim=1)
                positions = functional.pad(positions, (0, 0, config.in_context_len, 0))  # in row and column 0
            tokens = block(tokens, activated, positions)
        return self._image(self.final_layer(tokens[:, config.in_context_len :], activated))

    def _image(self, patches: Tensor) -> Tensor:
        """Return (B, 3, H, H) for (B, N, patch * patch * 3), where the channels of a pixel are adjacent."""
        side, patch, channels = self.config.side, self.config.patch_size, self.config.channels
        pixels = patches.unflatten(2, (patch, patch, channels)).unflatten(1, (side, side))
        return pixels.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


def _polynomial_mixer(config: JiTConfig) -> nn.Module:
    mixer = config.mixer
    return RotaryPolynomialMixer(
        mixer.dim,
        mixer.degree,
        mixer.expand,
        mixer.n_groups,
        mixer.n_sel_heads,
        max_h=config.max_h,
        max_w=config.max_w,
        rope_2d=True,
    )
