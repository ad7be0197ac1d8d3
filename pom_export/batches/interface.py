"""What a loaded file takes and gives for one sequence, read from its session."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pom_export.errors import InputError, kind_of
from pom_export.graph.claims import CAUSAL, METADATA_PREFIX, STATEFUL, ClaimError, InputLimits, read_claims
from pom_export.graph.dimensions import BATCH, TOKENS, is_name, name_by_place
from pom_export.graph.exported_model import PAST_LENGTH, TensorSpec, is_past, present_name
from pom_export.graph.size_expressions import size_of

Array = npt.NDArray[Any]
Sizes = Mapping[str, int]
"""Sizes of dynamic dimensions, by name."""

# Masks that are assumed to keep every token if a sequence comes without them: ours, and the name that others use.
_MASK_NAMES: Final = ("mask", "attention_mask")
# Element types in ONNX Runtime's notation that NumPy has.
_TYPES: Final = {
    "float": "float32", "double": "float64", "float16": "float16", "bool": "bool", "int8": "int8", "uint8": "uint8",
    "int16": "int16", "uint16": "uint16", "int32": "int32", "uint32": "uint32", "int64": "int64", "uint64": "uint64",
}  # fmt: skip


@dataclass(frozen=True)
class Interface:
    """The inputs and outputs of a file, and which of their dimensions is the batch.

    Attributes:
        name: the file's name, for messages.
        inputs: the inputs by name, without those of the past.
        past: the inputs of the past, by name.
        outputs: the outputs by name, without those of the present.
        batch: the batch: the name of a dimension, or the number of rows if it is fixed; None: the file takes one
            sequence per call.
        limits: limits on the inputs.
        causal_state: whether a long sequence may go in pieces, through the file's state.
    """

    name: str
    inputs: Mapping[str, TensorSpec]
    past: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    batch: str | int | None
    limits: InputLimits
    causal_state: bool

    def batch_axis(self, spec: TensorSpec) -> int | None:
        """Return which axis of an input or output is the batch; None if none is."""
        return self._places[spec.name][0]

    def axes(self, spec: TensorSpec) -> tuple[str | int, ...]:
        """Return the axes of a sequence's array: those of an input or output without the batch."""
        return self._places[spec.name][1]

    @cached_property
    def _places(self) -> dict[str, tuple[int | None, tuple[str | int, ...]]]:
        """The axis of the batch, and the other axes, of every input and output."""
        found: dict[str, tuple[int | None, tuple[str | int, ...]]] = {}
        for spec in (*self.inputs.values(), *self.past.values(), *self.outputs.values()):
            axis = None
            if isinstance(self.batch, int):
                axis = 0
            elif self.batch in spec.axes:
                axis = spec.axes.index(self.batch)
            found[spec.name] = axis, spec.axes if axis is None else spec.axes[:axis] + spec.axes[axis + 1 :]
        return found

    @cached_property
    def dimensions(self) -> tuple[str, ...]:
        """The names of the dynamic dimensions of sequences, in the order of the inputs."""
        axes = (axis for spec in self.inputs.values() for axis in self.axes(spec))
        return tuple(dict.fromkeys(axis for axis in axes if isinstance(axis, str) and axis.isidentifier()))

    @property
    def defaults(self) -> tuple[str, ...]:
        """The inputs that a sequence may lack: masks, which then keep every token."""
        return tuple(name for name in self.inputs if name in _MASK_NAMES)

    def is_mask(self, name: str) -> bool:
        """Return whether an input says which tokens count, so that padding is 0 in it."""
        spec = self.inputs[name]
        return bool(self.axes(spec)) and (spec.dtype == np.bool_ or name in _MASK_NAMES)

    def empty_past(self, rows: int) -> dict[str, Array]:
        """Return the state before the first token."""
        return {
            name: np.zeros([axis if isinstance(axis, int) else rows * (axis == self.batch) for axis in spec.axes],
                           spec.dtype)
            for name, spec in self.past.items()
        }  # fmt: skip

    def shape(self, spec: TensorSpec, sizes: Sizes) -> tuple[int, ...]:
        """Return the shape of a sequence's array.

        Raises:
            InputError: an axis is computed from none of these sizes.
        """
        shape = [size_of(axis, sizes) for axis in self.axes(spec)]
        if None in shape:
            raise InputError(f"{self.name} does not declare the sizes of {spec}", "Run it on one sequence at a time")
        return tuple(size for size in shape if size is not None)


def read_interface(session: Any) -> Interface:
    """Read the interface of an onnxruntime.InferenceSession.

    Raises:
        InputError: it is none, or its file has inputs or outputs that NumPy has no type for, or invalid metadata.
    """
    if not all(hasattr(session, name) for name in ("get_inputs", "get_outputs", "get_modelmeta", "run")):
        raise InputError(
            f"the model is {kind_of(session)}", "Give the path of an ONNX file, or an onnxruntime.InferenceSession"
        )
    name = Path(getattr(session, "_model_path", None) or "the model").name
    metadata = session.get_modelmeta().custom_metadata_map
    try:
        claims = read_claims(metadata.items())
    except ClaimError as error:
        raise InputError(f"{name}: the metadata was not written by pom-export: {error}", "Export it again") from error
    names = [value.name for value in session.get_inputs()]
    ours = any(key.startswith(METADATA_PREFIX) for key in metadata)
    inputs = {value.name: _spec(value, names, name) for value in session.get_inputs()}
    outputs = {value.name: _spec(value, names, name) for value in session.get_outputs()}
    past = {each: spec for each, spec in inputs.items() if ours and is_past(each) and PAST_LENGTH in inputs}
    presents = {present_name(each) for each in past}
    inputs = {each: spec for each, spec in inputs.items() if each not in past}
    outputs = {each: spec for each, spec in outputs.items() if each not in presents}
    stateful = bool(past) and claims.properties.get(STATEFUL) == CAUSAL
    in_tokens = all(TOKENS in spec.axes for spec in outputs.values())
    return Interface(
        name=name,
        inputs=inputs,
        past=past,
        outputs=outputs,
        batch=_batch([*inputs.values(), *past.values()], list(outputs.values())),
        limits=claims.limits or InputLimits(),
        causal_state=stateful and in_tokens,
    )


def _spec(value: Any, inputs: Sequence[str], model: str) -> TensorSpec:
    kind = value.type.removeprefix("tensor(").removesuffix(")")
    if kind not in _TYPES:
        raise InputError(f"{value.name} of {model} is {value.type}, which NumPy has no type for", "Use another file")
    rank = len(value.shape)
    axes = (
        axis if isinstance(axis, int) and axis >= 0
        else axis if isinstance(axis, str) and is_name(axis)
        else name_by_place(value.name, rank, place, inputs)
        for place, axis in enumerate(value.shape)
    )  # fmt: skip
    return TensorSpec(value.name, np.dtype(_TYPES[kind]), tuple(axes))


def _batch(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> str | int | None:
    """Return the dimension that is the batch: the one that an export names so, or the first of every array."""
    if any(BATCH in spec.axes for spec in inputs):
        return BATCH
    firsts = {spec.axes[0] if spec.axes else "" for spec in (*inputs, *outputs)}
    first = firsts.pop() if len(firsts) == 1 else None
    return first if isinstance(first, int) or (first and first.isidentifier()) else None
