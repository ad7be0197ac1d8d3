"""The streaming backend for ONNX Runtime: two sets of buffers that alternate as past and present."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pom_export.errors import InputError, reason_of
from pom_export.graph.exported_model import BATCH, TOKENS
from pom_export.runtime.ort_values import CPU, as_known, copied, device_of, empty_value, wrapped
from pom_export.runtime.streaming.backend import locked
from pom_export.runtime.streaming.interface import StatefulModel

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class _Past:
    """The set of buffers that holds the state, and the parts that grow, which are never written to again."""

    turn: int
    grown: Mapping[str, Any]


@dataclass(frozen=True)
class _Step:
    """A call with one token, bound in advance, and the array that its output is written to."""

    binding: Any
    output: Array


class OnnxRuntimeBackend:
    """Runs a stateful model without copying its state between calls.

    Parts of a fixed size are in two sets of buffers: a call reads one and writes the other. Calls with one token are
    bound in advance, unless a part grows or tensors must be copied to a device. Caches that grow are ONNX Runtime's own
    tensors, which are passed on unchanged.

    Args:
        session: the onnxruntime.InferenceSession.
        model: its interface.
        batch: number of rows.
    """

    most_tokens: int | None = None

    def __init__(self, session: Any, model: StatefulModel, batch: int) -> None:
        self._session = session
        self._model = model
        self._batch = batch
        self._device = device_of(session)
        self._fixed = [part for part in model.past if not part.grows]
        self._growing = [part for part in model.past if part.grows]
        self._turns = [self._new_buffers(), self._new_buffers()]
        self._outputs = [self._output_array(1), self._output_array(1)]
        self._inputs: dict[str, Any] = {}
        self._steps: list[_Step] = []
        if self._device[0] == CPU and not self._growing and not model.others:
            self._bind_steps()

    def write(self, arrays: Mapping[str, Array], instead_of: _Past | None) -> _Past:  # noqa: D102 (the protocol says it)
        turn = 0 if instead_of is None else 1 - instead_of.turn
        for part in self._fixed:
            self._turns[turn][part.spec.name].update_inplace(as_known(arrays[part.spec.name]))
        names = [part.spec.name for part in self._growing]
        return _Past(turn, {name: wrapped(arrays[name].copy(order="C")) for name in names})

    def read(self, past: _Past) -> dict[str, Array]:  # noqa: D102
        return {part.spec.name: copied(self._value(past, part.spec.name), part.spec.dtype) for part in self._model.past}

    def run(self, past: _Past, feed: Mapping[str, Array]) -> tuple[Array, _Past]:  # noqa: D102
        tokens = feed[self._model.tokens.name].shape[1]
        if self._steps and tokens == 1:
            step = self._steps[past.turn]
            for name, value in self._inputs.items():
                value.update_inplace(as_known(feed[name]))
            self._call(step.binding)
            return step.output, _Past(1 - past.turn, {})
        output = self._outputs[past.turn] if tokens == 1 else self._output_array(tokens)
        binding = self._bind(past, {name: wrapped(array) for name, array in feed.items()}, output)
        self._call(binding)
        values = binding.get_outputs()
        if output is None:
            output = copied(values[0], self._model.output.dtype)
        present = _Past(
            1 - past.turn, dict(zip((p.spec.name for p in self._growing), values[self._first :], strict=True))
        )
        return locked(output) if tokens == 1 else output, present

    def fork(self, past: _Past) -> tuple[OnnxRuntimeBackend, _Past]:  # noqa: D102
        twin = OnnxRuntimeBackend(self._session, self._model, self._batch)
        for part in self._fixed:
            name = part.spec.name
            twin._turns[0][name].update_inplace(as_known(copied(self._turns[past.turn][name], part.spec.dtype)))
        return twin, _Past(0, past.grown)

    def nbytes(self, past: _Past) -> int:  # noqa: D102
        # ONNX Runtime 1.22 does not provide the size of a value in bytes.
        return sum(
            math.prod(self._value(past, part.spec.name).shape()) * part.spec.dtype.itemsize for part in self._model.past
        )

    @property
    def _first(self) -> int:
        """Index of the first output that grows, in the order in which `_bind` binds them."""
        return 1 + len(self._fixed)

    def _value(self, past: _Past, name: str) -> Any:
        return past.grown[name] if name in past.grown else self._turns[past.turn][name]

    def _new_buffers(self) -> dict[str, Any]:
        return {
            part.spec.name: empty_value(part.empty_shape(self._batch), part.spec.dtype, self._device)
            for part in self._fixed
        }

    def _output_array(self, tokens: int) -> Array | None:
        """Return an array for the output; None if the file does not declare its full shape."""
        shape = self._model.output_shape(self._batch, tokens)
        return None if shape is None else np.zeros(shape, self._model.output.dtype)

    def _bind_steps(self) -> None:
        """Bind a call with one token for each set of buffers, with inputs that are written in place."""
        first, second = self._outputs
        if first is None or second is None:
            return
        specs = [self._model.tokens, *([self._model.mask] if self._model.mask else [])]
        sizes = {BATCH: self._batch, TOKENS: 1}
        for spec in specs:
            shape = tuple(axis if isinstance(axis, int) else sizes[axis] for axis in spec.axes)
            self._inputs[spec.name] = wrapped(np.zeros(shape, spec.dtype))
        for turn, output in enumerate((first, second)):
            self._steps.append(_Step(self._bind(_Past(turn, {}), self._inputs, output), locked(output)))

    def _bind(self, past: _Past, inputs: Mapping[str, Any], output: Array | None) -> Any:
        """Bind a call that reads a past and writes to the other set of buffers.

        On a device, an input is copied when it is bound, so such a binding is only valid for one call.
        """
        binding = self._session.io_binding()
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        for part in self._model.past:
            binding.bind_ortvalue_input(part.spec.name, self._value(past, part.spec.name))
        if output is None:
            binding.bind_output(self._model.output.name)
        else:
            binding.bind_ortvalue_output(self._model.output.name, wrapped(output))
        for part in self._fixed:
            binding.bind_ortvalue_output(part.present, self._turns[1 - past.turn][part.spec.name])
        for part in self._growing:
            binding.bind_output(part.present, *self._device)
        return binding

    def _call(self, binding: Any) -> None:
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # onnxruntime's exceptions have no common base class
            raise InputError(
                f"ONNX Runtime cannot run {self._model.name}: {reason_of(error)}", "The state is unchanged"
            ) from error
