"""Hyper-parameters of the image model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pom_export.errors import InputError

if TYPE_CHECKING:
    from pom_export.models import JiTConfig

_CLASSES: Final = 1000
_BOTTLENECK: Final = 128
# As in the published models: tokens of the label, inserted in front after a third of the blocks.
_LABEL_TOKENS: Final = 32


@dataclass(frozen=True)
class ImageShape:
    """Hyper-parameters of an image model with random weights, of the authors' family (`pom_export.models.JiT`).

    Attributes:
        dim: model width.
        degree: degree of its mixers.
        expand: channels per model dimension.
        heads: gate values per token of each mixer.
        layers: number of blocks.
        patch: height and width of a patch; the image of N tokens has sqrt(N) * patch pixels per side.
    """

    dim: int = 512
    degree: int = 3
    expand: int = 2
    heads: int = 8
    layers: int = 4
    patch: int = 16


def image_config(shape: ImageShape, tokens: int) -> JiTConfig:
    """Return the configuration of the model whose images have `tokens` patches.

    Raises:
        InputError: `tokens` is not a square, or a hyper-parameter is out of range.
    """
    from pom_export.models import JiTConfig

    side = math.isqrt(tokens)
    if side * side != tokens:
        raise InputError(f"{tokens} tokens are not a square of patches", "Give squares, such as --tokens 256,1024,4096")
    return JiTConfig(
        input_size=side * shape.patch,
        patch_size=shape.patch,
        hidden_size=shape.dim,
        depth=shape.layers,
        num_heads=shape.heads,
        num_classes=_CLASSES,
        bottleneck_dim=_BOTTLENECK,
        in_context_len=_LABEL_TOKENS,
        in_context_start=shape.layers // 3,
        pom_degree=shape.degree,
        pom_expand=shape.expand,
    )
