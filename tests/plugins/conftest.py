"""Fixtures of the compiled libraries' tests: one node of the op, run by ONNX Runtime."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from pom_export.parity.tolerances import Tolerance
from pom_export.runtime.library import custom_ops_library, rtx_soname_library
from tests import op_calls
from tests.op_calls import BFLOAT16, Array, Arrays, Call
from tests.plugins.cpu_kernels import VECTOR_KERNELS


@dataclass(frozen=True)
class OnnxRuntimeOp:
    """Models of one node, for ONNX Runtime with our library."""

    library: Path

    @staticmethod
    def model(
        feeds: Arrays,
        attributes: dict[str, Any],
        functions: tuple[onnx.FunctionProto, ...] = (),
        constants: Collection[str] = (),
    ) -> bytes:
        """See `op_calls.model`."""
        return op_calls.model(feeds, attributes, functions, constants).SerializeToString()

    def session(self, model: bytes, threads: int = 1) -> Any:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4
        # On a shared machine, a thread that spins while it waits takes time from one that works.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.register_custom_ops_library(str(self.library))
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def shared_session(self, model: bytes, threads: int = 1) -> Any:
        """Return a session of the kernel that the environment names, cached for later calls."""
        return _shared_session(self, os.environ.get("POM_CPU_KERNEL"), model, threads)

    def run(
        self, feeds: Arrays, attributes: dict[str, Any], threads: int = 1, constants: Collection[str] = ()
    ) -> Array:
        model = self.model(feeds, attributes, constants=constants)
        session = self.session(model, threads) if constants else self.shared_session(model, threads)
        (y,) = self.outputs(session, {name: array for name, array in feeds.items() if name not in constants})
        return y

    def outputs_of(self, call: Call, threads: int = 1) -> list[Array]:
        """Run a call; a stateful one also returns the present."""
        feeds = call.feeds()
        kinds = tuple((name, array.dtype, array.ndim) for name, array in feeds.items())
        model = _model_of(kinds, tuple(call.case.attributes().items()))
        return self.outputs(self.shared_session(model, threads), feeds)

    def check(self, call: Call, tolerance: Tolerance | None = None) -> None:
        """Run a call and compare it with float64."""
        call.check(self.outputs_of(call), tolerance)

    @staticmethod
    def outputs(session: Any, feeds: Arrays) -> list[Array]:
        """Return what a session of a model computes with `feeds`; y has x's type."""
        y, *present = session.run(None, wide(feeds))
        if feeds["x"].dtype == BFLOAT16:
            assert np.array_equal(y, y.astype(BFLOAT16).astype(np.float32), equal_nan=True)
            return [y.astype(BFLOAT16), *present]
        assert y.dtype == feeds["x"].dtype
        return [y, *present]


def wide(feeds: Arrays) -> Arrays:
    """Return what a model of `feeds` takes: no bfloat16, which it reads as float32."""
    return {name: array.astype(np.float32) if array.dtype == BFLOAT16 else array for name, array in feeds.items()}


@dataclass(frozen=True)
class EveryKernel:
    """The op by each kernel that this machine can run: what a call is, and what it is in float64, is found once."""

    op: OnnxRuntimeOp
    kernels: tuple[str, ...]
    monkeypatch: pytest.MonkeyPatch

    def each(self) -> Iterator[str]:
        """Have one kernel after another be the one that runs."""
        for kernel in self.kernels:
            self.monkeypatch.setenv("POM_CPU_KERNEL", kernel)
            yield kernel

    def check(self, call: Call, tolerance: Tolerance | None = None) -> None:
        """Run a call and compare it with float64."""
        for kernel in self.each():
            try:
                outputs = self.op.outputs_of(call)
            except Exception as error:
                raise AssertionError(f"{kernel} does not compute {call.case}") from error
            call.check(outputs, tolerance, by=kernel)


@functools.cache
def _model_of(kinds: tuple[tuple[str, np.dtype[Any], int], ...], attributes: tuple[tuple[str, Any], ...]) -> bytes:
    """Return the model of calls whose inputs have these names, types and ranks: of all sizes it is the same."""
    feeds = {name: np.empty((1,) * rank, dtype) for name, dtype, rank in kinds}
    return op_calls.model(feeds, dict(attributes)).SerializeToString()


@functools.cache
def _shared_session(op: OnnxRuntimeOp, kernel: str | None, model: bytes, threads: int) -> Any:  # noqa: ARG001
    return op.session(model, threads)


@pytest.fixture(scope="session")
def onnxruntime_op() -> OnnxRuntimeOp:
    return OnnxRuntimeOp(custom_ops_library())


@pytest.fixture(scope="session")
def onnxruntime_symbols(onnxruntime_op: OnnxRuntimeOp) -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(onnxruntime_op.library))
    for name in ("pom_contract", "pom_gated_contract", "pom_cpu_kernel", "pom_cpu_kernel_error"):
        getattr(loaded, name).restype = ctypes.c_char_p
    return loaded


@pytest.fixture
def cpu_kernel(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, onnxruntime_symbols: ctypes.CDLL
) -> str:
    """One of the kernels that this machine can run, see `every_kernel`."""
    monkeypatch.setenv("POM_CPU_KERNEL", request.param)
    if not onnxruntime_symbols.pom_cpu_kernel():
        pytest.skip(onnxruntime_symbols.pom_cpu_kernel_error().decode())
    return request.param


@pytest.fixture
def on_every_kernel(
    onnxruntime_op: OnnxRuntimeOp, monkeypatch: pytest.MonkeyPatch, onnxruntime_symbols: ctypes.CDLL
) -> EveryKernel:
    """Which of them this machine lacks is told by `test_the_named_kernel_runs`."""
    found = []
    for kernel in ("scalar", *VECTOR_KERNELS):
        monkeypatch.setenv("POM_CPU_KERNEL", kernel)
        if onnxruntime_symbols.pom_cpu_kernel():
            found.append(kernel)
    assert "scalar" in found
    return EveryKernel(onnxruntime_op, tuple(found), monkeypatch)


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
