"""The image model with self-attention instead of mixers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import torch
from torch import Tensor, nn

from benchmarks.attention import head_count
from pom_export.mixer.reference import rotate
from pom_export.mixer.rotary_mixer import frequency_tables

if TYPE_CHECKING:
    from pom_export.models import JiT, JiTConfig

_OPSET: Final = 20
_DEVIATION: Final = 0.02


class RotaryAttention(nn.Module):
    """Self-attention with 2-D rotary positions, on ONNX Runtime's fused op; heads of 64 channels.

    Args:
        config: configuration of the whole model.
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
    """Write the model with attention; `pom_export.export` requires a mixer, so this only traces it."""
    from pom_export.graph.options import GraphOptions
    from pom_export.graph.programs.images import image_model_program
    from pom_export.graph.saving import save_model
    from pom_export.graph.tracing import export_graph

    program = image_model_program(random_model(config, seed, RotaryAttention), GraphOptions())
    save_model(export_graph(program, _OPSET, {"dtype": "float32"}), path)


def random_model(config: JiTConfig, seed: int, make_mixer: Callable[[JiTConfig], nn.Module] | None = None) -> JiT:
    """Return a model with random weights, also where training starts from zeros, so that outputs are not trivial."""
    from pom_export.models import JiT

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = JiT(config, make_mixer).eval()
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=_DEVIATION)
    return model
