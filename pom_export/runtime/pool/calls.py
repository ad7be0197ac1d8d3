"""One call of a stateful model in ONNX Runtime, on states that lie side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from pom_export.errors import InputError, reason_of
from pom_export.graph.exported_model import BATCH, TOKENS
from pom_export.runtime.ort_values import copied, wrapped
from pom_export.runtime.streaming.interface import MASK, StatefulModel

Array = npt.NDArray[Any]


class Calls:
    """Runs a model on arrays of the caller's, without a copy where they are on the session's device.

    Args:
        session: the onnxruntime.InferenceSession.
        model: its interface.
    """

    def __init__(self, session: Any, model: StatefulModel) -> None:
        self._session = session
        self._model = model
        self._scratch = np.empty(0, model.output.dtype)

    def run(self, tokens: Array, past: Mapping[str, Array], present: Mapping[str, Array]) -> Array:
        """Run a call.

        Args:
            tokens: (batch, tokens) or (batch, tokens, d), of the model's type.
            past: the states before it, by input.
            present: where the states after it are written to, by output.

        Returns:
            The output (batch, tokens, ...), in a buffer that the next call overwrites.

        Raises:
            InputError: ONNX Runtime failed. `present` may have been written to.
        """
        binding = self._session.io_binding()
        tokens = np.ascontiguousarray(tokens)
        binding.bind_ortvalue_input(self._model.tokens.name, wrapped(tokens))
        if self._model.mask is not None:
            every = np.ones(tokens.shape[:2], np.bool_)
            binding.bind_ortvalue_input(MASK, wrapped(every))
        for name, array in past.items():
            binding.bind_ortvalue_input(name, wrapped(array))
        output = self._buffer(*tokens.shape[:2])
        if output is None:
            binding.bind_output(self._model.output.name)
        else:
            binding.bind_ortvalue_output(self._model.output.name, wrapped(output))
        for name, array in present.items():
            binding.bind_ortvalue_output(name, wrapped(array))
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # onnxruntime's exceptions have no common base class
            raise InputError(
                f"ONNX Runtime cannot run {self._model.name}: {reason_of(error)}", "The states are unchanged"
            ) from error
        return copied(binding.get_outputs()[0], self._model.output.dtype) if output is None else output

    def _buffer(self, batch: int, tokens: int) -> Array | None:
        """Return an array for the output; None if the file does not declare its full shape."""
        sizes = {BATCH: batch, TOKENS: tokens}
        shape = [axis if isinstance(axis, int) else sizes.get(axis) for axis in self._model.output.axes]
        known = [size for size in shape if size is not None]
        if len(known) < len(shape):
            return None
        size = math.prod(known)
        if size > self._scratch.size:
            self._scratch = np.empty(size, self._model.output.dtype)
        return self._scratch[:size].reshape(known)
