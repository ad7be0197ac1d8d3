"""The TensorRT plugin under the real TensorRT for RTX, whose parser and builder need no GPU."""

from __future__ import annotations

import ctypes
import itertools
import math
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from pom_export import contract

CHANNELS = 16
DEGREE = 3
ELEMENT_TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
}
TENSORRT_TYPES = {
    TensorProto.FLOAT: "FLOAT",
    TensorProto.FLOAT16: "HALF",
    TensorProto.BFLOAT16: "BF16",
    TensorProto.INT64: "INT64",
}
MASKS = ("none", "bool", "same")  # "same": of x's type
GATED_MODES = ("mean", "causal")
STATE = ((TensorProto.FLOAT, ["batch", 2, CHANNELS]), (TensorProto.INT64, ["batch"]))
"""Elements and shapes of a state and its length."""


@pytest.fixture(scope="module")
def logger(trt: Any) -> Any:
    return trt.Logger(trt.Logger.ERROR)


@dataclass(frozen=True)
class Node:
    """One node. `rotation`: the tables' type and whether they have a batch, e.g. "float32 batched".

    `gate`: the activation of the gated op, whose gate has `gates` a token, in mode "mean" for tokens of its own.
    """

    mode: str
    dtype: str = "float32"
    mask: str = "none"
    form: str = contract.POWER
    degree: int = DEGREE
    rotation: str = "none"
    rotary_blocks: int = contract.DEFAULT_ROTARY_BLOCKS
    placeholders: str = "float32"  # their type in the place of coefficients
    gate: str = "none"
    gates: int = CHANNELS
    bias: str = "float32"
    stateful: int = 0

    def __str__(self) -> str:
        return "-".join(map(str, astuple(self)))

    @property
    def op_name(self) -> str:
        return contract.OP_NAME if self.gate == "none" else contract.GATED_OP_NAME

    @property
    def output_tokens(self) -> str | int:
        if self.mode != "mean":
            return "tokens"
        return 1 if self.gate == "none" else "queries"

    def attributes(self) -> dict[str, Any]:
        values = {
            "form": self.form,
            "degree": contract.DEFAULT_DEGREE if self.form == contract.POWER else self.degree,
            "mode": self.mode,
            "rotary_blocks": self.rotary_blocks,
            "epsilon": contract.DEFAULT_EPSILON,
            "stateful": self.stateful,
            "gate_activation": self.gate,
            "plugin_version": contract.PLUGIN_VERSION,
            "plugin_namespace": contract.PLUGIN_NAMESPACE,
        }
        names = contract.ATTRIBUTES if self.gate == "none" else contract.GATED_ATTRIBUTES
        return {name: values[name] for name in names}

    def inputs(self) -> dict[str, tuple[int, list[str | int]]]:
        """Return the element types and shapes of what a caller feeds, by name."""
        element = ELEMENT_TYPES[self.dtype]
        inputs = {"x": (element, ["batch", "tokens", CHANNELS])}
        if self.gate != "none":
            inputs["gate"] = (element, ["batch", self.output_tokens, self.gates])
        if self.mask != "none":
            inputs["mask"] = (TensorProto.BOOL if self.mask == "bool" else element, ["batch", "tokens"])
        if self.rotation != "none":
            dtype, *batched = self.rotation.split()
            table = ["batch"] * len(batched) + ["tokens", CHANNELS // 2]
            inputs |= dict.fromkeys(("cos", "sin"), (ELEMENT_TYPES[dtype], table))
        if self.stateful:
            inputs |= dict(zip(contract.STATE_INPUTS, STATE, strict=True))
        return inputs

    def outputs(self) -> dict[str, tuple[int, list[str | int]]]:
        """Return the same of what the node gives."""
        outputs = {"y": (ELEMENT_TYPES[self.dtype], ["batch", self.output_tokens, CHANNELS])}
        return outputs | (dict(zip(contract.STATE_OUTPUTS, STATE, strict=True)) if self.stateful else {})

    def constants(self) -> list[TensorProto]:
        """Return coefficients, and the placeholders of absent inputs that others follow."""
        kind = ELEMENT_TYPES[self.placeholders if self.form == contract.PRODUCT else self.dtype]
        shape = [1] if self.form == contract.PRODUCT else [CHANNELS, DEGREE]
        constants = [helper.make_tensor("coefficients", kind, shape, np.ones(math.prod(shape)))]
        if self.gate != "none":
            constants.append(
                helper.make_tensor("gate_bias", ELEMENT_TYPES[self.bias], [self.gates], np.ones(self.gates))
            )
        if self.mask == "none" and (self.rotation != "none" or self.stateful):
            constants.append(helper.make_tensor("mask", TensorProto.BOOL, [1], [True]))
        if self.rotation == "none" and self.stateful:
            kind = ELEMENT_TYPES[self.placeholders]
            constants += [helper.make_tensor(name, kind, [1], np.ones(1)) for name in ("cos", "sin")]
        return constants

    def model(self, **attributes: Any) -> bytes:
        """Return an ONNX model of the node, with dynamic batch and tokens."""
        inputs, constants = self.inputs(), self.constants()
        present = {*inputs, *(constant.name for constant in constants)}
        order = contract.INPUTS if self.gate == "none" else contract.GATED_INPUTS
        names = [name for name in order if name in present]
        outputs = self.outputs()
        node = helper.make_node(
            self.op_name, names, list(outputs), domain=contract.DOMAIN, **{**self.attributes(), **attributes}
        )
        graph = helper.make_graph(
            [node],
            "one_node",
            [helper.make_tensor_value_info(name, *tensor) for name, tensor in inputs.items()],
            [helper.make_tensor_value_info(name, *tensor) for name, tensor in outputs.items()],
            constants,
        )
        opsets = [helper.make_opsetid("", 20), helper.make_opsetid(contract.DOMAIN, contract.OP_VERSION)]
        return helper.make_model(graph, opset_imports=opsets).SerializeToString()


NODES = [
    *(
        Node(mode, dtype, mask)
        for mode, dtype, mask in itertools.product(contract.MODES, ELEMENT_TYPES, MASKS)
        if mode != "features" or mask == "none"
    ),
    *(Node(mode, "float16", form=contract.PRODUCT, degree=2) for mode in contract.MODES),
    Node("mean", "bfloat16", "bool", form=contract.PRODUCT, degree=4, placeholders="bfloat16"),
    *(Node(mode, "float16", rotation="float32") for mode in contract.MODES),
    Node("causal", "float32", "bool", rotation="float32 batched", rotary_blocks=2),
    Node("mean", "bfloat16", "same", rotation="bfloat16 batched"),
    Node("mean", "float16", rotation="float16", rotary_blocks=2),
    *(Node(mode, dtype, gate="sigmoid", bias=dtype) for mode in GATED_MODES for dtype in ELEMENT_TYPES),
    Node("causal", "float16", "same", gate="hardsigmoid", gates=4),
    Node("mean", "bfloat16", "bool", form=contract.PRODUCT, degree=2, gate="sigmoid", gates=1),
    Node("causal", "float16", rotation="float32 batched", rotary_blocks=2, gate="identity"),
    *(
        Node(mode, dtype, mask, gate=gate, stateful=1)
        for mode, dtype, mask, gate in itertools.product(
            GATED_MODES, ELEMENT_TYPES, ("none", "bool"), ("none", "sigmoid")
        )
    ),
    Node("causal", "float16", rotation="float32", rotary_blocks=2, stateful=1),
    Node("mean", "float16", form=contract.PRODUCT, degree=2, placeholders="float16", stateful=1),
]


class Parsed:
    """A model in a TensorRT network. It keeps the builder and the parser, whose memory the network uses."""

    def __init__(self, trt: Any, logger: Any, model: bytes) -> None:
        self.builder = trt.Builder(logger)
        self.network = self.builder.create_network(0)
        self.parser = trt.OnnxParser(self.network, logger)
        self.parser.set_flag(trt.OnnxParserFlag.ENABLE_PLUGIN_OVERRIDE)
        self.accepted = self.parser.parse(model)

    def errors(self) -> list[str]:
        return [str(self.parser.get_error(i)) for i in range(self.parser.num_errors)]

    def layer_types(self) -> list[Any]:
        return [self.network.get_layer(i).type for i in range(self.network.num_layers)]


def build(trt: Any, logger: Any, node: Node, capability: str, library: Path) -> bytes | None:
    """Build an engine with the plugin inside for one compute capability."""
    parsed = Parsed(trt, logger, node.model())
    assert parsed.accepted, parsed.errors()
    config = parsed.builder.create_builder_config()
    profile = parsed.builder.create_optimization_profile()
    sizes = (
        {"batch": 1, "tokens": 1, "queries": 1},
        {"batch": 2, "tokens": 64, "queries": 32},
        {"batch": 4, "tokens": 4096, "queries": 512},
    )
    for name, (_, shape) in node.inputs().items():
        profile.set_shape(name, *(tuple(size.get(str(dim), dim) for dim in shape) for size in sizes))
    config.add_optimization_profile(profile)
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, capability), 0)
    config.plugins_to_serialize = [str(library)]
    engine = parsed.builder.build_serialized_network(parsed.network, config)
    return None if engine is None else bytes(engine)


@pytest.mark.parametrize("node", NODES, ids=str)
def test_the_parser_makes_one_plugin_layer(trt: Any, logger: Any, node: Node) -> None:
    parsed = Parsed(trt, logger, node.model())

    assert parsed.accepted, parsed.errors()
    assert parsed.layer_types().count(trt.LayerType.PLUGIN_V3) == 1
    assert parsed.network.num_outputs == len(node.outputs())
    for i, (element, shape) in enumerate(node.outputs().values()):
        output = parsed.network.get_output(i)
        assert tuple(output.shape) == tuple(-1 if isinstance(size, str) else size for size in shape)
        assert output.dtype == getattr(trt.DataType, TENSORRT_TYPES[element])


@pytest.mark.parametrize(
    ("node", "capability"),
    [
        (Node("mean", "float16", "bool"), "SM86"),
        (Node("causal", "bfloat16", "same"), "SM120"),
        (Node("causal", "float16"), "SM75"),
        (Node("features", "float32"), "SM89"),
        (Node("mean", "float16", form=contract.PRODUCT, degree=2), "SM86"),
        (Node("causal", "bfloat16", "bool", form=contract.PRODUCT, degree=4, placeholders="bfloat16"), "SM89"),
        (Node("features", "float16", rotation="float32", rotary_blocks=2), "SM80"),
        (Node("causal", "float32", rotation="float32 batched"), "SM120"),
        (Node("mean", "bfloat16", "bool", rotation="bfloat16"), "SM86"),
        (Node("causal", "float16", "bool", gate="sigmoid", bias="float16"), "SM86"),
        (Node("mean", "bfloat16", "same", rotation="bfloat16", gate="hardsigmoid", gates=8), "SM89"),
        (Node("causal", "float16", "bool", stateful=1), "SM86"),
        (Node("mean", "float32", gate="sigmoid", stateful=1), "SM89"),
        (Node("mean", "bfloat16", rotation="float32 batched", stateful=1), "SM80"),
        (Node("causal", "float16", "bool", form=contract.PRODUCT, degree=2, gate="identity", stateful=1), "SM120"),
    ],
    ids=str,
)
def test_an_engine_embeds_the_plugin_and_its_attributes(
    trt: Any, logger: Any, library: Path, node: Node, capability: str
) -> None:
    engine = build(trt, logger, node, capability, library)

    assert engine is not None
    plugin = library.read_bytes()
    assert len(engine) > len(plugin)
    gate = () if node.gate == "none" else (contract.GATED_OP_NAME, "gate_activation", node.gate)
    for name in ("form", "degree", "mode", "rotary_blocks", "epsilon", "stateful", node.form, node.mode, *gate):
        assert engine.count(name.encode()) > plugin.count(name.encode()), name


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        (Node("features", mask="bool"), 'mode "features" takes no mask'),
        (Node("mean", form=contract.PRODUCT, degree=3), "x must have a multiple of degree 3 channels, got 16"),
        (Node("mean", form=contract.PRODUCT, degree=2, rotation="float32"), 'form "product" takes no cos and sin'),
        (Node("causal", mask="same", stateful=1), "with stateful 1 mask must be bool, got float32"),
        (Node("causal", gate="sigmoid", gates=5), "gate must have a divisor of 16 channels as its gates, got 5"),
    ],
    ids=str,
)
def test_a_build_refuses_what_the_contract_forbids(
    trt: Any, logger: Any, library: Path, capfd: pytest.CaptureFixture[str], node: Node, reason: str
) -> None:
    assert build(trt, logger, node, "SM86", library) is None
    assert reason in capfd.readouterr().err


def test_no_format_fits_a_bias_of_another_half_type(trt: Any, logger: Any, library: Path) -> None:
    assert build(trt, logger, Node("mean", "float16", gate="sigmoid", bias="bfloat16"), "SM86", library) is None


def test_the_parser_refuses_a_node_with_a_bad_attribute(
    trt: Any, logger: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    parsed = Parsed(trt, logger, Node("mean").model(mode="median"))

    assert not parsed.accepted
    assert 'mode must be "mean", "causal" or "features", got "median"' in capfd.readouterr().err


def test_the_library_agrees_with_the_contract(library: Path) -> None:
    pom_contract = ctypes.CDLL(str(library)).pom_contract
    pom_contract.restype = ctypes.c_char_p

    assert pom_contract().decode() == contract.signature()


def test_the_library_hides_its_cuda_runtime(library: Path) -> None:
    assert not hasattr(ctypes.CDLL(str(library)), "cudaMalloc")
