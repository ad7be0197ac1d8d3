"""What tests of the compiled libraries share: one node of the op, run by ONNX Runtime."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper

from pom_export import contract
from pom_export.runtime.library import custom_ops_library


@dataclass(frozen=True)
class OnnxRuntimeOp:
    """Models of one node, for ONNX Runtime with our library."""

    library: Path

    @staticmethod
    def model(
        feeds: dict[str, np.ndarray], attributes: dict[str, Any], functions: tuple[onnx.FunctionProto, ...] = ()
    ) -> bytes:
        """Return a model that takes `feeds`; its node has those inputs, and empty names for the ones in between."""
        last = max(contract.INPUTS.index(name) for name in feeds)
        inputs = [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(array.dtype), [f"{name}{axis}" for axis in range(array.ndim)]
            )
            for name, array in feeds.items()
        ]
        names = [name if name in feeds else "" for name in contract.INPUTS[: last + 1]]
        node = helper.make_node(contract.OP_NAME, names, ["y"], domain=contract.DOMAIN, **attributes)
        output = helper.make_tensor_value_info("y", inputs[0].type.tensor_type.elem_type, None)
        model = helper.make_model(
            helper.make_graph([node], "one_node", inputs, [output]),
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

    def run(self, feeds: dict[str, np.ndarray], attributes: dict[str, Any], threads: int = 1) -> np.ndarray:
        (y,) = self.session(self.model(feeds, attributes), threads).run(None, feeds)
        assert y.dtype == feeds["x"].dtype
        return y


@pytest.fixture(scope="session")
def onnxruntime_op() -> OnnxRuntimeOp:
    return OnnxRuntimeOp(custom_ops_library())


@pytest.fixture(scope="session")
def onnxruntime_symbols(onnxruntime_op: OnnxRuntimeOp) -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(onnxruntime_op.library))
    for name in ("pom_contract", "pom_cpu_kernel", "pom_cpu_kernel_error"):
        getattr(loaded, name).restype = ctypes.c_char_p
    return loaded


@pytest.fixture(params=["scalar", pytest.param("avx2", marks=pytest.mark.machine)])
def cpu_kernel(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, onnxruntime_symbols: ctypes.CDLL
) -> str:
    """Every kernel that this machine can run, in turn."""
    monkeypatch.setenv("POM_CPU_KERNEL", request.param)
    if not onnxruntime_symbols.pom_cpu_kernel():
        pytest.skip(onnxruntime_symbols.pom_cpu_kernel_error().decode())
    return request.param
