"""The backends at work: each loads its file once, takes inputs of one size, and runs. Lives in a worker process."""

from __future__ import annotations

import os
import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pom_export.bench.options import (
    ATTENTION,
    FUNCTION,
    KERNEL,
    MATMUL,
    PLAIN,
    TENSORRT,
    TORCH,
    TORCH_COMPILE,
)
from pom_export.bench.preparing import (
    ATTENTION_FILE,
    ENGINE_FILE,
    FLOOR_FILE,
    MODULE_FILE,
    PLAIN_FILE,
    resolve_axes,
)
from pom_export.graph.exported import ExportedModel, read_model
from pom_export.runtime.session import default_session_options, import_onnxruntime, inference_session

Array = npt.NDArray[Any]
_KEPT_SHARE = 0.9


def draw_inputs(model: ExportedModel, sizes: Mapping[str, int], seed: int) -> dict[str, Array]:
    """Draw a model's inputs; one of the same name, shape and seed is always the same."""
    feed = {}
    for spec in model.inputs:
        random_state = np.random.default_rng([seed, zlib.crc32(spec.name.encode())])
        shape = resolve_axes(spec.axes, sizes)
        if spec.dtype == np.bool_:
            feed[spec.name] = random_state.random(shape) < _KEPT_SHARE
        elif np.issubdtype(spec.dtype, np.integer):
            most = model.limits.values.get(spec.name, [2])
            feed[spec.name] = random_state.integers(0, most, shape).astype(spec.dtype)
        elif spec.name in model.limits.ranges:
            low, high = model.limits.ranges[spec.name]
            feed[spec.name] = random_state.uniform(low, high, shape).astype(spec.dtype)
        else:
            feed[spec.name] = random_state.standard_normal(shape, dtype=np.float32).astype(spec.dtype)
    return feed


class Contestant(ABC):
    """One backend with its model loaded."""

    @abstractmethod
    def bind(self, feed: Mapping[str, Array]) -> None:
        """Take the inputs of the runs that follow."""

    @abstractmethod
    def first(self) -> list[Array]:
        """Run once, make ready for more of it, and return the outputs."""

    @abstractmethod
    def run(self) -> object:
        """Run once more."""


def session_settings(threads: int) -> Any:
    """Return the onnxruntime.SessionOptions of a session beside others.

    Threads that wait don't spin: several sessions live in one process and must not take each other's processors.
    """
    options = default_session_options()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


class BoundContestant(Contestant):
    """A session of ONNX Runtime: inputs and outputs are bound, so that a run copies nothing."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self._names = [output.name for output in session.get_outputs()]

    def bind(self, feed: Mapping[str, Array]) -> None:  # noqa: D102
        self._binding = self._session.io_binding()
        make = import_onnxruntime().OrtValue.ortvalue_from_numpy
        self._inputs = {name: make(array) for name, array in feed.items()}
        for name, value in self._inputs.items():
            self._binding.bind_ortvalue_input(name, value)

    def bind_output(self, name: str) -> None:
        """Say where an output of the first run goes: anywhere."""
        self._binding.bind_output(name)

    def first(self) -> list[Array]:  # noqa: D102
        for name in self._names:
            self.bind_output(name)
        self.run()
        # Later runs write to the tensors that this one made.
        values = self._binding.get_outputs()
        for name, value in zip(self._names, values, strict=True):
            self._binding.bind_ortvalue_output(name, value)
        return [value.numpy() for value in values]

    def run(self) -> object:  # noqa: D102
        self._session.run_with_iobinding(self._binding)
        return None


class OnnxContestant(BoundContestant):
    """A session of its own."""

    def __init__(self, path: Path, threads: int, *, kernels: bool = False) -> None:
        super().__init__(inference_session(path, kernels=kernels, session_options=session_settings(threads)))


class TorchContestant(Contestant):
    """A module of PyTorch, as it is or compiled for the size that it first sees."""

    def __init__(self, path: Path, threads: int, *, compiled: bool = False) -> None:
        import torch

        torch.set_num_threads(threads)
        # Written by this benchmark, into a folder of its own.
        module = torch.load(path, weights_only=False)
        self._run = torch.compile(module, dynamic=False) if compiled else module

    def bind(self, feed: Mapping[str, Array]) -> None:  # noqa: D102
        import torch

        self._feed = {name: torch.from_numpy(array) for name, array in feed.items()}

    def first(self) -> list[Array]:  # noqa: D102
        return [self.run().numpy()]

    def run(self) -> Any:  # noqa: D102
        import torch

        with torch.inference_mode():
            return self._run(**self._feed)


class EngineContestant(Contestant):
    """A TensorRT engine; a run includes the copies to the GPU and back."""

    def __init__(self, path: Path) -> None:
        from pom_export.engine.runner import engine_backend, engine_runner

        backend = engine_backend(path)
        self._runner = engine_runner(path, backend, backend.name)
        self._runner.__enter__()  # for as long as the process lives

    def bind(self, feed: Mapping[str, Array]) -> None:  # noqa: D102
        self._feed = dict(feed)

    def first(self) -> list[Array]:  # noqa: D102
        return list(self.run().values())

    def run(self) -> Any:  # noqa: D102
        return self._runner.infer(self._feed)


def load_contestant(name: str, folder: Path, model: Path, threads: int) -> Contestant:
    """Load a backend.

    Args:
        name: of the backend.
        folder: where its file was prepared.
        model: our export.
        threads: that it may use.

    Raises:
        InputError: it cannot load its file.
    """
    if name in {TORCH, TORCH_COMPILE}:
        return TorchContestant(folder / MODULE_FILE, threads, compiled=name == TORCH_COMPILE)
    if name == TENSORRT:
        return EngineContestant(folder / ENGINE_FILE)
    return OnnxContestant(file_of(name, folder, model), threads, kernels=name == KERNEL)


def interface_of(name: str, folder: Path, model: Path) -> ExportedModel:
    """Return what tells a backend's inputs: our export, which knows their limits, for all that compute the same."""
    return read_model(model if name in COMPARED else file_of(name, folder, model))


def file_of(name: str, folder: Path, model: Path) -> Path:
    """Return the ONNX file of a backend, or our export for one that has none."""
    files = {PLAIN: PLAIN_FILE, ATTENTION: ATTENTION_FILE, MATMUL: FLOOR_FILE}
    return folder / files[name] if name in files else model


COMPARED: Sequence[str] = (TORCH, TORCH_COMPILE, PLAIN, FUNCTION, KERNEL, TENSORRT)
"""Backends that compute the same, the reference first; the others compute something else of the same size."""


def bytes_of(path: Path, feed: Mapping[str, Array], outputs: Sequence[Array]) -> int:
    """Return the bytes of a model's weights, inputs and outputs."""
    import onnx

    weights = onnx.load(os.fspath(path), load_external_data=False).graph.initializer
    types = onnx.helper.tensor_dtype_to_np_dtype
    held = sum(types(tensor.data_type).itemsize * int(np.prod(tensor.dims)) for tensor in weights)
    return held + sum(array.nbytes for array in (*feed.values(), *outputs))
