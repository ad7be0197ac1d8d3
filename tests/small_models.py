"""Models of few layers, where the golden ones take long to trace."""

from __future__ import annotations

import torch

from pom_export.models.gpt import GPT, GPTConfig

VOCABULARY = 61


def hybrid(vocabulary: int = VOCABULARY, layers: int = 3) -> GPT:
    """Return a language model whose second layer is one of attention, and the others of mixers."""
    torch.manual_seed(0)
    sizes = {"vocab_size": vocabulary, "n_layer": layers, "n_head": 2, "n_embd": 16, "mlp_width": 32}
    mixers = {"mixer_heads": 2, "attention_heads": 4, "degree": 2, "expand": 2, "attention_layers": (1,)}
    return GPT(GPTConfig(**sizes, **mixers)).eval().requires_grad_(requires_grad=False)
