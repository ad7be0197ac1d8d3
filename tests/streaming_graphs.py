"""Small stateful models in standard ops, with the interface that an export has."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

VOCABULARY = 256
CHANNELS = 8
WINDOW = 3
_TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}


def running_sum_model(
    path: Path,
    *,
    ids: bool = True,
    mask: bool = False,
    positions: bool = False,
    attention: bool = False,
    kind: str | None = "causal",
    vocabulary: int = VOCABULARY,
    channels: int = CHANNELS,
    tokens: int | None = None,
    seed: int = 0,
) -> Path:
    """Write a model whose output is W (sum of all tokens so far); with whole numbers, so that no order rounds.

    With `attention` it has a window of past tokens and a float16 cache that grows too, and adds what they hold.
    """
    random_state = np.random.default_rng(seed)
    weights = {
        "table": random_state.integers(-3, 4, (vocabulary, channels)).astype(np.float32),
        "W": random_state.integers(-2, 3, (channels, vocabulary)).astype(np.float32),
        "one": np.array([1]),
        "zero": np.array([0]),
        "axis1": np.array(1),
        "keep": np.array([-(WINDOW - 1)]),
        "end": np.array([2**62]),
    }
    make, value = helper.make_node, helper.make_tensor_value_info
    FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64  # noqa: N806 (ONNX's names)
    if ids:
        inputs = [value("input_ids", INT64, ["batch", "tokens"])]
        nodes = [make("Gather", ["table", "input_ids"], ["embedded"])]
    else:
        inputs = [value("x", FLOAT, ["batch", "tokens", channels])]
        nodes = [make("Identity", ["x"], ["embedded"])]
    if positions:
        inputs.append(value("positions", INT64, ["tokens"]))
        nodes += [
            make("Cast", ["positions"], ["places"], to=FLOAT),
            make("Unsqueeze", ["places", "one"], ["column"]),
            make("Mul", ["embedded", "column"], ["placed"]),
        ]
    else:
        nodes.append(make("Identity", ["embedded"], ["placed"]))
    if mask:
        inputs.append(value("mask", TensorProto.BOOL, ["batch", "tokens"]))
        nodes += [
            make("Cast", ["mask"], ["counted"], to=INT64),
            make("Cast", ["mask"], ["weight"], to=FLOAT),
            make("Unsqueeze", ["weight", "minus"], ["weights"]),
            make("Mul", ["placed", "weights"], ["present_tokens"]),
        ]
        weights["minus"] = np.array([2])
    else:
        nodes += [
            make("Identity", ["placed"], ["present_tokens"]),
            make("ReduceSum", ["placed", "minus"], ["flat"], keepdims=0),
            make("Mul", ["flat", "nothing"], ["zeros"]),
            make("Add", ["zeros", "unit"], ["ones"]),
            make("Cast", ["ones"], ["counted"], to=INT64),
        ]
        weights |= {"minus": np.array([2]), "nothing": np.float32(0), "unit": np.float32(1)}
    inputs += [value("past_state", FLOAT, ["batch", 1, 2, channels]), value("past_length", INT64, ["batch"])]
    nodes += [
        make("ReduceSum", ["counted", "one"], ["count"], keepdims=0),
        make("Add", ["past_length", "count"], ["present_length"]),
        make("Slice", ["past_state", "zero", "one", "two"], ["before"]),
        make("Squeeze", ["before", "one"], ["start"]),
        make("CumSum", ["present_tokens", "axis1"], ["within"]),
        make("Add", ["start", "within"], ["sums"]),
        make("ReduceSum", ["present_tokens", "one"], ["call"], keepdims=1),
        make("Add", ["start", "call"], ["total"]),
        make("Mul", ["total", "nought"], ["rest"]),
        make("Concat", ["total", "rest"], ["pair"], axis=1),
        make("Unsqueeze", ["pair", "one"], ["present_state"]),
    ]
    weights |= {"two": np.array([2]), "nought": np.float32(0)}
    outputs = [
        value("present_state", FLOAT, ["batch", 1, 2, channels]),
        value("present_length", INT64, ["batch"]),
    ]
    summed = "sums"
    if attention:
        inputs += [
            value("past_conv.0", FLOAT, ["batch", WINDOW - 1, channels]),
            value("past_key_values.0.key", TensorProto.FLOAT16, ["batch", 1, "past_tokens", channels]),
        ]
        outputs += [
            value("present_conv.0", FLOAT, ["batch", WINDOW - 1, channels]),
            value("present.0.key", TensorProto.FLOAT16, ["batch", 1, "all_tokens", channels]),
        ]
        nodes += [
            make("Concat", ["past_conv.0", "placed"], ["windowed"], axis=1),
            make("Slice", ["windowed", "keep", "end", "one"], ["present_conv.0"]),
            # Token n sees token n - 2, the first of its window.
            make("Shape", ["placed"], ["shape"]),
            make("Slice", ["shape", "one", "two"], ["count_of_tokens"]),
            make("Slice", ["windowed", "zero", "count_of_tokens", "one"], ["earlier"]),
            make("Cast", ["placed"], ["half"], to=TensorProto.FLOAT16),
            make("Unsqueeze", ["half", "one"], ["key"]),
            make("Concat", ["past_key_values.0.key", "key"], ["present.0.key"], axis=2),
            make("Cast", ["past_key_values.0.key"], ["keys"], to=FLOAT),
            make("ReduceSum", ["keys", "two"], ["of_keys"], keepdims=0),
            make("Add", ["of_keys", "within"], ["attended"]),
            make("Add", ["sums", "earlier"], ["some"]),
            make("Add", ["some", "attended"], ["mixed"]),
        ]
        summed = "mixed"
    name = "logits" if ids else "y"
    nodes.append(make("MatMul", [summed, "W"], [name]))
    outputs.insert(0, value(name, FLOAT, ["batch", "tokens", vocabulary]))
    initializers = [numpy_helper.from_array(np.asarray(array), key) for key, array in weights.items()]
    graph = helper.make_graph(nodes, "running_sum", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    limits = {"values": {"input_ids": [vocabulary]} if ids else {}, "tokens": tokens}
    properties = {"limits": json.dumps(limits), **({} if kind is None else {"stateful": kind})}
    helper.set_model_props(model, {f"pom_export.{key}": text for key, text in properties.items()})
    onnx.save(model, path)
    return path
