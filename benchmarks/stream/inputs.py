"""Inputs of a step in a stream: a token, and a state or a cache for any number of tokens before it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.attention import head_count
from benchmarks.stream.models import StreamShape
from pom_export.bench.runners import Array
from pom_export.graph.exported_model import PAST_KEY_VALUES, is_past
from pom_export.runtime.streaming.interface import read_stateful
from pom_export.runtime.streaming.state import State


def drawn_tokens(seed: int, count: int) -> npt.NDArray[np.uint8]:
    """Draw a text of `count` bytes; a shorter text is the beginning of a longer one."""
    return np.frombuffer(np.random.default_rng(seed).bytes(count), np.uint8)


def state_file(folder: Path, context: int) -> Path:
    """Return the file of the state after `context` tokens."""
    return folder / f"state-{context}.npz"


def state_after(model: Path, context: int) -> dict[str, Array]:
    """Return the state after `context` real tokens, the empty state for 0."""
    if context:
        return dict(State.load(state_file(model.parent, context)).arrays)
    return read_stateful(str(model)).empty(1)


def cache_names(layers: int) -> list[str]:
    """Return the names of the inputs that hold keys and values."""
    return [f"{PAST_KEY_VALUES}.{layer}.{kind}" for layer in range(layers) for kind in ("key", "value")]


def drawn_cache(shape: StreamShape, context: int, spare: int, seed: int) -> dict[str, Array]:
    """Draw keys and values of a context, by input; the time of a step does not depend on them.

    Args:
        shape: shape of the model.
        context: the number of tokens.
        spare: further tokens, of zeros, for the next ones to be written in place.
        seed: the same seed gives the same values, whatever `spare` is.
    """
    heads = head_count(shape.dim)
    width = shape.dim // heads
    found: dict[str, Array] = {}
    for index, name in enumerate(cache_names(shape.layers)):
        random_state = np.random.default_rng([seed, index])
        array = np.zeros((1, heads, context + spare, width), np.float32)
        for head in range(heads):
            array[0, head, :context] = random_state.standard_normal((context, width), np.float32)
        found[name] = array
    return found


def past_bytes(feed: Mapping[str, npt.NDArray[Any]], context: int) -> int:
    """Return the bytes of the state, or of the cache without spare tokens, in a step's inputs."""
    held = 0
    for name, array in feed.items():
        if name.startswith(f"{PAST_KEY_VALUES}."):
            held += array[:, :, :context].nbytes
        elif is_past(name):
            held += array.nbytes
    return held
