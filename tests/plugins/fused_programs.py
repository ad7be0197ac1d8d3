"""Programs of FusedLayers by hand: a node of the op, its packed weights, and a session of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from tests.plugins.product_kernels import pack

Array = npt.NDArray[Any]
NONE = -1
# Operations.
PRODUCT, GROUPS, RMS_NORM, LAYER_NORM, ELEMENTWISE, AGGREGATE, PRODUCT8 = range(1, 8)
# Activations.
LINEAR, GELU, RELU, SILU = range(4)


@dataclass
class Weights:
    """Weights of 4 or 8 bits: integers, (inputs, outputs), with a scale for each block of inputs and output."""

    integers: Array
    scales: Array
    block: int
    bits: int = 4

    @staticmethod
    def random(inputs: int, outputs: int, block: int, seed: int = 0, bits: int = 4) -> Weights:
        random = np.random.default_rng(seed)
        scales = random.uniform(0.01, 0.1, (-(-inputs // block), outputs)).astype(np.float32)
        half = 1 << (bits - 1)
        return Weights(random.integers(-half, half, (inputs, outputs)), scales, block, bits)

    @property
    def dequantized(self) -> Array:
        """Return the weights in float64, (inputs, outputs)."""
        inputs = len(self.integers)
        return self.integers * np.repeat(self.scales.astype(np.float64), self.block, axis=0)[:inputs]

    def packed(self) -> Array:
        """Return the bytes as plugins/cpu/products/products.h describes them."""
        unsigned = (self.integers + (1 << (self.bits - 1))).astype(np.uint8)
        return pack(unsigned.T, self.scales.T, self.block, self.bits)


@dataclass
class Node:
    """A node of FusedLayers.

    Attributes:
        inputs: arrays by name, in the order of the node's inputs.
        constants: the names of those that are part of the model.
        widths: the slots' widths.
        outputs: for each of the node's outputs its shape and its slot, counted from 0, or NONE.
        instructions: lists of numbers, without their lengths.
    """

    inputs: Mapping[str, Array]
    constants: Sequence[str]
    widths: Sequence[int]
    outputs: Sequence[tuple[Sequence[int | None], int]]
    instructions: Sequence[Sequence[int]]
    numbers: Sequence[float] = field(default_factory=list)
    version: int = 2

    def code(self) -> list[int]:
        first = len(self.inputs)
        slots = [NONE if slot == NONE else first + slot for _, slot in self.outputs]
        body = [number for operation, *rest in self.instructions for number in (operation, len(rest), *rest)]
        return [self.version, len(self.widths), len(self.outputs), *self.widths, *slots, *body]

    def model(self) -> bytes:
        names = [f"y{i}" for i in range(len(self.outputs))]
        node = helper.make_node(
            "FusedLayers", list(self.inputs), names, domain="pom.runtime", program=self.code(), name="fused"
        )
        node.attribute.append(
            helper.make_attribute("constants", list(self.numbers), attr_type=onnx.AttributeProto.FLOATS)
        )
        given = [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(array.dtype), [f"{name}_{i}" for i in range(array.ndim)]
            )
            for name, array in self.inputs.items()
            if name not in self.constants
        ]
        made = [
            helper.make_tensor_value_info(name, TensorProto.INT64 if len(shape) == 1 else TensorProto.FLOAT, shape)
            for name, (shape, _) in zip(names, self.outputs, strict=True)
        ]
        stored = [numpy_helper.from_array(np.array(self.inputs[name]), name) for name in self.constants]
        graph = helper.make_graph([node], "g", given, made, stored)
        imports = [helper.make_opsetid("", 20), helper.make_opsetid("pom.runtime", 1)]
        return helper.make_model(graph, opset_imports=imports, ir_version=10).SerializeToString()

    def run(self, library: Path, threads: int = 1) -> list[Array]:
        """Return the outputs for the inputs that are no constants."""
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.register_custom_ops_library(str(library))
        session = ort.InferenceSession(self.model(), options, providers=["CPUExecutionProvider"])
        feeds = {name: array for name, array in self.inputs.items() if name not in self.constants}
        outputs: list[Array] = session.run(None, feeds)
        return outputs
