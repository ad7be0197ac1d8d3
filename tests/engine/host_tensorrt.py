"""Doubles of the parts of TensorRT and the CUDA runtime that a stream uses, in host memory and with ONNX Runtime.

Work enqueued on a stream happens only when the stream is waited for, which the real ones allow too. Unlike the real
ones, the doubles fail if a tensor or a copy exceeds its allocation, or if an output overlaps an input.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime

from pom_export.engine.device_memory import CopyKind


class HostCuda:
    """A double of CudaRuntime."""

    def __init__(self) -> None:
        self.blocks: dict[int, Any] = {}
        self.allocated = 0
        # The pending work of each stream, and the memory that it uses.
        self.streams: dict[int, list[tuple[set[int], Callable[[], Any]]]] = {}
        self._numbers = itertools.count(7)

    def malloc(self, nbytes: int) -> int:
        block = ctypes.create_string_buffer(b"\xff" * nbytes, nbytes)  # undefined, like new memory
        self.blocks[ctypes.addressof(block)] = block
        self.allocated += 1
        return ctypes.addressof(block)

    def free(self, pointer: int) -> None:
        for work in list(self.streams.values()):
            assert not any(pointer in needed for needed, _ in work), "it is needed by work under way"
        del self.blocks[pointer]

    def create_stream(self) -> int:
        number = next(self._numbers)
        self.streams[number] = []
        return number

    def destroy_stream(self, stream: int) -> None:
        assert not self.streams.pop(stream), "work was never waited for"

    def synchronize(self, stream: int) -> None:
        work, self.streams[stream] = self.streams[stream], []
        for _, step in work:
            step()

    def copy(self, target: int, source: int, nbytes: int, kind: CopyKind, stream: int) -> None:
        on_device = {
            CopyKind.TO_DEVICE: [target],
            CopyKind.TO_HOST: [source],
            CopyKind.ON_DEVICE: [target, source],
        }[kind]
        for pointer in on_device:
            self.check(pointer, nbytes)
        self.streams[stream].append(({target, source}, lambda: ctypes.memmove(target, source, nbytes)))

    def check(self, pointer: int, nbytes: int) -> None:
        assert pointer in self.blocks, "no allocation begins here"
        assert nbytes <= len(self.blocks[pointer]), "more than was allocated"


class Specialization(Enum):
    """A double of trt.DynamicShapesKernelSpecializationStrategy."""

    LAZY = 0
    NONE = 2


class HostEngine:
    """A double of trt.ICudaEngine, made from an ONNX file.

    Args:
        model: the ONNX file.
        cuda: the runtime whose memory the tensors lie in.
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

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[list[int]]:
        assert profile == 0
        low, high = (
            [axis if isinstance(axis, int) else self.profile[axis][end] for axis in self.axes[name]] for end in (0, 1)
        )
        return [low, high, high]

    def create_runtime_config(self) -> SimpleNamespace:
        return SimpleNamespace(dynamic_shapes_kernel_specialization_strategy=Specialization.LAZY)

    def create_execution_context(self, runtime_config: SimpleNamespace | None = None) -> HostContext:
        return HostContext(self, runtime_config or self.create_runtime_config())


class HostContext:
    """A double of trt.IExecutionContext."""

    def __init__(self, engine: HostEngine, config: SimpleNamespace) -> None:
        self.engine = engine
        self.specialization = config.dynamic_shapes_kernel_specialization_strategy
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
        if self.fails:
            return False
        engine = self.engine
        feed = {name: self._array(name, self.shapes[name]) for name in engine.inputs}
        outputs = {name: self._array(name, tuple(self.get_tensor_shape(name))) for name in engine.outputs}
        assert not {self.addresses[name] for name in engine.inputs} & {self.addresses[name] for name in engine.outputs}

        def compute() -> None:
            computed = engine.session.run(None, {name: array.copy() for name, array in feed.items()})
            for name, values in zip(engine.outputs, computed, strict=True):
                outputs[name][...] = np.asarray(values).reshape(outputs[name].shape)

        engine.cuda.streams[stream].append((set(self.addresses.values()), compute))
        return True

    def _array(self, name: str, shape: tuple[int, ...]) -> Any:
        dtype = self.engine.dtypes[name]
        nbytes = int(np.prod(shape)) * dtype.itemsize
        self.engine.cuda.check(self.addresses[name], nbytes)
        return np.frombuffer((ctypes.c_char * nbytes).from_address(self.addresses[name]), dtype).reshape(shape)
