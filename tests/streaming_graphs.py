"""Small stateful models in standard ops, with the interface of an export."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

VOCABULARY = 256
CHANNELS = 8
WINDOW = 3
FLOAT, FLOAT16, INT64 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64


@dataclass
class _Graph:
    """The parts of a graph, as they are added."""

    channels: int
    inputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    outputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: dict[str, Any] = field(default_factory=dict)

    def node(self, operator: str, inputs: str, output: str, **attributes: Any) -> None:
        self.nodes.append(helper.make_node(operator, inputs.split(), [output], **attributes))

    def input(self, name: str, dtype: int, *axes: str | int) -> None:
        self.inputs.append(helper.make_tensor_value_info(name, dtype, axes))

    def output(self, name: str, dtype: int, *axes: str | int) -> None:
        self.outputs.append(helper.make_tensor_value_info(name, dtype, axes))

    def embed(self, ids: bool) -> None:
        """Make `embedded` of ids, or of x as it is."""
        if ids:
            self.input("input_ids", INT64, "batch", "tokens")
            self.node("Gather", "table input_ids", "embedded")
        else:
            self.input("x", FLOAT, "batch", "tokens", self.channels)
            self.node("Identity", "x", "embedded")

    def place(self, positions: bool) -> None:
        """Make `placed` of the embedded tokens: times their positions, where those are an input."""
        if positions:
            self.input("positions", INT64, "tokens")
            self.node("Cast", "positions", "places", to=FLOAT)
            self.node("Unsqueeze", "places one", "column")
            self.node("Mul", "embedded column", "placed")
        else:
            self.node("Identity", "embedded", "placed")

    def count(self, mask: bool) -> None:
        """Make `present_tokens` of the placed ones, without those that a mask leaves out, and `counted`: 1 for each."""
        self.weights["minus"] = np.array([2])
        if mask:
            self.input("mask", TensorProto.BOOL, "batch", "tokens")
            self.node("Cast", "mask", "counted", to=INT64)
            self.node("Cast", "mask", "weight", to=FLOAT)
            self.node("Unsqueeze", "weight minus", "weights")
            self.node("Mul", "placed weights", "present_tokens")
        else:
            self.node("Identity", "placed", "present_tokens")
            self.node("ReduceSum", "placed minus", "flat", keepdims=0)
            self.node("Mul", "flat nothing", "zeros")
            self.node("Add", "zeros unit", "ones")
            self.node("Cast", "ones", "counted", to=INT64)
            self.weights |= {"nothing": np.float32(0), "unit": np.float32(1)}

    def add_up(self) -> None:
        """Make `sums`, of all tokens up to each, and the state that the next call goes on from."""
        self.input("past_state", FLOAT, "batch", 1, 2, self.channels)
        self.input("past_length", INT64, "batch")
        self.node("ReduceSum", "counted one", "count", keepdims=0)
        self.node("Add", "past_length count", "present_length")
        self.node("Slice", "past_state zero one two", "before")
        self.node("Squeeze", "before one", "start")
        self.node("CumSum", "present_tokens axis1", "within")
        self.node("Add", "start within", "sums")
        self.node("ReduceSum", "present_tokens one", "call", keepdims=1)
        self.node("Add", "start call", "total")
        self.node("Mul", "total nought", "rest")
        self.node("Concat", "total rest", "pair", axis=1)
        self.node("Unsqueeze", "pair one", "present_state")
        self.weights |= {"two": np.array([2]), "nought": np.float32(0)}
        self.output("present_state", FLOAT, "batch", 1, 2, self.channels)
        self.output("present_length", INT64, "batch")

    def attend(self) -> None:
        """Make `mixed` of the sums, a window of past tokens and a cache that grows."""
        self.input("past_conv.0", FLOAT, "batch", WINDOW - 1, self.channels)
        self.input("past_key_values.0.key", FLOAT16, "batch", 1, "past_tokens", self.channels)
        self.output("present_conv.0", FLOAT, "batch", WINDOW - 1, self.channels)
        self.output("present.0.key", FLOAT16, "batch", 1, "all_tokens", self.channels)
        self.node("Concat", "past_conv.0 placed", "windowed", axis=1)
        self.node("Slice", "windowed keep end one", "present_conv.0")
        # Token n sees token n - 2, the first of its window.
        self.node("Shape", "placed", "shape")
        self.node("Slice", "shape one two", "count_of_tokens")
        self.node("Slice", "windowed zero count_of_tokens one", "earlier")
        self.node("Cast", "placed", "half", to=FLOAT16)
        self.node("Unsqueeze", "half one", "key")
        self.node("Concat", "past_key_values.0.key key", "present.0.key", axis=2)
        self.node("Cast", "past_key_values.0.key", "keys", to=FLOAT)
        self.node("ReduceSum", "keys two", "of_keys", keepdims=0)
        self.node("Add", "of_keys within", "attended")
        self.node("Add", "sums earlier", "some")
        self.node("Add", "some attended", "mixed")

    def model(self) -> onnx.ModelProto:
        weights = [numpy_helper.from_array(np.asarray(array), name) for name, array in self.weights.items()]
        graph = helper.make_graph(self.nodes, "running_sum", self.inputs, self.outputs, weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def _numbers(vocabulary: int, channels: int, seed: int) -> dict[str, Any]:
    random_state = np.random.default_rng(seed)
    return {
        "table": random_state.integers(-3, 4, (vocabulary, channels)).astype(np.float32),
        "W": random_state.integers(-2, 3, (channels, vocabulary)).astype(np.float32),
        "one": np.array([1]),
        "zero": np.array([0]),
        "axis1": np.array(1),
        "keep": np.array([-(WINDOW - 1)]),
        "end": np.array([2**62]),
    }


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
    claimed: int | None = None,
    seed: int = 0,
) -> Path:
    """Write a model whose output is W (sum of all tokens so far), in whole numbers, which no order rounds.

    With `attention` it also has a window of past tokens and a growing float16 cache, and adds what they hold. It may
    claim a larger vocabulary than it has, so that calls fail.
    """
    graph = _Graph(channels, weights=_numbers(vocabulary, channels, seed))
    name = "logits" if ids else "y"
    graph.output(name, FLOAT, "batch", "tokens", vocabulary)
    graph.embed(ids)
    graph.place(positions)
    graph.count(mask)
    graph.add_up()
    if attention:
        graph.attend()
    graph.node("MatMul", "mixed W" if attention else "sums W", name)
    model = graph.model()
    limits = {"values": {"input_ids": [claimed or vocabulary]} if ids else {}, "tokens": tokens}
    properties = {"limits": json.dumps(limits), **({} if kind is None else {"stateful": kind})}
    helper.set_model_props(model, {f"pom_export.{key}": text for key, text in properties.items()})
    onnx.save(model, path)
    return path
