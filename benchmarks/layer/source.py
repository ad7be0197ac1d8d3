"""Load the model of a target."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.layer.target import LayerShape, Target
from pom_export.api.progress import Progress

if TYPE_CHECKING:
    from torch import nn

    from pom_export.api.source import Source


@dataclass(frozen=True)
class LoadedTarget:
    """A loaded target.

    Attributes:
        model: the argument of `pom_export.export`.
        source: the loaded model.
        summary: one line, without the folders of a file.
        positions: whether the tokens' positions must be an input, as for mixers of rows and columns.
    """

    model: Path | nn.Module
    source: Source
    summary: str
    positions: bool = False


def load_target(target: Target, seed: int, progress: Progress) -> LoadedTarget:
    """Load a checkpoint or make a layer.

    Raises:
        InputError: the file cannot be read or its model is unknown, or a hyper-parameter is out of range.
    """
    from pom_export.api.source import load_source
    from pom_export.graph.options import GraphOptions
    from pom_export.graph.programs import program_of
    from pom_export.mixer import RotaryPolynomialMixer

    recognised: list[str] = []

    def tell(line: str) -> None:
        progress(line)
        recognised.append(line.removeprefix("recognised "))

    if target.layer is not None:
        model: Path | nn.Module = _random_layer(target.layer, seed)
        summary = _summary(target.layer)
    else:
        assert target.path is not None
        model = target.path
    source = load_source(model, GraphOptions(target.mask), hints=target.hints, progress=tell)
    if target.layer is None:
        chosen = f", its weights {source.weights}" if source.other_weights else ""
        summary = f"{target.name}: {recognised[0]}{chosen}"
    positions = isinstance(source.module, RotaryPolynomialMixer) and source.module.rotary.blocks > 1
    if positions:
        options = GraphOptions(target.mask, positions=True)
        source = dataclasses.replace(source, make_program=lambda module: program_of(module, options))
    return LoadedTarget(model, source, summary, positions)


def _random_layer(shape: LayerShape, seed: int) -> nn.Module:
    import torch

    from pom_export.mixer import PolynomialMixer

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return PolynomialMixer(shape.dim, shape.degree, shape.expand, n_sel_heads=shape.heads).eval()


def _summary(shape: LayerShape) -> str:
    heads = f"{shape.heads} heads" if shape.heads > 1 else "one gate per channel"
    return f"a layer of dim {shape.dim}, degree {shape.degree}, expand {shape.expand}, {heads}"
