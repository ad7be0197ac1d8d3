"""Calls of a stateful model, on states that lie side by side: in ONNX Runtime, or in another backend."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from pom_export.errors import InputError, reason_of
from pom_export.runtime.ort_values import CPU, copied, device_of, wrapped
from pom_export.runtime.streaming.backend import StreamingBackend
from pom_export.runtime.streaming.interface import MASK, StatefulModel

Array = npt.NDArray[Any]
_MOST_BINDINGS: Final = 256


@dataclass(frozen=True)
class _Bound:
    """A bound call, and the arrays that it reads tokens from and writes its output to; None: ONNX Runtime's own."""

    binding: Any
    tokens: Array
    output: Array | None


class Calls(Protocol):
    """Runs a model on states that the caller keeps.

    Attributes:
        most_tokens: the most tokens of each row in a call; None: no limit.
    """

    most_tokens: int | None

    def run(
        self, tokens: Array, past: Mapping[str, Array], present: Mapping[str, Array], bank: int | None = None
    ) -> Array:
        """Run a call.

        Args:
            tokens: (batch, tokens) or (batch, tokens, d), of the model's type, contiguous.
            past: the states before it, by input.
            present: where the states after it are written to, by output.
            bank: a number for the memory of `past` and `present`, if they are in the same in each call with it and as
                many rows, of one token each; None: they are not.

        Returns:
            The output (batch, tokens, ...), in a buffer that a later call overwrites.

        Raises:
            InputError: the model cannot be run. `present` may have been written to.
        """


class OnnxRuntimeCalls:
    """Runs a model in ONNX Runtime, without a copy where the arrays are on the session's device.

    Calls on the same arrays of states are bound once for each number of rows.

    Args:
        session: the onnxruntime.InferenceSession.
        model: its interface.
    """

    most_tokens: int | None = None

    def __init__(self, session: Any, model: StatefulModel) -> None:
        self._session = session
        self._model = model
        self._scratch = np.empty(0, model.output.dtype)
        self._on_cpu = device_of(session)[0] == CPU
        self._kept: dict[tuple[int, int], _Bound] = {}

    def run(  # noqa: D102 (the protocol says it)
        self, tokens: Array, past: Mapping[str, Array], present: Mapping[str, Array], bank: int | None = None
    ) -> Array:
        batch, count = tokens.shape[:2]
        # On a device, an input is copied when it is bound, so that such a binding is only valid for one call.
        if bank is None or not self._on_cpu:
            return self._call(self._bind(tokens, past, present, self._long_output(batch, count)))
        if (bank, batch) not in self._kept:
            if len(self._kept) >= _MOST_BINDINGS:
                self._kept.clear()
            self._kept[bank, batch] = self._bind(tokens.copy(), past, present, self._output(batch, count))
        bound = self._kept[bank, batch]
        np.copyto(bound.tokens, tokens)
        return self._call(bound)

    def _bind(
        self, tokens: Array, past: Mapping[str, Array], present: Mapping[str, Array], output: Array | None
    ) -> _Bound:
        binding = self._session.io_binding()
        binding.bind_ortvalue_input(self._model.tokens.name, wrapped(tokens))
        if self._model.mask is not None:
            binding.bind_ortvalue_input(MASK, wrapped(np.ones(tokens.shape[:2], np.bool_)))
        for name, array in past.items():
            binding.bind_ortvalue_input(name, wrapped(array))
        if output is None:
            binding.bind_output(self._model.output.name)
        else:
            binding.bind_ortvalue_output(self._model.output.name, wrapped(output))
        for name, array in present.items():
            binding.bind_ortvalue_output(name, wrapped(array))
        return _Bound(binding, tokens, output)

    def _call(self, bound: _Bound) -> Array:
        try:
            self._session.run_with_iobinding(bound.binding)
        except Exception as error:  # onnxruntime's exceptions have no common base class
            raise InputError(
                f"ONNX Runtime cannot run {self._model.name}: {reason_of(error)}", "The states are unchanged"
            ) from error
        if bound.output is None:
            return copied(bound.binding.get_outputs()[0], self._model.output.dtype)
        return bound.output

    def _output(self, batch: int, tokens: int) -> Array | None:
        shape = self._model.output_shape(batch, tokens)
        return None if shape is None else np.empty(shape, self._model.output.dtype)

    def _long_output(self, batch: int, tokens: int) -> Array | None:
        """Return a part of the buffer that all prompts' outputs are written to, which may be large."""
        shape = self._model.output_shape(batch, tokens)
        if shape is None:
            return None
        size = math.prod(shape)
        if size > self._scratch.size:
            self._scratch = np.empty(size, self._model.output.dtype)
        return self._scratch[:size].reshape(shape)


class BackendCalls:
    """Runs a model in a backend with memory of its own, such as an engine: states are copied there and back.

    Args:
        backend: the backend, for any number of rows up to that of the pool.
        model: its interface.
    """

    def __init__(self, backend: StreamingBackend, model: StatefulModel) -> None:
        self._backend = backend
        self._model = model
        self._past: Any = None
        self.most_tokens = backend.most_tokens

    def run(  # noqa: D102
        self,
        tokens: Array,
        past: Mapping[str, Array],
        present: Mapping[str, Array],
        bank: int | None = None,  # noqa: ARG002
    ) -> Array:
        feed = {self._model.tokens.name: tokens}
        if self._model.mask is not None:
            feed[MASK] = np.ones(tokens.shape[:2], np.bool_)
        before = self._backend.write(past, self._past)
        self._past = before
        output, self._past = self._backend.run(before, feed)
        after = self._backend.read(self._past)
        for part in self._model.past:
            np.copyto(present[part.present], after[part.spec.name])
        return output
