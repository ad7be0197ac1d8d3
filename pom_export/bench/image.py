"""An image model of PoM, and the same one with self-attention in the mixers' place, at one size of image a file."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import torch
from torch import Tensor, nn

from pom_export.api.exporting import export
from pom_export.api.progress import Progress
from pom_export.bench.attention import head_count
from pom_export.bench.options import (
    ATTENTION,
    BACKENDS,
    DEFAULT_BATCH,
    DEFAULT_TOKENS,
    FUNCTION,
    KERNEL,
    BenchOptions,
)
from pom_export.bench.preparing import ATTENTION_FILE, MODEL_FILE, Prepared, Work, refuse
from pom_export.bench.targets import ImageShape
from pom_export.errors import InputError
from pom_export.graph.exported import read_model
from pom_export.mixer.reference import rotate
from pom_export.mixer.rotary_mixer import frequency_tables
from pom_export.runtime.library import custom_ops_library

if TYPE_CHECKING:
    from pom_export.models import JiT, JiTConfig

_OPSET: Final = 20
_CLASSES: Final = 1000
_BOTTLENECK: Final = 128
# Of the published models: tokens of the label, put in front after a third of the blocks.
_LABEL_TOKENS: Final = 32
_DEVIATION: Final = 0.02


def prepare_image(shape: ImageShape, options: BenchOptions, folder: Path, progress: Progress) -> list[Prepared]:
    """Write what the backends load, for every number of tokens into a folder of its own.

    Raises:
        InputError: a number of tokens is no square, the shape is not possible, or no backend is there.
    """
    return [
        _prepare_size(shape, tokens, options, folder, progress) for tokens in options.tokens or DEFAULT_TOKENS
    ]  # fmt: skip


def _prepare_size(shape: ImageShape, tokens: int, options: BenchOptions, folder: Path, progress: Progress) -> Prepared:
    config = image_config(shape, tokens)
    progress(f"exporting the model for images of {config.input_size} pixels, {tokens} tokens")
    place = folder / str(tokens)
    place.mkdir()
    model = _random_model(config, options.seed)
    export(model, place / MODEL_FILE)
    points = [(batch, tokens) for batch in options.batch or DEFAULT_BATCH]
    work = Work([], dim=shape.dim, attention_layers=shape.layers)
    prepared = Prepared(place, read_model(place / MODEL_FILE), _summary(shape, model), points, work)
    makers: dict[str, Callable[[], object]] = {
        FUNCTION: lambda: None,
        KERNEL: custom_ops_library,
        ATTENTION: lambda: write_attention(config, place / ATTENTION_FILE, options.seed),
    }
    for name in makers if options.backends is None else BACKENDS:
        prepared.offer(name, options, makers.get(name, refuse("it does not run image models")))
    if not prepared.backends:
        raise InputError(f"no backend of {', '.join(options.backends or makers)} runs image models", "Choose others")
    return prepared


def image_config(shape: ImageShape, tokens: int) -> JiTConfig:
    """Return the hyper-parameters of the model whose images are `tokens` patches.

    Raises:
        InputError: the tokens are no square, or a hyper-parameter is out of range.
    """
    from pom_export.models import JiTConfig

    side = math.isqrt(tokens)
    if side * side != tokens:
        raise InputError(f"{tokens} tokens are no square of patches", "Give squares, such as --tokens 256,1024,4096")
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


class RotaryAttention(nn.Module):
    """Self-attention with 2-D rotary positions, on ONNX Runtime's fused op; heads of 64 channels.

    Args:
        config: of the model around it.
        fused: whether to emit the fused op, which PyTorch cannot run; otherwise PyTorch computes the same.
    """

    def __init__(self, config: JiTConfig, fused: bool = True) -> None:
        super().__init__()
        dim = config.hidden_size
        self.heads, self.fused = head_count(dim), fused
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        width = dim // self.heads
        for axis in ("row", "col"):
            cos, sin = frequency_tables(width // 4, config.side)
            self.register_buffer(f"{axis}_cos", cos)
            self.register_buffer(f"{axis}_sin", sin)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """Return (B, N, d) for x (B, N, d) and positions (N, 2) int64, rows and columns."""
        query, key, value = self.qkv(x).chunk(3, dim=-1)
        cos, sin = (self._table(kind, positions) for kind in ("cos", "sin"))
        query, key = (
            rotate(part.unflatten(2, (self.heads, -1)), cos, sin, blocks=2).flatten(2) for part in (query, key)
        )
        return cast("Tensor", self.proj(self._attend(query, key, value)))

    def _table(self, kind: str, positions: Tensor) -> Tensor:
        """Return (N, 1, width / 2): the cosines or sines of rows, then those of columns."""
        rows, columns = self.get_buffer(f"row_{kind}"), self.get_buffer(f"col_{kind}")
        return torch.cat([rows[positions[:, 0]], columns[positions[:, 1]]], dim=-1)[:, None]

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if self.fused:
            fused: Any = torch.onnx.ops.symbolic(
                "com.microsoft::MultiHeadAttention",
                (query, key, value),
                attrs={"num_heads": self.heads},
                dtype=query.dtype,
                shape=query.shape,
                version=1,
            )
            return cast("Tensor", fused)
        split = [part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in (query, key, value)]
        return nn.functional.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)


def write_attention(config: JiTConfig, path: Path, seed: int) -> None:
    """Write the model with attention; `pom_export.export` takes only what has a mixer, so this is its tracing alone."""
    from pom_export.graph.exporter import export_graph
    from pom_export.graph.program import GraphOptions
    from pom_export.graph.programs.images import image_model_program
    from pom_export.graph.saving import save_model

    program = image_model_program(_random_model(config, seed, RotaryAttention), GraphOptions())
    save_model(export_graph(program, _OPSET, {"dtype": "float32"}), path)


def _random_model(config: JiTConfig, seed: int, make_mixer: Callable[[JiTConfig], nn.Module] | None = None) -> JiT:
    """Return a model with random weights, those too that training starts as zeros: outputs must tell something."""
    from pom_export.models import JiT

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = JiT(config, make_mixer).eval()
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=_DEVIATION)
    return model


def _summary(shape: ImageShape, model: nn.Module) -> str:
    weights = sum(parameter.numel() for parameter in model.parameters())
    return (
        f"one call of an image model (JiT): {shape.layers} blocks of dim {shape.dim}, degree {shape.degree}, expand "
        f"{shape.expand}, {shape.heads} heads, patches of {shape.patch}, {weights / 1e6:.1f} million weights; "
        f"attention has {head_count(shape.dim)} heads of 64"
    )
