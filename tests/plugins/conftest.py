"""What tests of the compiled libraries share: one node of the op, run by ONNX Runtime."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from pom_export import contract
from pom_export.runtime.library import custom_ops_library, rtx_soname_library

BFLOAT16 = helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16)


@dataclass(frozen=True)
class OnnxRuntimeOp:
    """Models of one node, for ONNX Runtime with our library."""

    library: Path

    @staticmethod
    def model(
        feeds: dict[str, np.ndarray],
        attributes: dict[str, Any],
        functions: tuple[onnx.FunctionProto, ...] = (),
        constants: Collection[str] = (),
    ) -> bytes:
        """Return a model that takes `feeds`; its node has those inputs, and empty names for the ones in between.

        The node is the gated op's where the feeds have a gate. Bfloat16 goes in and out as float32, since numpy has
        no bfloat16 of its own.
        """
        gated = "gate" in feeds
        signature = contract.GATED_INPUTS if gated else contract.INPUTS
        last = max(signature.index(name) for name in feeds)
        narrow = [name for name, array in feeds.items() if array.dtype == BFLOAT16]
        node_name = {name: f"{name}_narrow" if name in narrow else name for name in feeds}
        inputs, initializers = [], []
        for name, array in feeds.items():
            kind = TensorProto.FLOAT if name in narrow else helper.np_dtype_to_tensor_dtype(array.dtype)
            if name in constants:
                initializers.append(numpy_helper.from_array(array, node_name[name]))
            else:
                sizes = [f"{name}{axis}" for axis in range(array.ndim)]
                inputs.append(helper.make_tensor_value_info(name, kind, sizes))
        nodes = [
            helper.make_node("Cast", [name], [node_name[name]], to=TensorProto.BFLOAT16)
            for name in narrow
            if name not in constants
        ]
        names = [node_name.get(name, "") for name in signature[: last + 1]]
        op = contract.GATED_OP_NAME if gated else contract.OP_NAME
        y = "y_narrow" if "x" in narrow else "y"
        present = list(contract.STATE_OUTPUTS) if "past_state" in feeds else []
        nodes.append(helper.make_node(op, names, [y, *present], domain=contract.DOMAIN, **attributes))
        if "x" in narrow:
            nodes.append(helper.make_node("Cast", [y], ["y"], to=TensorProto.FLOAT))
        outputs = [helper.make_tensor_value_info("y", inputs[0].type.tensor_type.elem_type, None)]
        for name, kind in zip(present, (TensorProto.FLOAT, TensorProto.INT64), strict=False):
            outputs.append(helper.make_tensor_value_info(name, kind, None))
        model = helper.make_model(
            helper.make_graph(nodes, "one_node", inputs, outputs, initializers),
            functions=functions,
            opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid(contract.DOMAIN, contract.OP_VERSION)],
            ir_version=10,
        )
        return model.SerializeToString()

    def session(self, model: bytes, threads: int = 1) -> Any:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4
        options.register_custom_ops_library(str(self.library))
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def run(
        self,
        feeds: dict[str, np.ndarray],
        attributes: dict[str, Any],
        threads: int = 1,
        constants: Collection[str] = (),
    ) -> np.ndarray:
        session = self.session(self.model(feeds, attributes, constants=constants), threads)
        (y,) = self.outputs(session, {name: array for name, array in feeds.items() if name not in constants})
        return y

    @staticmethod
    def outputs(session: Any, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Return what a session of a model makes of `feeds`, y being of x's type."""
        wide = {name: array.astype(np.float32) if array.dtype == BFLOAT16 else array for name, array in feeds.items()}
        y, *present = session.run(None, wide)
        if feeds["x"].dtype == BFLOAT16:
            assert np.array_equal(y, y.astype(BFLOAT16).astype(np.float32), equal_nan=True)
            return [y.astype(BFLOAT16), *present]
        assert y.dtype == feeds["x"].dtype
        return [y, *present]


@pytest.fixture(scope="session")
def onnxruntime_op() -> OnnxRuntimeOp:
    return OnnxRuntimeOp(custom_ops_library())


@pytest.fixture(scope="session")
def onnxruntime_symbols(onnxruntime_op: OnnxRuntimeOp) -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(onnxruntime_op.library))
    for name in ("pom_contract", "pom_gated_contract", "pom_cpu_kernel", "pom_cpu_kernel_error"):
        getattr(loaded, name).restype = ctypes.c_char_p
    return loaded


VECTOR_KERNELS = ("neon",) if platform.machine() in {"aarch64", "arm64"} else ("avx512", "avx2")


@pytest.fixture(params=["scalar", *(pytest.param(name, marks=pytest.mark.machine) for name in VECTOR_KERNELS)])
def cpu_kernel(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, onnxruntime_symbols: ctypes.CDLL
) -> str:
    """Every kernel that this machine can run, in turn."""
    monkeypatch.setenv("POM_CPU_KERNEL", request.param)
    if not onnxruntime_symbols.pom_cpu_kernel():
        pytest.skip(onnxruntime_symbols.pom_cpu_kernel_error().decode())
    return request.param


@pytest.fixture(scope="session")
def trt(library: Path) -> Any:
    """The TensorRT that POM_TEST_TENSORRT names, by default TensorRT for RTX, with our plugin library loaded."""
    module = pytest.importorskip(os.environ.get("POM_TEST_TENSORRT", "tensorrt_rtx"))
    if module.__name__ == "tensorrt_rtx":
        import tensorrt_rtx_libs

        ctypes.CDLL(str(Path(tensorrt_rtx_libs.__path__[0]) / "libtensorrt_rtx.so.1"))
        ctypes.CDLL(str(rtx_soname_library()))
    module.get_plugin_registry().load_library(str(library))
    return module
