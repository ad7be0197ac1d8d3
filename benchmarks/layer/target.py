"""What a layer's benchmark times: a checkpoint, or one of a few named layers with random weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from pom_export.errors import InputError

MASKS: Final = ("none", "causal")


@dataclass(frozen=True)
class LayerShape:
    """Hyper-parameters of a layer with random weights; `heads` 1: one gate per channel."""

    dim: int = 512
    degree: int = 3
    expand: int = 2
    heads: int = 1


LAYERS: Final = {"layer": LayerShape(), "layer-8-heads": LayerShape(heads=8)}


@dataclass(frozen=True)
class Target:
    """What is timed.

    Attributes:
        name: for people: that of the layer, or the file's own without its folders.
        path: of the checkpoint, or None for what has random weights.
        layer: of a named layer, or None.
        mask: "none", "causal", or None for the model's own.
        hints: what a checkpoint's shapes don't tell: family, degree, heads.
    """

    name: str
    path: Path | None = None
    layer: LayerShape | None = None
    mask: str | None = None
    hints: Mapping[str, str | int | None] = field(default_factory=dict)


def find_target(
    name: str,
    *,
    mask: str | None = None,
    dim: int | None = None,
    degree: int | None = None,
    expand: int | None = None,
    heads: int | None = None,
    family: str | None = None,
    weights: str | None = None,
) -> Target:
    """Return what a name or path stands for; a named layer goes before a file of its name.

    Args:
        name: of a layer in `LAYERS`, or the path of a checkpoint.
        mask: "none" or "causal"; None: the model's own, none for a layer.
        dim: width of a layer.
        degree: of a layer; or what a checkpoint's shapes don't tell.
        expand: channels of a layer per model dimension.
        heads: gates a token of a layer; or what a hybrid's shapes don't tell.
        family: of a checkpoint, where it is not to be recognised by itself.
        weights: which of several sets of weights in a checkpoint.

    Raises:
        InputError: an option does not go with the target, or nothing is at the path.
    """
    of_a_checkpoint = {"family": family, "weights": weights}
    if name in LAYERS:
        _refuse(of_a_checkpoint, "a named layer")
        shape = {"dim": dim, "degree": degree, "expand": expand, "heads": heads}
        given = {key: value for key, value in shape.items() if value is not None}
        return Target(name, layer=replace(LAYERS[name], **given), mask=mask or "none")
    path = Path(name)
    if not path.exists():
        raise InputError(f"target {path} does not exist", f"Give a checkpoint, or one of {', '.join(LAYERS)}")
    _refuse({"dim": dim, "expand": expand}, "a file, which has its own shapes")
    return Target(path.name, path, mask=mask, hints={"degree": degree, "heads": heads, **of_a_checkpoint})


def _refuse(options: Mapping[str, object], what: str) -> None:
    for name, value in options.items():
        if value is not None:
            raise InputError(f"--{name} does not go with {what}", "Leave it out")
