"""One token through a stateful model, after a context of any length; what comes before it is an input."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pom_export.bench.contestants import BoundContestant, session_settings
from pom_export.bench.options import ATTENTION, ATTENTION_SHARED, FUNCTION, KERNEL
from pom_export.graph.exported import PAST_KEY_VALUES, PAST_LENGTH, is_past
from pom_export.runtime.session import inference_session
from pom_export.runtime.streaming.interface import IDS, read_stateful
from pom_export.runtime.streaming.state import State

Array = npt.NDArray[Any]
# What a worker finds in its folder, by backend.
FILES: Final = {
    FUNCTION: "model.onnx",
    KERNEL: "model.onnx",
    ATTENTION: "attention.onnx",
    ATTENTION_SHARED: "attention-shared.onnx",
}
# Backends that compute the same from the same past.
ALIKE: Final = ((FUNCTION, KERNEL), (ATTENTION, ATTENTION_SHARED))
_PAST, _PRESENT = f"{PAST_KEY_VALUES}.", "present."


def state_file(folder: Path, context: int) -> Path:
    """Return where the state after so many tokens lies."""
    return folder / f"state-{context}.npz"


class StepContestant(BoundContestant):
    """A step from one context. Several share a loaded model.

    Args:
        session: the loaded model.
        in_place: whether the cache that goes out is to be the memory of the one that came in.
    """

    def __init__(self, session: Any, *, in_place: bool) -> None:
        super().__init__(session)
        self._in_place = in_place

    def bind_output(self, name: str) -> None:  # noqa: D102
        if self._in_place and name.startswith(_PRESENT):
            self._binding.bind_ortvalue_output(name, self._inputs[name.replace(_PRESENT, _PAST, 1)])
        else:
            super().bind_output(name)


def open_stream(name: str, folder: Path, threads: int) -> Any:
    """Load a backend's model into an onnxruntime.InferenceSession."""
    options = session_settings(threads)
    return inference_session(folder / FILES[name], kernels=name == KERNEL, session_options=options)


def step_of(name: str, session: Any) -> StepContestant:
    """Return a step of a loaded backend, nothing bound yet."""
    return StepContestant(session, in_place=name == ATTENTION_SHARED)


def step_inputs(name: str, session: Any, folder: Path, context: int, seed: int) -> dict[str, Array]:
    """Return the inputs of a step after a context.

    A mixer's state is that of so many real tokens, out of `state_file`. A cache holds random keys and values, the same
    for every backend: the time does not depend on them.
    """
    inputs = {value.name: value.shape for value in session.get_inputs()}
    past = _cache(inputs, context, name == ATTENTION_SHARED, seed)
    if not past:
        past = _state(folder, context)
    ids = drawn_tokens(seed, context + 1)[-1:]
    return {IDS: ids[None].astype(np.int64), PAST_LENGTH: np.array([context], np.int64), **past}


def past_bytes(feed: Mapping[str, Array], context: int) -> int:
    """Return the bytes of the state or of the cache's tokens among a step's inputs, without spare room."""
    held = 0
    for name, array in feed.items():
        if name.startswith(_PAST):
            held += array[:, :, :context].nbytes
        elif is_past(name):
            held += array.nbytes
    return held


def drawn_tokens(seed: int, count: int) -> npt.NDArray[np.uint8]:
    """Draw a text of so many bytes; a shorter one is the beginning of a longer one."""
    random_state = np.random.default_rng(seed)
    return np.frombuffer(random_state.bytes(count), np.uint8)


def _state(folder: Path, context: int) -> dict[str, Array]:
    if context:
        return dict(State.load(state_file(folder, context)).arrays)
    return read_stateful(os.fspath(folder / FILES[KERNEL])).empty(1)


def _cache(inputs: Mapping[str, Any], context: int, spare: bool, seed: int) -> dict[str, Array]:
    """Return keys and values of a context by input, one token more where the next is to be written in place."""
    found = {}
    names = [name for name in inputs if name.startswith(_PAST)]
    for index, name in enumerate(names):
        random_state = np.random.default_rng([seed, index])
        _, heads, _, width = inputs[name]
        array = np.zeros((1, heads, context + spare, width), np.float32)
        for head in range(heads):
            array[0, head, :context] = random_state.standard_normal((context, width), np.float32)
        found[name] = array
    return found
