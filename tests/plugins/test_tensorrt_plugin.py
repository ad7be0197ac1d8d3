"""The TensorRT plugin under the real TensorRT for RTX, whose parser and builder need no GPU."""

from __future__ import annotations

import ctypes
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from pom_export import contract
from pom_export.errors import MissingDependencyError
from pom_export.runtime.library import plugin_library, rtx_soname_library

CHANNELS = 16
DEGREE = 3
ELEMENT_TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
}
TENSORRT_TYPES = {"float32": "FLOAT", "float16": "HALF", "bfloat16": "BF16"}
MASKS = ("none", "bool", "same")  # "same": of x's type
CASES = [
    (mode, dtype, mask)
    for mode, dtype, mask in itertools.product(contract.MODES, ELEMENT_TYPES, MASKS)
    if mode != "features" or mask == "none"
]


@pytest.fixture(scope="module")
def library() -> Path:
    try:
        return plugin_library()
    except MissingDependencyError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def trt(library: Path) -> Any:
    """TensorRT for RTX with our plugin library loaded."""
    module = pytest.importorskip("tensorrt_rtx")
    import tensorrt_rtx_libs

    ctypes.CDLL(str(Path(tensorrt_rtx_libs.__path__[0]) / "libtensorrt_rtx.so.1"))
    ctypes.CDLL(str(rtx_soname_library()))
    module.get_plugin_registry().load_library(str(library))
    return module


@pytest.fixture(scope="module")
def logger(trt: Any) -> Any:
    return trt.Logger(trt.Logger.ERROR)


def one_node_model(mode: str, dtype: str, mask: str = "none", **attributes: Any) -> bytes:
    """Return an ONNX model of one node, with dynamic batch and tokens and constant coefficients."""
    element = ELEMENT_TYPES[dtype]
    every_attribute = {
        "form": "power",
        "mode": mode,
        "rotary_blocks": contract.ROTARY_BLOCKS,
        "epsilon": contract.DEFAULT_EPSILON,
        "plugin_version": contract.PLUGIN_VERSION,
        "plugin_namespace": contract.PLUGIN_NAMESPACE,
    }
    names = list(contract.INPUTS[: contract.REQUIRED_INPUTS])
    inputs = [helper.make_tensor_value_info("x", element, ["batch", "tokens", CHANNELS])]
    if mask != "none":
        names.append("mask")
        mask_element = TensorProto.BOOL if mask == "bool" else element
        inputs.append(helper.make_tensor_value_info("mask", mask_element, ["batch", "tokens"]))
    node = helper.make_node(contract.OP_NAME, names, ["y"], domain=contract.DOMAIN, **{**every_attribute, **attributes})
    coefficients = helper.make_tensor("coefficients", element, [CHANNELS, DEGREE], np.ones(CHANNELS * DEGREE))
    output = helper.make_tensor_value_info("y", element, ["batch", 1 if mode == "mean" else "tokens", CHANNELS])
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(contract.DOMAIN, contract.OP_VERSION)]
    graph = helper.make_graph([node], "one_node", inputs, [output], [coefficients])
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=opsets)
    return model.SerializeToString()


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


def build(trt: Any, parsed: Parsed, capability: str, library: Path) -> bytes | None:
    """Build an engine with the plugin inside for one compute capability."""
    config = parsed.builder.create_builder_config()
    profile = parsed.builder.create_optimization_profile()
    for i in range(parsed.network.num_inputs):
        tensor = parsed.network.get_input(i)
        channels = tuple(tensor.shape[2:])
        profile.set_shape(tensor.name, (1, 1, *channels), (2, 64, *channels), (4, 4096, *channels))
    config.add_optimization_profile(profile)
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, capability), 0)
    config.plugins_to_serialize = [str(library)]
    engine = parsed.builder.build_serialized_network(parsed.network, config)
    return None if engine is None else bytes(engine)


@pytest.mark.parametrize(("mode", "dtype", "mask"), CASES)
def test_the_parser_makes_one_plugin_layer(trt: Any, logger: Any, mode: str, dtype: str, mask: str) -> None:
    parsed = Parsed(trt, logger, one_node_model(mode, dtype, mask))

    assert parsed.accepted, parsed.errors()
    assert parsed.layer_types().count(trt.LayerType.PLUGIN_V3) == 1
    output = parsed.network.get_output(0)
    assert tuple(output.shape) == (-1, 1 if mode == "mean" else -1, CHANNELS)
    assert output.dtype == getattr(trt.DataType, TENSORRT_TYPES[dtype])


@pytest.mark.parametrize(
    ("mode", "dtype", "mask", "capability"),
    [
        ("mean", "float16", "bool", "SM86"),
        ("causal", "bfloat16", "same", "SM120"),
        ("causal", "float16", "none", "SM75"),
        ("features", "float32", "none", "SM89"),
    ],
)
def test_an_engine_embeds_the_plugin_and_its_attributes(
    trt: Any, logger: Any, library: Path, mode: str, dtype: str, mask: str, capability: str
) -> None:
    parsed = Parsed(trt, logger, one_node_model(mode, dtype, mask))

    engine = build(trt, parsed, capability, library)

    assert engine is not None
    plugin = library.read_bytes()
    assert len(engine) > len(plugin)
    for name in ("form", "mode", "rotary_blocks", "epsilon"):
        assert engine.count(name.encode()) > plugin.count(name.encode()), name
    assert engine.count(mode.encode()) > plugin.count(mode.encode())


def test_a_build_refuses_what_the_contract_forbids(
    trt: Any, logger: Any, library: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    parsed = Parsed(trt, logger, one_node_model("features", "float32", "bool"))

    assert build(trt, parsed, "SM86", library) is None
    assert 'mode "features" takes no mask' in capfd.readouterr().err


def test_the_parser_refuses_a_node_with_a_bad_attribute(
    trt: Any, logger: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    parsed = Parsed(trt, logger, one_node_model("median", "float32"))

    assert not parsed.accepted
    assert 'mode must be "mean", "causal" or "features", got "median"' in capfd.readouterr().err


def create(trt: Any, **values: Any) -> Any:
    """Ask the creator for a plugin with these fields."""
    kinds = {np.int8: "CHAR", np.int32: "INT32", np.float32: "FLOAT32"}
    fields = []
    for name, value in values.items():
        data = np.frombuffer(value, dtype=np.int8) if isinstance(value, bytes) else np.array([value])
        fields.append(trt.PluginField(name, data, getattr(trt.PluginFieldType, kinds[data.dtype.type])))
    creator = trt.get_plugin_registry().get_creator(
        contract.OP_NAME, contract.PLUGIN_VERSION, contract.PLUGIN_NAMESPACE
    )
    return creator.create_plugin("p", trt.PluginFieldCollection(fields), trt.TensorRTPhase.RUNTIME)


@pytest.mark.parametrize(
    "fields",
    [
        {"mode": b"mean"},
        {"mode": b"causal\0"},  # its length counts the NUL
        {"form": b"power", "mode": b"features", "rotary_blocks": np.int32(1), "epsilon": np.float32(0)},
        {"mode": b"mean", "epsilon": np.float32(1e-6), "plugin_version": b"1", "plugin_namespace": b"\0"},
    ],
)
def test_the_creator_makes_a_plugin(trt: Any, fields: dict[str, Any]) -> None:
    assert create(trt, **fields) is not None


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"form": b"power"}, "mode is missing"),
        ({"mode": b"meaner"}, 'got "meaner"'),
        ({"mode": np.int32(0)}, "mode must be text"),
        ({"mode": b"mean", "form": b"product"}, 'form must be "power", got "product"'),
        ({"mode": b"mean", "rotary_blocks": np.int32(2)}, "rotary_blocks must be 1, got 2"),
        ({"mode": b"mean", "rotary_blocks": np.float32(1)}, "rotary_blocks must be one int32"),
        ({"mode": b"mean", "epsilon": np.float32(-1)}, "epsilon must be finite and not negative, got -1"),
        ({"mode": b"mean", "epsilon": np.float32("nan")}, "epsilon must be finite and not negative, got nan"),
        ({"mode": b"mean", "degree": np.int32(2)}, 'unknown attribute "degree"'),
    ],
)
def test_the_creator_refuses_bad_fields_and_says_why(
    trt: Any, capfd: pytest.CaptureFixture[str], fields: dict[str, Any], reason: str
) -> None:
    assert create(trt, **fields) is None
    assert reason in capfd.readouterr().err


def test_the_library_agrees_with_the_contract(library: Path) -> None:
    pom_contract = ctypes.CDLL(str(library)).pom_contract
    pom_contract.restype = ctypes.c_char_p

    assert pom_contract().decode() == contract.signature()


def test_the_library_hides_its_cuda_runtime(library: Path) -> None:
    assert not hasattr(ctypes.CDLL(str(library)), "cudaMalloc")


def test_the_creator_names_every_attribute(trt: Any) -> None:
    creator = trt.get_plugin_registry().get_creator(contract.OP_NAME, "1", "")

    assert tuple(field.name for field in creator.field_names) == contract.ATTRIBUTES
