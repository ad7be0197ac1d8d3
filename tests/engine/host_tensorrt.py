"""An engine's interface over host memory, computed by ONNX Runtime: what a stream asks of TensorRT, without a GPU.

It is strict where the real one is silent or crashes: every copy and every tensor lies within an allocation, and no
output lies over an input.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

STREAM = 7


class HostCuda:
    """What Polygraphy's wrapper of the CUDA runtime does, with memory of the host."""

    def __init__(self) -> None:
        self.blocks: dict[int, Any] = {}
        self.allocated = 0
        self.streams = 0

    def malloc(self, nbytes: int) -> int:
        block = ctypes.create_string_buffer(b"\xff" * nbytes, nbytes)  # as undefined as new memory is
        self.blocks[ctypes.addressof(block)] = block
        self.allocated += 1
        return ctypes.addressof(block)

    def free(self, pointer: int) -> None:
        del self.blocks[pointer]

    def create_stream(self) -> int:
        self.streams += 1
        return STREAM

    def destroy_stream(self, pointer: int) -> None:
        assert pointer == STREAM
        self.streams -= 1

    def stream_synchronize(self, pointer: int) -> None:
        assert pointer == STREAM

    def memcpy(self, target: int, source: int, nbytes: int, kind: Any, stream: int) -> None:
        assert stream == STREAM
        on_host = {1: [target], 2: [source], 3: [target, source]}[kind.value]
        for pointer in on_host:
            self.check(pointer, nbytes)
        ctypes.memmove(target, source, nbytes)

    def check(self, pointer: int, nbytes: int) -> None:
        assert pointer in self.blocks, "no allocation begins here"
        assert nbytes <= len(self.blocks[pointer]), "more than was allocated"


class HostEngine:
    """A trt.ICudaEngine of an ONNX file.

    Args:
        model: the file.
        cuda: whose memory tensors lie in.
        profile: (min, max) of each dynamic dimension.
    """

    def __init__(self, model: Path, cuda: HostCuda, profile: Mapping[str, tuple[int, int]]) -> None:
        self.session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        self.cuda = cuda
        graph = onnx.load(model).graph
        self.axes = {
            value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
            for value in [*graph.input, *graph.output]
        }
        self.dtypes = {
            value.name: onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
            for value in [*graph.input, *graph.output]
        }
        self.inputs = [value.name for value in graph.input]
        self.outputs = [value.name for value in graph.output]
        self.profile = profile
        self.contexts = 0

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[list[int]]:
        assert profile == 0
        low, high = (
            [axis if isinstance(axis, int) else self.profile[axis][end] for axis in self.axes[name]] for end in (0, 1)
        )
        return [low, high, high]

    def create_execution_context(self) -> HostContext:
        self.contexts += 1
        return HostContext(self)


class HostContext:
    """A trt.IExecutionContext."""

    def __init__(self, engine: HostEngine) -> None:
        self.engine = engine
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.fails = False

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        low, _, high = self.engine.get_tensor_profile_shape(name, 0)
        self.shapes[name] = shape
        return all(a <= size <= b for a, size, b in zip(low, shape, high, strict=True))

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return name in self.engine.axes

    def get_tensor_shape(self, name: str) -> list[int]:
        sizes: dict[Any, int] = {}
        for given in self.engine.inputs:
            sizes |= dict(zip(self.engine.axes[given], self.shapes[given], strict=True))
        sizes["all_tokens"] = sizes.get("past_tokens", 0) + sizes["tokens"]
        return [axis if isinstance(axis, int) else sizes[axis] for axis in self.engine.axes[name]]

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == STREAM
        if self.fails:
            return False
        feed = {name: self._array(name, self.shapes[name]).copy() for name in self.engine.inputs}
        outputs = {name: self._array(name, tuple(self.get_tensor_shape(name))) for name in self.engine.outputs}
        assert not {self.addresses[n] for n in self.engine.inputs} & {self.addresses[n] for n in self.engine.outputs}
        for name, computed in zip(self.engine.outputs, self.engine.session.run(None, feed), strict=True):
            assert isinstance(computed, np.ndarray)
            outputs[name][...] = computed.reshape(outputs[name].shape)
        return True

    def _array(self, name: str, shape: tuple[int, ...]) -> Any:
        dtype = self.engine.dtypes[name]
        nbytes = int(np.prod(shape)) * dtype.itemsize
        self.engine.cuda.check(self.addresses[name], nbytes)
        return np.frombuffer((ctypes.c_char * nbytes).from_address(self.addresses[name]), dtype).reshape(shape)


@pytest.fixture
def host_cuda(monkeypatch: pytest.MonkeyPatch) -> HostCuda:
    cuda = HostCuda()
    monkeypatch.setattr("pom_export.engine.device_memory.cuda", lambda: cuda)
    return cuda
