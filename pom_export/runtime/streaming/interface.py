"""The interface of a stateful export: its tokens, state and output."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pom_export.errors import InputError
from pom_export.graph.exported_model import (
    BATCH,
    PAST_CONTEXT,
    PAST_LENGTH,
    PAST_STATE,
    PAST_TOKENS,
    TOKENS,
    ExportedModel,
    InputLimits,
    TensorSpec,
    is_past,
    present_name,
    read_model,
)

IDS: Final = "input_ids"
MASK: Final = "mask"
_VECTORS: Final = "x"
_IDS_RANK: Final = 2
# More tokens than any stream has, and the most that a float64 can count.
_MOST_TOKENS: Final = 2**53


@dataclass(frozen=True)
class StateTensor:
    """A part of a state: an input, and the output that becomes this input in the next call.

    Attributes:
        spec: the input.
        present: name of the output.
    """

    spec: TensorSpec
    present: str

    @property
    def grows(self) -> bool:
        """Whether it has an entry for every token, like a cache of keys, and therefore grows with every call."""
        return any(isinstance(axis, str) and axis != BATCH for axis in self.spec.axes)

    def empty_shape(self, batch: int) -> tuple[int, ...]:
        """Return its shape before the first token."""
        return tuple(axis if isinstance(axis, int) else batch if axis == BATCH else 0 for axis in self.spec.axes)


@dataclass(frozen=True)
class StatefulModel:
    """The interface of a stateful export.

    Attributes:
        file: the interface of the whole file.
        tokens: the input for a call's tokens: (batch, tokens) ids, or (batch, tokens, d).
        mask: the input (batch, tokens) bool that marks valid tokens; None: all are valid.
        others: a call's other inputs, by name.
        contexts: those of them that only the first call gets.
        past: the parts of the state, including `past_length`.
        output: the output for each token, (batch, tokens, ...).
        limits: limits on the inputs.
    """

    file: ExportedModel
    tokens: TensorSpec
    mask: TensorSpec | None
    others: Mapping[str, TensorSpec]
    contexts: frozenset[str]
    past: tuple[StateTensor, ...]
    output: TensorSpec
    limits: InputLimits

    @property
    def name(self) -> str:
        """The file's name, for messages."""
        return self.file.path.name

    @property
    def takes_ids(self) -> bool:
        """Whether tokens are ids, as in a language model."""
        return len(self.tokens.axes) == _IDS_RANK

    @property
    def positions(self) -> int:
        """The most tokens in a row: the file's limit, but no more than a float64 can count."""
        return _MOST_TOKENS if self.limits.tokens is None else min(self.limits.tokens, _MOST_TOKENS)

    @property
    def ordered(self) -> bool:
        """Whether the tokens' order matters, so that masked tokens must come last."""
        return self.takes_ids or any(part.spec.name not in (PAST_STATE, PAST_LENGTH) for part in self.past)

    def output_shape(self, batch: int, tokens: int) -> list[int] | None:
        """Return the output's shape for a call; None if the file does not declare all of it."""
        sizes = {BATCH: batch, TOKENS: tokens}
        shape = [axis if isinstance(axis, int) else sizes.get(axis) for axis in self.output.axes]
        known = [size for size in shape if size is not None]
        return known if len(known) == len(shape) else None

    def empty(self, batch: int) -> dict[str, npt.NDArray[Any]]:
        """Return the state before the first token, by input."""
        return {part.spec.name: np.zeros(part.empty_shape(batch), part.spec.dtype) for part in self.past}


def _tokens(file: ExportedModel) -> TensorSpec | None:
    """Return the input with an entry for each token, (batch, tokens, ...).

    A user's own model may call it anything, and may call a context input_ids. In a file of fixed sizes, only the name
    tells.
    """
    dynamic = [spec for spec in file.inputs if spec.axes[1:2] == (TOKENS,) and spec.name != MASK]
    named = [spec for name in (IDS, _VECTORS) for spec in (dynamic or file.inputs) if spec.name == name]
    return next(iter([*named, *dynamic]), None)


def read_stateful(path: str | os.PathLike[str]) -> StatefulModel:
    """Read a stateful export's interface.

    Raises:
        InputError: the file cannot be read, keeps no state, or lacks a part of its interface.
    """
    return stateful_interface(read_model(path))


def stateful_interface(file: ExportedModel) -> StatefulModel:
    """Return the interface of a stateful export.

    Raises:
        InputError: the file keeps no state, or lacks a part of its interface.
    """
    if not file.stateful:
        raise InputError(f"{file.path.name} keeps no state", "Export it with `stateful=True`")
    inputs = {spec.name: spec for spec in file.inputs}
    past = tuple(StateTensor(spec, present_name(spec.name)) for spec in file.inputs if is_past(spec.name))
    tokens = _tokens(file)
    presents = {part.present for part in past}
    results = [spec for spec in file.outputs if spec.name not in presents]
    missing = presents - {spec.name for spec in file.outputs}
    if tokens is None or PAST_LENGTH not in inputs or missing or not results:
        lacks = ", ".join(sorted(missing)) or f"{IDS} or {_VECTORS}, {PAST_LENGTH} and an output"
        raise InputError(f"{file.path.name} is not a complete stateful export: it lacks {lacks}", "Export it again")
    known = {tokens.name, MASK, *(part.spec.name for part in past)}
    others = {name: spec for name, spec in inputs.items() if name not in known}
    contexts = frozenset(spec.name for spec in _contexts(file.inputs) if spec.name in others)
    return StatefulModel(file, tokens, inputs.get(MASK), others, contexts, past, results[0], file.limits)


def _contexts(inputs: Sequence[TensorSpec]) -> list[TensorSpec]:
    """Return the inputs that only the first call gets.

    They are sequences other than that of the tokens, (batch, a number of tokens of its own, ...), in a file that keeps
    what it computes from them.
    """
    if not any(spec.name.startswith(f"{PAST_CONTEXT}.") for spec in inputs):
        return []
    others = [spec for spec in inputs if not is_past(spec.name) and len(spec.axes) > 1]
    return [spec for spec in others if isinstance(spec.axes[1], str) and spec.axes[1] != TOKENS]


def empty_dimensions(inputs: Sequence[TensorSpec]) -> set[str]:
    """Return the dynamic dimensions that are 0 in some calls: the past in the first one, a context in all others."""
    past = {axis for spec in inputs if is_past(spec.name) for axis in spec.axes if isinstance(axis, str)}
    return ({PAST_TOKENS} | past | {str(spec.axes[1]) for spec in _contexts(inputs)}) - {BATCH}
