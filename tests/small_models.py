"""Models of few layers, for tests in which tracing the golden ones would take long."""

from __future__ import annotations

import torch
from torch import nn

from pom_export.models import GPT, GPTConfig, JiT, JiTConfig

VOCABULARY = 61


def hybrid(vocabulary: int = VOCABULARY, layers: int = 3) -> GPT:
    """Return a language model whose second layer is attention, and whose others are mixers."""
    torch.manual_seed(0)
    sizes = {"vocab_size": vocabulary, "n_layer": layers, "n_head": 2, "n_embd": 16, "mlp_width": 32}
    mixers = {"mixer_heads": 2, "attention_heads": 4, "degree": 2, "expand": 2, "attention_layers": (1,)}
    return GPT(GPTConfig(**sizes, **mixers)).eval().requires_grad_(requires_grad=False)


TINY_JIT = JiTConfig(
    input_size=8,
    patch_size=2,
    hidden_size=8,
    depth=2,
    num_heads=4,
    num_classes=3,
    bottleneck_dim=5,
    in_context_len=2,
    in_context_start=1,
    pom_degree=2,
    pom_expand=2,
)


def fill(model: nn.Module) -> None:
    """Give every parameter a value: a fresh image model outputs zero, whatever is wrong."""
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=random) / 4)


def image_model() -> JiT:
    """Return an image model of two blocks, which inserts in-context tokens before the second."""
    model = JiT(TINY_JIT).eval().requires_grad_(requires_grad=False)
    fill(model)
    return model
