"""The models that stream: a language model of PoM, and the same one with self-attention in place of its mixers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from benchmarks.attention import head_count

if TYPE_CHECKING:
    from pom_export.models import GPT

STREAM_REPEATS: Final = 200
"""Timed rounds: steps are short."""
_BYTES: Final = 256
_MLP_FACTOR: Final = 4
_OPSET: Final = 20


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


def make_model(shape: StreamShape, seed: int, *, attention: bool = False) -> GPT:
    """Return a model of bytes with random weights, every layer a mixer or every layer self-attention."""
    import torch

    from pom_export.models import GPT, GPTConfig

    heads = head_count(shape.dim)
    config = GPTConfig(
        vocab_size=_BYTES,
        n_layer=shape.layers,
        n_head=heads,
        n_embd=shape.dim,
        mixer_heads=shape.heads,
        attention_heads=heads,
        degree=shape.degree,
        expand=shape.expand,
        mlp_width=_MLP_FACTOR * shape.dim,
        attention_layers=tuple(range(shape.layers)) if attention else (),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPT(config).eval()


def parameter_count(model: GPT) -> int:
    """Return how many weights a model has."""
    return sum(parameter.numel() for parameter in model.parameters())


def write_attention(model: GPT, path: Path) -> None:
    """Write attention as exporters do: keys and values of the tokens before come in, and go out with one more.

    `pom_export.export` takes only what has a mixer, so this is its tracing and its passes alone.
    """
    from pom_export.api.source import load_source
    from pom_export.graph.options import GraphOptions
    from pom_export.graph.saving import save_model
    from pom_export.graph.tracing import export_graph

    source = load_source(model, GraphOptions(stateful=True), hints={}, progress=lambda _: None)
    save_model(export_graph(source.program(), _OPSET, {**source.properties, "dtype": "float32"}), path)
