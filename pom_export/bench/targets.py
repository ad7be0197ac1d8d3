"""What is timed: an exported file, a checkpoint, one of a few named layers, a stream of tokens, or an image model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pom_export.errors import InputError

_ONNX_SUFFIX = ".onnx"
_MASKS = ("none", "causal")


@dataclass(frozen=True)
class LayerShape:
    """Hyper-parameters of a layer with random weights; `heads` 1: a gate a channel."""

    dim: int = 512
    degree: int = 3
    expand: int = 2
    heads: int = 1


@dataclass(frozen=True)
class StreamShape:
    """Hyper-parameters of a language model with random weights, of the family of the public one.

    Attributes:
        dim: model width.
        degree: of its mixers.
        expand: channels of one factor per model dimension.
        heads: of each mixer.
        layers: number of blocks.
    """

    dim: int = 512
    degree: int = 3
    expand: int = 2
    heads: int = 8
    layers: int = 4


@dataclass(frozen=True)
class ImageShape:
    """Hyper-parameters of an image model with random weights, of the authors' family (`pom_export.models.JiT`).

    Attributes:
        dim: model width.
        degree: of its mixers.
        expand: channels per model dimension.
        heads: gate values a token of each mixer.
        layers: number of blocks.
        patch: height and width of a patch; N tokens are an image of sqrt(N) * patch pixels a side.
    """

    dim: int = 512
    degree: int = 3
    expand: int = 2
    heads: int = 8
    layers: int = 4
    patch: int = 16


LAYERS: Final = {"layer": LayerShape(), "layer-8-heads": LayerShape(heads=8)}
STREAM: Final = "stream"
IMAGE: Final = "image"


@dataclass(frozen=True)
class Target:
    """What is timed.

    Attributes:
        name: for people: that of the layer, or the file's own without its folders.
        path: of the file, or None for what has random weights.
        layer: of a named layer, or None.
        stream: of the language model that is timed token by token, or None.
        image: of the image model, or None.
        mask: "none", "causal", or None for the model's own.
        hints: what a checkpoint's shapes don't tell: family, degree, heads.
    """

    name: str
    path: Path | None = None
    layer: LayerShape | None = None
    stream: StreamShape | None = None
    image: ImageShape | None = None
    mask: str | None = None
    hints: Mapping[str, str | int | None] = field(default_factory=dict)

    @property
    def is_exported(self) -> bool:
        """Whether the target is an ONNX file already."""
        return self.path is not None and self.path.suffix == _ONNX_SUFFIX


def find_target(
    name: str | os.PathLike[str],
    *,
    mask: str | None = None,
    family: str | None = None,
    degree: int | None = None,
    heads: int | None = None,
    in_context_start: int | None = None,
    weights: str | None = None,
    dim: int | None = None,
    expand: int | None = None,
) -> Target:
    """Return what a name or path stands for; a named layer goes before a file of its name.

    Args:
        name: of a layer in `LAYERS`, "stream", "image", or the path of a checkpoint or an exported .onnx file.
        mask: "none" or "causal"; None: the model's own, none for a layer.
        family: of a checkpoint, where it is not to be recognised by itself.
        degree: of a layer; or what a checkpoint's shapes don't tell.
        heads: gates a token of a layer; or what a hybrid's shapes don't tell.
        in_context_start: of an image model's checkpoint, whose shapes don't tell it.
        weights: which of several sets of weights in a checkpoint.
        dim: width of a layer.
        expand: channels of a layer per model dimension.

    Raises:
        InputError: an option does not go with the target, or nothing is at the path.
    """
    if mask is not None and mask not in _MASKS:
        raise InputError(f"unknown mask {mask!r}", f"Choose one of {', '.join(_MASKS)}")
    text = os.fspath(name)
    shape = {"dim": dim, "degree": degree, "expand": expand, "heads": heads}
    given = {key: value for key, value in shape.items() if value is not None}
    of_a_checkpoint = {"family": family, "weights": weights, "in_context_start": in_context_start}
    if text == STREAM:
        _refuse({"mask": mask, **of_a_checkpoint}, "a stream")
        return Target(text, stream=StreamShape(**given))
    if text == IMAGE:
        _refuse({"mask": mask, **of_a_checkpoint}, "an image model")
        return Target(text, image=ImageShape(**given))
    if text in LAYERS:
        _refuse(of_a_checkpoint, "a named layer")
        return Target(text, layer=LayerShape(**{**vars(LAYERS[text]), **given}), mask=mask or "none")
    path = Path(text)
    if not path.exists():
        raise InputError(
            f"target {path} does not exist", f"Give a file, or one of {', '.join((*LAYERS, STREAM, IMAGE))}"
        )
    _refuse({"dim": dim, "expand": expand}, "a file, which has its own shapes")
    hints = {"degree": degree, "heads": heads, **of_a_checkpoint}
    if path.suffix == _ONNX_SUFFIX:
        _refuse({"mask": mask, **hints}, "an exported file")
        return Target(path.name, path)
    return Target(path.name, path, mask=mask, hints=hints)


def _refuse(options: Mapping[str, object], what: str) -> None:
    for name, value in options.items():
        if value is not None:
            raise InputError(f"--{name.replace('_', '-')} does not go with {what}", "Leave it out")
