"""A self-attention layer of the same width as the timed layer, with ONNX Runtime's fused op."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import helper, numpy_helper

from benchmarks.products import float_value, save_graph
from pom_export.graph.exported_model import BATCH, TOKENS

_DOMAIN = "com.microsoft"
_HEAD_WIDTH = 64
_ITEM_BYTES = 4


def head_count(dim: int) -> int:
    """Return the number of heads: of 64 channels each if that divides the width, otherwise one."""
    return dim // _HEAD_WIDTH if dim % _HEAD_WIDTH == 0 else 1


def heads_in_words(dim: int) -> str:
    """Return the number of heads as a noun phrase."""
    count = head_count(dim)
    return f"{count} head{'s' if count != 1 else ''}"


def attention_bytes(dim: int, batch: int, tokens: int) -> int:
    """Return the size of a layer's scores in bytes."""
    return _ITEM_BYTES * batch * head_count(dim) * tokens**2


def attention_flops(dim: int, batch: int, tokens: int) -> int:
    """Return the multiplications and additions of a layer: projections, scores and weighted values."""
    return 4 * batch * tokens * dim * (2 * dim + tokens)


def write_attention(dim: int, causal: bool, path: Path, seed: int) -> None:
    """Write the graph: three projections of x (B, N, dim), fused attention, a projection back to y (B, N, dim)."""
    random_state = np.random.default_rng(seed)
    names = ("query", "key", "value", "out")
    weights = [
        numpy_helper.from_array(
            (random_state.standard_normal((dim, dim)) / np.sqrt(dim)).astype(np.float32), f"{name}_weight"
        )
        for name in names
    ]
    nodes = [helper.make_node("MatMul", ["x", f"{name}_weight"], [name]) for name in names[:3]]
    nodes += [
        helper.make_node(
            "MultiHeadAttention", list(names[:3]), ["attended"],
            domain=_DOMAIN, num_heads=head_count(dim), unidirectional=int(causal),
        ),
        helper.make_node("MatMul", ["attended", "out_weight"], ["y"]),
    ]  # fmt: skip
    axes = (BATCH, TOKENS, dim)
    graph = helper.make_graph(nodes, "attention", [float_value("x", axes)], [float_value("y", axes)], weights)
    save_graph(graph, path, [_DOMAIN])
