"""Models with replaced attention, compiled by torch.compile and exported by this toolkit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import pom_export
from pom_export.attention import replace_attention

DIM, HEADS = 8, 2


class Encoder(nn.Module):
    """A causal encoder with a padding mask, as users write one."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(DIM, HEADS, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        future = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        return self.encoder(x, mask=future, src_key_padding_mask=padding, is_causal=True)


@pytest.fixture
def model() -> Encoder:
    torch.manual_seed(0)
    model = Encoder()
    replace_attention(model)
    return model.eval()


def inputs(batch: int, tokens: int) -> tuple[Tensor, Tensor]:
    lengths = torch.randint(1, tokens + 1, (batch, 1))
    return torch.randn(batch, tokens, DIM), torch.arange(tokens) >= lengths


@pytest.mark.slow
@torch.no_grad()
def test_compiles_whole(model: Encoder) -> None:
    compiled = torch.compile(model, backend="eager", fullgraph=True, dynamic=True)
    for sizes in ((2, 5), (3, 7)):
        x, padding = inputs(*sizes)
        torch.testing.assert_close(compiled(x, padding), model(x, padding))


@torch.no_grad()
def test_exports_to_one_node_per_layer(model: Encoder, tmp_path: Path) -> None:
    result = pom_export.export(model, tmp_path / "m.onnx", example_inputs=inputs(2, 5))
    assert result.aggregations == 2
    assert len(result.checked) == 2
    session = pom_export.inference_session(tmp_path / "m.onnx")
    x, padding = inputs(3, 9)
    (y,) = session.run(None, {"x": x.numpy(), "padding": padding.numpy()})
    torch.testing.assert_close(torch.from_numpy(y), model(x, padding), rtol=1e-4, atol=1e-5)
