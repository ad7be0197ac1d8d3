"""The TensorRT plugin under the real TensorRT for RTX, whose parser and builder need no GPU."""

from __future__ import annotations

import ctypes
import itertools
import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from pom_export import contract
from tests.op_calls import MASKS, Case

CHANNELS = 16
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
GATED_MODES = ("mean", "causal")
STATE = ((TensorProto.FLOAT, ["batch", 2, CHANNELS]), (TensorProto.INT64, ["batch"]))
"""Elements and shapes of a state and its length."""


@pytest.fixture(scope="module")
def logger(trt: Any) -> Any:
    return trt.Logger(trt.Logger.ERROR)


def node(mode: str, dtype: str = "float32", mask: str = "none", **changes: Any) -> Case:
    """Return a case of `CHANNELS` channels. For form "product", `coefficients` is the type of their placeholder."""
    return Case(mode, dtype, (2, 64, CHANNELS), mask=mask, **changes)


def name_of(case: Case) -> str:
    """Return how a case differs from the plainest one."""
    values = ((field.name, getattr(case, field.name)) for field in fields(case) if field.name not in {"mode", "shape"})
    plain = node(case.mode)
    return "-".join([case.mode, *(f"{name}_{value}" for name, value in values if value != getattr(plain, name))])


def output_tokens(case: Case) -> str | int:
    if case.mode != "mean":
        return "tokens"
    return 1 if case.gate == "none" else "queries"


def attributes_of(case: Case) -> dict[str, Any]:
    values = case.attributes()
    values |= {"plugin_version": contract.PLUGIN_VERSION, "plugin_namespace": contract.PLUGIN_NAMESPACE}
    names = contract.ATTRIBUTES if case.gate == "none" else contract.GATED_ATTRIBUTES
    return {name: values[name] for name in names}


def inputs_of(case: Case) -> dict[str, tuple[int, list[str | int]]]:
    """Return the element types and shapes of the inputs that a caller feeds, by name."""
    element = ELEMENT_TYPES[case.dtype]
    inputs: dict[str, tuple[int, list[str | int]]] = {"x": (element, ["batch", "tokens", CHANNELS])}
    if case.gate != "none":
        inputs["gate"] = (element, ["batch", output_tokens(case), case.gates or CHANNELS])
    if case.mask != "none":
        inputs["mask"] = (TensorProto.BOOL if case.mask == "bool" else element, ["batch", "tokens"])
    if case.rotation != "none":
        table = [*([] if case.rotation_rows == 1 else ["batch"]), "tokens", CHANNELS // 2]
        inputs |= dict.fromkeys(("cos", "sin"), (ELEMENT_TYPES[case.table_type], table))
    if case.past is not None:
        inputs |= dict(zip(contract.STATE_INPUTS, STATE, strict=True))
    return inputs


def outputs_of(case: Case) -> dict[str, tuple[int, list[str | int]]]:
    """Return the element types and shapes of the node's outputs, by name."""
    outputs = {"y": (ELEMENT_TYPES[case.dtype], ["batch", output_tokens(case), CHANNELS])}
    return outputs if case.past is None else outputs | dict(zip(contract.STATE_OUTPUTS, STATE, strict=True))


def constants_of(case: Case) -> list[TensorProto]:
    """Return the coefficients, and placeholders for absent inputs that other inputs follow."""
    product = case.form == contract.PRODUCT
    shape = [1] if product else [CHANNELS, case.degree]
    kind = ELEMENT_TYPES[case.coefficients if product else case.dtype]
    constants = [helper.make_tensor("coefficients", kind, shape, np.ones(math.prod(shape)))]
    if case.gate != "none":
        gates = case.gates or CHANNELS
        constants.append(helper.make_tensor("gate_bias", ELEMENT_TYPES[case.bias], [gates], np.ones(gates)))
    if case.mask == "none" and (case.rotation != "none" or case.past is not None):
        constants.append(helper.make_tensor("mask", TensorProto.BOOL, [1], [True]))
    if case.rotation == "none" and case.past is not None:
        kind = ELEMENT_TYPES[case.coefficients]
        constants += [helper.make_tensor(name, kind, [1], np.ones(1)) for name in ("cos", "sin")]
    return constants


def model_of(case: Case, **attributes: Any) -> bytes:
    """Return an ONNX model of the case's node, with dynamic batch and tokens."""
    inputs, outputs, constants = inputs_of(case), outputs_of(case), constants_of(case)
    present = {*inputs, *(constant.name for constant in constants)}
    order, op = contract.INPUTS, contract.OP_NAME
    if case.gate != "none":
        order, op = contract.GATED_INPUTS, contract.GATED_OP_NAME
    names = [name for name in order if name in present]
    made = helper.make_node(op, names, list(outputs), domain=contract.DOMAIN, **{**attributes_of(case), **attributes})
    graph = helper.make_graph(
        [made],
        "one_node",
        [helper.make_tensor_value_info(name, *tensor) for name, tensor in inputs.items()],
        [helper.make_tensor_value_info(name, *tensor) for name, tensor in outputs.items()],
        constants,
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(contract.DOMAIN, contract.OP_VERSION)]
    return helper.make_model(graph, opset_imports=opsets).SerializeToString()


NODES = [
    *(
        node(mode, dtype, mask)
        for mode, dtype, mask in itertools.product(contract.MODES, ELEMENT_TYPES, MASKS)
        if mode != "features" or mask == "none"
    ),
    *(node(mode, "float16", form=contract.PRODUCT, degree=2) for mode in contract.MODES),
    node("mean", "bfloat16", "bool", form=contract.PRODUCT, degree=4, coefficients="bfloat16"),
    *(node(mode, "float16", rotation="float32", rotation_rows=1) for mode in contract.MODES),
    node("causal", "float32", "bool", rotation="float32", rotary_blocks=2),
    node("mean", "bfloat16", "same", rotation="bfloat16"),
    node("mean", "float16", rotation="float16", rotation_rows=1, rotary_blocks=2),
    *(node(mode, dtype, gate="sigmoid", bias=dtype) for mode in GATED_MODES for dtype in ELEMENT_TYPES),
    node("causal", "float16", "same", gate="hardsigmoid", gates=4),
    node("mean", "bfloat16", "bool", form=contract.PRODUCT, degree=2, gate="sigmoid", gates=1),
    node("causal", "float16", rotation="float32", rotary_blocks=2, gate="identity"),
    *(
        node(mode, dtype, mask, gate=gate, past=0)
        for mode, dtype, mask, gate in itertools.product(
            GATED_MODES, ELEMENT_TYPES, ("none", "bool"), ("none", "sigmoid")
        )
    ),
    node("causal", "float16", rotation="float32", rotation_rows=1, rotary_blocks=2, past=0),
    node("mean", "float16", form=contract.PRODUCT, degree=2, coefficients="float16", past=0),
]


class Parsed:
    """A model in a TensorRT network, with the builder and the parser, whose memory the network uses."""

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


def build(trt: Any, logger: Any, case: Case, capability: str, library: Path) -> bytes | None:
    """Build an engine with the plugin inside for one compute capability."""
    parsed = Parsed(trt, logger, model_of(case))
    assert parsed.accepted, parsed.errors()
    config = parsed.builder.create_builder_config()
    profile = parsed.builder.create_optimization_profile()
    sizes = (
        {"batch": 1, "tokens": 1, "queries": 1},
        {"batch": 2, "tokens": 64, "queries": 32},
        {"batch": 4, "tokens": 4096, "queries": 512},
    )
    for name, (_, shape) in inputs_of(case).items():
        profile.set_shape(name, *(tuple(size.get(str(dim), dim) for dim in shape) for size in sizes))
    config.add_optimization_profile(profile)
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, capability), 0)
    config.plugins_to_serialize = [str(library)]
    engine = parsed.builder.build_serialized_network(parsed.network, config)
    return None if engine is None else bytes(engine)


@pytest.mark.parametrize("case", NODES, ids=name_of)
def test_the_parser_makes_one_plugin_layer(trt: Any, logger: Any, case: Case) -> None:
    parsed = Parsed(trt, logger, model_of(case))

    assert parsed.accepted, parsed.errors()
    assert parsed.layer_types().count(trt.LayerType.PLUGIN_V3) == 1
    assert parsed.network.num_outputs == len(outputs_of(case))
    for i, (element, shape) in enumerate(outputs_of(case).values()):
        output = parsed.network.get_output(i)
        assert tuple(output.shape) == tuple(-1 if isinstance(size, str) else size for size in shape)
        assert output.dtype == getattr(trt.DataType, TENSORRT_TYPES[element])


@pytest.mark.parametrize(
    ("case", "capability"),
    [
        (node("mean", "float16", "bool"), "SM86"),
        (node("causal", "bfloat16", "same"), "SM120"),
        (node("causal", "float16"), "SM75"),
        (node("features", "float32"), "SM89"),
        (node("mean", "float16", form=contract.PRODUCT, degree=2), "SM86"),
        (node("causal", "bfloat16", "bool", form=contract.PRODUCT, degree=4, coefficients="bfloat16"), "SM89"),
        (node("features", "float16", rotation="float32", rotation_rows=1, rotary_blocks=2), "SM80"),
        (node("causal", "float32", rotation="float32"), "SM120"),
        (node("mean", "bfloat16", "bool", rotation="bfloat16", rotation_rows=1), "SM86"),
        (node("causal", "float16", "bool", gate="sigmoid", bias="float16"), "SM86"),
        (node("mean", "bfloat16", "same", rotation="bfloat16", rotation_rows=1, gate="hardsigmoid", gates=8), "SM89"),
        (node("causal", "float16", "bool", past=0), "SM86"),
        (node("mean", "float32", gate="sigmoid", past=0), "SM89"),
        (node("mean", "bfloat16", rotation="float32", past=0), "SM80"),
        (node("causal", "float16", "bool", form=contract.PRODUCT, degree=2, gate="identity", past=0), "SM120"),
    ],
    ids=lambda value: name_of(value) if isinstance(value, Case) else str(value),
)
def test_an_engine_embeds_the_plugin_and_its_attributes(
    trt: Any, logger: Any, library: Path, case: Case, capability: str
) -> None:
    engine = build(trt, logger, case, capability, library)

    assert engine is not None
    plugin = library.read_bytes()
    assert len(engine) > len(plugin)
    gate = () if case.gate == "none" else (contract.GATED_OP_NAME, "gate_activation", case.gate)
    for name in ("form", "degree", "mode", "rotary_blocks", "epsilon", "stateful", case.form, case.mode, *gate):
        assert engine.count(name.encode()) > plugin.count(name.encode()), name


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        (node("features", mask="bool"), 'mode "features" takes no mask'),
        (node("mean", form=contract.PRODUCT, degree=3), "x must have a multiple of degree 3 channels, got 16"),
        (
            node("mean", form=contract.PRODUCT, degree=2, rotation="float32", rotation_rows=1),
            'form "product" takes no cos and sin',
        ),
        (node("causal", mask="same", past=0), "with stateful 1 mask must be bool, got float32"),
        (node("causal", gate="sigmoid", gates=5), "gate must have a divisor of 16 channels as its gates, got 5"),
    ],
    ids=lambda value: name_of(value) if isinstance(value, Case) else str(value),
)
def test_a_build_refuses_what_the_contract_forbids(
    trt: Any, logger: Any, library: Path, capfd: pytest.CaptureFixture[str], case: Case, reason: str
) -> None:
    assert build(trt, logger, case, "SM86", library) is None
    assert reason in capfd.readouterr().err


def test_no_format_fits_a_bias_of_another_half_type(trt: Any, logger: Any, library: Path) -> None:
    assert build(trt, logger, node("mean", "float16", gate="sigmoid", bias="bfloat16"), "SM86", library) is None


def test_the_parser_refuses_a_node_with_a_bad_attribute(
    trt: Any, logger: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    parsed = Parsed(trt, logger, model_of(node("mean"), mode="median"))

    assert not parsed.accepted
    assert 'mode must be "mean", "causal" or "features", got "median"' in capfd.readouterr().err


def test_the_library_agrees_with_the_contract(library: Path) -> None:
    pom_contract = ctypes.CDLL(str(library)).pom_contract
    pom_contract.restype = ctypes.c_char_p

    assert pom_contract().decode() == contract.signature()


def test_the_library_hides_its_cuda_runtime(library: Path) -> None:
    assert not hasattr(ctypes.CDLL(str(library)), "cudaMalloc")
