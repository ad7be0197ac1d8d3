"""Run streams through a TensorRT engine; needs a GPU that it was built for."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pom_export.engine.backend import gpu_present
from pom_export.engine.build_config import PLUGIN
from pom_export.engine.device_memory import DeviceBuffer, Stream
from pom_export.engine.loading import deserialize
from pom_export.engine.logger import collected_errors, errors_here
from pom_export.engine.manifest import check_model, path_in, read_engine
from pom_export.engine.runner import backend_in
from pom_export.errors import EngineError, InputError
from pom_export.files import readable_file
from pom_export.runtime.streaming.backend import BackendFactory, locked
from pom_export.runtime.streaming.interface import StatefulModel, StateTensor

Array = npt.NDArray[Any]
Shape = tuple[int, ...]
_NO_REASON: Final = "it gives no reason"


def tensorrt_backend(engine: str | os.PathLike[str]) -> BackendFactory:
    """Load an engine for streams: `StreamingSession(model, backend=tensorrt_backend(engine))`.

    Args:
        engine: a file written by `build_engine`, from an export with `stateful=True`.

    Returns:
        A function with which a StreamingSession creates its backend. Sessions that use the same function share the
        engine's weights.

    Raises:
        InputError: the engine or its manifest cannot be read or do not match, or there is no CUDA device. The session
            raises it if the engine was not built from its model or for its number of rows.
        MissingDependencyError: the TensorRT that the engine was built with is not installed.
        EngineError: TensorRT does not load it.
    """
    file = readable_file(engine, "engine")
    if not gpu_present():
        raise InputError(
            f"there is no CUDA device here to run {file.name} on", "Leave the engine out: ONNX Runtime runs the model"
        )
    content, manifest = read_engine(file)
    try:
        loaded = deserialize(content, backend_in(manifest, file), path_in(manifest) == PLUGIN)
    except EngineError as error:
        raise EngineError(f"{file.name} cannot be used: {error}", "Build it again, for this GPU") from error

    def factory(model: StatefulModel, batch: int) -> TensorRtBackend:
        check_model(manifest, file, model.file)
        return TensorRtBackend(loaded, model, batch)

    return factory


@dataclass(frozen=True)
class _Past:
    """The set of buffers that holds the state, and the shapes of its parts, by input."""

    turn: int
    shapes: Mapping[str, Shape]


class TensorRtBackend:
    """Runs an engine of a stateful model without copying its state between calls.

    The state is on the GPU in two sets of buffers: a call reads one and writes the other. Caches that grow get buffers
    for twice as many tokens when theirs are full.

    Args:
        engine: the trt.ICudaEngine.
        model: the interface of the ONNX file that it was built from.
        batch: number of rows.

    Attributes:
        most_tokens: the most tokens in a call, as the engine was built.

    Raises:
        InputError: the engine was not built for this number of rows.
        EngineError: TensorRT or CUDA cannot prepare it to run.
    """

    most_tokens: int | None

    def __init__(self, engine: Any, model: StatefulModel, batch: int) -> None:
        self._engine = engine
        self._model = model
        self._batch = batch
        self._ranges = {
            spec.name: [tuple(shape) for shape in engine.get_tensor_profile_shape(spec.name, 0)]
            for spec in model.file.inputs
        }
        self.most_tokens = self._ranges[model.tokens.name][2][1]
        self._check_shapes({part.spec.name: part.empty_shape(batch) for part in model.past})
        with collected_errors() as errors:
            self._context = _make_context(engine, varied=any(part.grows for part in model.past))
        if self._context is None:
            raise EngineError(f"TensorRT cannot prepare {model.name} to run: {'; '.join(errors) or _NO_REASON}")
        self._stream = Stream()
        self._turns = [{part.spec.name: DeviceBuffer() for part in model.past} for _ in range(2)]
        self._inputs = {spec.name: DeviceBuffer() for spec in model.file.inputs if spec.name not in self._turns[0]}
        self._output = DeviceBuffer()
        # The arrays that outputs of single tokens are copied to, one for each set of buffers.
        self._landings: dict[int, Array] = {}

    def write(self, arrays: Mapping[str, Array], instead_of: _Past | None) -> _Past:  # noqa: D102 (the protocol says it)
        turn = 0 if instead_of is None else 1 - instead_of.turn
        contiguous = {name: np.ascontiguousarray(arrays[name]) for name in self._turns[turn]}
        with self._stream.finished():
            for name, array in contiguous.items():
                self._turns[turn][name].write(array, self._stream)
        return _Past(turn, {name: array.shape for name, array in contiguous.items()})

    def read(self, past: _Past) -> dict[str, Array]:  # noqa: D102
        arrays = {part.spec.name: np.empty(past.shapes[part.spec.name], part.spec.dtype) for part in self._model.past}
        with self._stream.finished():
            for name, array in arrays.items():
                self._turns[past.turn][name].read(array, self._stream)
        return arrays

    def run(self, past: _Past, feed: Mapping[str, Array]) -> tuple[Array, _Past]:  # noqa: D102
        shapes = {name: array.shape for name, array in feed.items()} | dict(past.shapes)
        single = feed[self._model.tokens.name].shape[1] == 1
        self._check_shapes(shapes)
        with collected_errors(), self._stream.finished():
            for name, shape in shapes.items():
                self._require(self._context.set_input_shape(name, shape))
            for name, array in feed.items():
                self._inputs[name].write(array, self._stream)
                self._bind(name, self._inputs[name])
            for name, buffer in self._turns[past.turn].items():
                self._bind(name, buffer)
            present = {part.spec.name: self._bind_present(part, 1 - past.turn) for part in self._model.past}
            output = self._bind_output(past.turn, single=single)
            self._require(self._context.execute_async_v3(self._stream.pointer))
            self._output.read(output, self._stream)
        return locked(output) if single else output, _Past(1 - past.turn, present)

    def fork(self, past: _Past) -> tuple[TensorRtBackend, _Past]:  # noqa: D102
        twin = TensorRtBackend(self._engine, self._model, self._batch)
        with twin._stream.finished():
            for part in self._model.past:
                name = part.spec.name
                nbytes = _nbytes(past.shapes[name], part.spec.dtype)
                twin._turns[0][name].write_from(self._turns[past.turn][name], nbytes, twin._stream)
        return twin, _Past(0, past.shapes)

    def nbytes(self, past: _Past) -> int:  # noqa: D102
        return sum(_nbytes(past.shapes[part.spec.name], part.spec.dtype) for part in self._model.past)

    def _check_shapes(self, shapes: Mapping[str, Sequence[int]]) -> None:
        for name, shape in shapes.items():
            low, _, high = self._ranges[name]
            if not all(least <= size <= most for least, size, most in zip(low, shape, high, strict=True)):
                raise InputError(
                    f"{name} of a call is {_text(shape)}, but the engine of {self._model.name} takes "
                    f"{_text(low)} to {_text(high)}",
                    "Build it with other `min_shapes` and `max_shapes`",
                )

    def _bind(self, name: str, buffer: DeviceBuffer) -> None:
        self._require(self._context.set_tensor_address(name, buffer.pointer))

    def _bind_present(self, part: StateTensor, turn: int) -> Shape:
        """Make room for a part of the new state, and return its shape."""
        shape, buffer = self._shape_of(part.present), self._turns[turn][part.spec.name]
        nbytes = _nbytes(shape, part.spec.dtype)
        # A part that grows by one token per call must not be reallocated in every call.
        most = _nbytes(self._ranges[part.spec.name][2], part.spec.dtype)
        buffer.reserve(nbytes, min(2 * nbytes, most) if part.grows else nbytes)
        self._bind(part.present, buffer)
        return shape

    def _bind_output(self, turn: int, *, single: bool) -> Array:
        """Make room for the output, and return its array: a new one or, for a single token, one that is reused."""
        spec = self._model.output
        shape = self._shape_of(spec.name)
        self._output.reserve(_nbytes(shape, spec.dtype))
        self._bind(spec.name, self._output)
        if not single:
            return np.empty(shape, spec.dtype)
        if turn not in self._landings or self._landings[turn].shape != shape:
            self._landings[turn] = np.empty(shape, spec.dtype)
        return self._landings[turn]

    def _shape_of(self, output: str) -> Shape:
        shape = tuple(self._context.get_tensor_shape(output))
        self._require(all(size >= 0 for size in shape))
        return shape

    def _require(self, done: bool) -> None:
        if not done:
            reason = "; ".join(errors_here()) or _NO_REASON
            raise InputError(f"TensorRT cannot run {self._model.name}: {reason}", "The state is unchanged")


def _make_context(engine: Any, *, varied: bool) -> Any:
    """Return a trt.IExecutionContext, or None, given whether almost every call has new shapes.

    TensorRT for RTX compiles kernels for each shape that it meets and runs others in the meantime. That is good for
    steps with a constant shape, but a growing cache has a new shape at every step.
    """
    strategy = "dynamic_shapes_kernel_specialization_strategy"
    config = engine.create_runtime_config() if varied and hasattr(engine, "create_runtime_config") else None
    if not hasattr(config, strategy):
        return engine.create_execution_context()
    setattr(config, strategy, type(getattr(config, strategy)).NONE)
    return engine.create_execution_context(runtime_config=config)


def _nbytes(shape: Shape, dtype: np.dtype[Any]) -> int:
    return math.prod(shape) * dtype.itemsize


def _text(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
