"""The models that stream: a language model with PoM, and the same model with self-attention instead of mixers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from benchmarks.attention import head_count, heads_in_words

if TYPE_CHECKING:
    from pom_export.models import GPT

STREAM_REPEATS: Final = 200
"""Timed rounds; more than for other workloads, since steps are short."""
_BYTES: Final = 256
_MLP_FACTOR: Final = 4
_OPSET: Final = 20


@dataclass(frozen=True)
class StreamShape:
    """Hyper-parameters of a language model with random weights, of the public model's family.

    Attributes:
        dim: model width.
        degree: degree of its mixers.
        expand: channels of one factor per model dimension.
        heads: heads of each mixer.
        layers: number of blocks.
    """

    dim: int = 512
    degree: int = 3
    expand: int = 2
    heads: int = 8
    layers: int = 4


def make_model(shape: StreamShape, seed: int, *, attention: bool = False) -> GPT:
    """Return a model of bytes with random weights, whose layers are all mixers or all self-attention."""
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


def models_in_words(shape: StreamShape, model: GPT, peer: GPT) -> str:
    """Return a description of a model with mixers and of the same with attention, as a noun phrase."""
    parameters, peer_parameters = (sum(p.numel() for p in each.parameters()) / 1e6 for each in (model, peer))
    return (
        f"a language model of bytes: {shape.layers} layers of dim {shape.dim}, degree {shape.degree}, expand "
        f"{shape.expand}, {shape.heads} heads, MLPs of {_MLP_FACTOR * shape.dim}, {parameters:.1f} million weights; "
        f"attention has {heads_in_words(shape.dim)}, {peer_parameters:.1f} million"
    )


def write_attention(model: GPT, path: Path) -> None:
    """Write attention as exporters do: past keys and values are inputs, and are outputs with one token more.

    `pom_export.export` requires a mixer, so this only traces the model and applies the passes.
    """
    from pom_export.api.source import load_source
    from pom_export.graph.options import GraphOptions
    from pom_export.graph.saving import save_model
    from pom_export.graph.tracing import export_graph

    source = load_source(model, GraphOptions(stateful=True), hints={}, progress=lambda _: None)
    save_model(export_graph(source.program(), _OPSET, {**source.properties, "dtype": "float32"}), path)
