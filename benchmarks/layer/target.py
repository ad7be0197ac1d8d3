"""Targets of the layer benchmark: checkpoints, and a few named layers with random weights."""

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
    """A layer or checkpoint to time.

    Attributes:
        name: for people: the layer's name, or the file's without folders.
        path: path of the checkpoint, or None for a named layer.
        layer: hyper-parameters of a named layer, or None.
        mask: "none", "causal", or None for the model's own.
        hints: what cannot be derived from a checkpoint's shapes: family, degree, heads.
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
    """Return the target of a name or path; a layer's name takes precedence over a file's.

    Args:
        name: name of a layer in `LAYERS`, or path of a checkpoint.
        mask: "none" or "causal"; None: the model's own, none for a layer.
        dim: width of a layer.
        degree: degree of a layer, or of a checkpoint if its shapes do not determine it.
        expand: channels of a layer per model dimension.
        heads: gate values per token of a layer, or attention heads of a hybrid checkpoint.
        family: family of a checkpoint; None: recognised.
        weights: which of a checkpoint's sets of weights.

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
