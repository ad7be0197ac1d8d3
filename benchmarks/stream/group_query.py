"""A self-attention model whose cache is one buffer, into which each step writes one row.

GroupQueryAttention is the fused op of ONNX Runtime's own language models. If the input cache and the output cache share
their memory, it copies nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.products import float_value, save_graph
from benchmarks.stream.inputs import cache_names
from pom_export.graph.exported_model import BATCH, PAST_KEY_VALUES, PAST_LENGTH, present_name

if TYPE_CHECKING:
    from torch import Tensor

    from pom_export.models import GPT
    from pom_export.models.gpt import Block

_DOMAIN = "com.microsoft"
# The same for past and present, which share a buffer.
_CACHE_TOKENS = "cache_tokens"
_EPSILON = 1e-6


class _Writer:
    """Collects nodes and weights."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def node(self, op: str, inputs: Sequence[str], outputs: Sequence[str], domain: str = "", **attributes: Any) -> str:
        """Add a node; return its first output."""
        self.nodes.append(helper.make_node(op, list(inputs), list(outputs), domain=domain, **attributes))
        return outputs[0]

    def weight(self, name: str, values: npt.NDArray[Any]) -> str:
        """Add a weight; return its name."""
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name


def write_group_query(model: GPT, most: int, path: Path) -> None:
    """Write a model of only self-attention, for one token per call.

    Inputs and outputs are named as in a stateful export; `past_length` is the token's position in the buffer.

    Args:
        model: the model, whose layers are all attention.
        most: the number of positions in the file.
        path: where the file goes.
    """
    writer, config = _Writer(), model.config
    blocks = cast("list[Block]", list(cast("Any", model.transformer["h"])))
    _write_positions(writer, model, most)
    x = writer.node("Gather", [writer.weight("wte", _array(model.lm_head.weight)), "input_ids"], ["embedded"])
    rotation = [x, "positions", "cos", "sin"]
    x = writer.node("RotaryEmbedding", rotation, ["rotated"], _DOMAIN, num_heads=config.n_head, interleaved=0)
    writer.weight("ones", np.ones(config.n_embd, np.float32))
    normed = writer.node("SimplifiedLayerNormalization", [x, "ones"], ["normed"], axis=-1, epsilon=_EPSILON)
    for index, block in enumerate(blocks):
        x, normed = _write_block(writer, block, index, x, normed, config.attention_heads)
    head = writer.weight("lm_head", _array(model.lm_head.weight).T)
    writer.node("MatMul", [normed, head], ["logits"])
    caches = cache_names(len(blocks))
    axes = (BATCH, config.attention_heads, _CACHE_TOKENS, config.n_embd // config.attention_heads)
    inputs = [
        helper.make_tensor_value_info("input_ids", TensorProto.INT64, [BATCH, 1]),
        helper.make_tensor_value_info(PAST_LENGTH, TensorProto.INT64, [BATCH]),
        *(float_value(name, axes) for name in caches),
    ]
    outputs = [
        float_value("logits", (BATCH, 1, config.vocab_size)),
        *(float_value(present_name(name), axes) for name in caches),
    ]
    graph = helper.make_graph(writer.nodes, "group_query_attention", inputs, outputs, writer.weights)
    save_graph(graph, path, [_DOMAIN])


def _write_positions(writer: _Writer, model: GPT, most: int) -> None:
    """Write the rotation's tables, and the number of tokens as the ops take it, which is the same for all rows."""
    frequencies = _array(model.rotary.get_buffer("inv_freq")).astype(np.float64)
    angles = np.arange(most)[:, None] * frequencies
    writer.weight("cos", np.cos(angles).astype(np.float32))
    # The model rotates in the opposite direction of the ops.
    writer.weight("sin", -np.sin(angles).astype(np.float32))
    one = writer.weight("one", np.array([1], np.int64))
    writer.node("Unsqueeze", [PAST_LENGTH, one], ["positions"])
    writer.node("Cast", [PAST_LENGTH], ["last"], to=TensorProto.INT32)
    writer.node("ReduceMax", ["last"], ["longest"], keepdims=0)
    writer.node("Add", ["longest", writer.weight("one_more", np.array(1, np.int32))], ["total"])


def _write_block(writer: _Writer, block: Block, index: int, x: str, normed: str, heads: int) -> tuple[str, str]:
    """Write a block for x and its norm; return the output and its norm."""

    def product(left: str, kind: str, weight: npt.NDArray[Any]) -> str:
        return writer.node("MatMul", [left, writer.weight(f"{kind}_{index}", weight.T)], [f"{kind}_{index}.y"])

    def add_and_norm(left: str, right: str, kind: str) -> tuple[str, str]:
        after, added = f"{kind}_{index}.normed", f"{kind}_{index}.x"
        writer.node(
            "SkipSimplifiedLayerNormalization", [left, right, "ones"], [after, "", "", added],
            _DOMAIN, epsilon=_EPSILON,
        )  # fmt: skip
        return added, after

    attention = cast("Any", block.attn)
    packed = product(normed, "qkv", _array(attention.c_attn.weight))
    key, value = (f"{PAST_KEY_VALUES}.{index}.{kind}" for kind in ("key", "value"))
    attended = writer.node(
        "GroupQueryAttention", [packed, "", "", key, value, "last", "total", "cos", "sin"],
        [f"attended_{index}", present_name(key), present_name(value)],
        _DOMAIN, num_heads=heads, kv_num_heads=heads, do_rotary=1, rotary_interleaved=0,
    )  # fmt: skip
    # The scale of the branch is folded into its last weight.
    x, normed = add_and_norm(x, product(attended, "proj", block.scale * _array(attention.c_proj.weight)), "mix")
    hidden = product(normed, "up", _array(block.mlp.c_fc.weight))
    hidden = writer.node("Gelu", [hidden], [f"hidden_{index}"])
    return add_and_norm(x, product(hidden, "down", _array(block.mlp.c_proj.weight)), "mlp")


def _array(tensor: Tensor) -> npt.NDArray[Any]:
    return tensor.detach().numpy()
