"""Files with quantized weights, and comparisons of what fused nodes and those that they replace make of inputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

import pom_export
from pom_export.mixer import PolynomialMixer
from pom_export.parity.tolerances import FUSED, MODELS
from tests.quantized_files import quantize

Arrays = dict[str, np.ndarray[Any, Any]]
GOLDEN = Path(__file__).parents[2] / "data" / "golden"
MIXERS = tuple(sorted(folder.name for folder in GOLDEN.iterdir() if folder.name[0] in "vr" and "2d" not in folder.name))
"""The golden mixers whose positions follow from the file."""
LANGUAGE_MODELS = ("gpt_pom", "gpt_pom_heads", "gpt_hybrid")
# Of rows that no number in the middle of two of 8 bits has reached.
MOST = 0.6


class Layers(nn.Module):
    """A layer with a mixer, and MLPs of each kind."""

    def __init__(self, width: int = 32, inner: int = 48) -> None:
        super().__init__()
        self.centered, self.norm, self.plain = nn.LayerNorm(width), nn.RMSNorm(width), nn.RMSNorm(width)
        self.mixer = PolynomialMixer(width, 2, 2)
        self.first, self.gate, self.second = nn.Linear(width, inner), nn.Linear(width, inner), nn.Linear(inner, width)
        torch.manual_seed(1)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mixer(self.centered(x), mask="causal")
        h = self.norm(x)
        x = x + 0.5 * self.second(nn.functional.gelu(self.first(h)))
        x = self.second(nn.functional.silu(self.gate(h)) * self.first(h)) + x
        x = x + self.second(nn.functional.relu(self.first(self.plain(x))))
        return x * 2 + self.second(nn.functional.gelu(self.first(h), approximate="tanh"))


def layers_file(
    folder: Path, *, opset: int = 20, width: int = 32, inner: int = 48, block: int = 16, form: str = "int4 blocks"
) -> Path:
    """Return a quantized file of `Layers`."""
    original = folder / "m.onnx"
    pom_export.export(Layers(width, inner), original, example_inputs=(torch.randn(2, 5, width),), opset=opset)
    quantize(original, folder / "q.onnx", form, block=block)
    return folder / "q.onnx"


def golden_file(name: str, folder: Path, *, block: int = 16, **options: Any) -> Path:
    """Return a quantized file of a golden checkpoint."""
    pom_export.export(next((GOLDEN / name).glob("checkpoint.*")), folder / "m.onnx", **options)
    quantize(folder / "m.onnx", folder / "q.onnx", block=block)
    return folder / "q.onnx"


def fills(file: Path, rows: int, tokens: int, seed: int = 0) -> Arrays:
    """Return inputs of a file, with a state of no tokens."""
    random = np.random.default_rng(seed)
    sizes = {"batch": rows, "tokens": tokens}
    feed = {}
    for value in pom_export.inference_session(file, fused=False).get_inputs():
        shape = [size if isinstance(size, int) else sizes.get(size, 4) for size in value.shape]
        if value.name.startswith("past"):
            feed[value.name] = np.zeros(shape, np.int64 if "int64" in value.type else np.float32)
        elif "int64" in value.type:
            feed[value.name] = random.integers(0, 8, shape)
        else:
            feed[value.name] = random.standard_normal(shape, dtype=np.float32)
    return feed


def named(session: Any, feed: Mapping[str, Any]) -> Arrays:
    """Return the outputs of a session by name."""
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feed)), strict=True))


def agreement(found: Arrays, wanted: Arrays) -> float:
    """Check that outputs are the same but for roundings of activations; return the share of rows without these."""
    assert found.keys() == wanted.keys()
    rows = []
    for name, expected in wanted.items():
        assert found[name].dtype == expected.dtype
        if expected.dtype == np.int64:
            assert np.array_equal(found[name], expected), name
            continue
        largest = np.abs(expected).max()
        errors = np.abs(found[name] - expected).max(-1)
        assert errors.max() <= FUSED.relative * largest, name
        rows.append((errors <= MODELS["float32"].relative * largest).ravel())
    return float(np.concatenate(rows).mean())


def operators(model: ir.Model) -> Counter[str]:
    """Return how many nodes of each operator a graph has."""
    return Counter(node.op_type for node in model.graph)
