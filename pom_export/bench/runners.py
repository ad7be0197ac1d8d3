"""Run backends in a worker: each loads its file once and is then bound to inputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from pom_export.runtime.session import default_session_options, import_onnxruntime, inference_session

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Bound:
    """A backend bound to inputs, on which it has run once.

    Attributes:
        outputs: outputs of the first run.
        run: runs it again.
        inputs: kept alive, since runs read them.
    """

    outputs: list[Array]
    run: Callable[[], object]
    inputs: Mapping[str, Any]


class Runner(ABC):
    """A backend whose model is loaded."""

    @abstractmethod
    def bind(self, feed: Mapping[str, Array]) -> Bound:
        """Run once on inputs, and prepare further runs on them."""


class SessionRunner(Runner):
    """An ONNX Runtime session with bound inputs and outputs, so that a run copies nothing.

    Args:
        session: an onnxruntime.InferenceSession.
        in_place: for outputs that share the memory of an input, the name of that input.
    """

    def __init__(self, session: Any, in_place: Mapping[str, str] | None = None) -> None:
        self._session, self._in_place = session, in_place or {}

    def bind(self, feed: Mapping[str, Array]) -> Bound:  # noqa: D102
        binding, names = self._session.io_binding(), [output.name for output in self._session.get_outputs()]
        make = import_onnxruntime().OrtValue.ortvalue_from_numpy
        inputs = {name: make(array) for name, array in feed.items()}
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        for name in names:
            if name in self._in_place:
                binding.bind_ortvalue_output(name, inputs[self._in_place[name]])
            else:
                binding.bind_output(name)

        def run() -> None:
            self._session.run_with_iobinding(binding)

        run()
        # Later runs write to the tensors that this one allocated.
        values = binding.get_outputs()
        for name, value in zip(names, values, strict=True):
            binding.bind_ortvalue_output(name, value)
        return Bound([value.numpy() for value in values], run, inputs)


def session_settings(threads: int) -> Any:
    """Return onnxruntime.SessionOptions for several sessions in a process.

    Waiting threads do not spin, so that sessions do not take processor time from each other.
    """
    options = default_session_options()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def open_session(path: Path, threads: int, *, kernels: bool = False) -> Any:
    """Return an onnxruntime.InferenceSession, with or without our library."""
    return inference_session(path, kernels=kernels, session_options=session_settings(threads))


class EngineRunner(Runner):
    """A TensorRT engine; a run includes the copies to the GPU and back."""

    def __init__(self, path: Path) -> None:
        from pom_export.engine.manifest import read_engine
        from pom_export.engine.runner import backend_in, engine_runner

        content, manifest = read_engine(path)
        backend = backend_in(manifest, path)
        self._runner = engine_runner(content, manifest, backend, backend.name)
        self._runner.__enter__()  # until the process ends

    def bind(self, feed: Mapping[str, Array]) -> Bound:  # noqa: D102
        inputs = dict(feed)
        return Bound(list(self._runner.infer(inputs).values()), lambda: self._runner.infer(inputs), inputs)
