"""Where onnxruntime-genai keeps the state of a model, and which models it can run."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from pom_export.errors import InputError
from pom_export.graph.exported_model import (
    CAUSAL,
    PAST_KEY_VALUES,
    PAST_LENGTH,
    TOKENS,
    ExportedModel,
    TensorSpec,
)
from pom_export.runtime.streaming.interface import StatefulModel, StateTensor, stateful_interface

KEY, VALUE, CONV, RECURRENT = "key", "value", "conv_state", "recurrent_state"
# onnxruntime-genai looks for these names, where %d is a layer.
PAST: Final = f"{PAST_KEY_VALUES}.%d."
PRESENT: Final = "present.%d."
# It takes these ranks for those of a state without a window for speculative decoding.
_RANKS: Final = {CONV: 3, RECURRENT: 4}
_LOGITS_RANK: Final = 3
_CACHE: Final = re.compile(rf"{PAST_KEY_VALUES}\.(\d+)\.({KEY}|{VALUE})")
_CACHE_RANK: Final = 4
# Axes of an unused cache, after the batch.
UNUSED_CACHE: Final = (1, 1, 1)
# A float32 counts to this.
_MOST_TOKENS: Final = 2**24


@dataclass(frozen=True)
class Slot:
    """One of the two tensors that onnxruntime-genai keeps for a recurrent layer; ours holds the state of all layers.

    Attributes:
        name: "conv_state" or "recurrent_state".
        dtype: its type.
        parts: the parts of the state that it holds, one after the other along its last axis.
        extra: values after them.
    """

    name: str
    dtype: np.dtype[Any]
    parts: tuple[StateTensor, ...]
    extra: int

    @property
    def sizes(self) -> list[int]:
        """The number of values that each part has for a sequence."""
        return [math.prod(part.empty_shape(1)) for part in self.parts]

    @property
    def ones(self) -> tuple[int, ...]:
        """Its axes between the batch and the values."""
        return (1,) * (_RANKS[self.name] - 2)

    @property
    def shape(self) -> tuple[int, ...]:
        """Its axes after the batch."""
        return (*self.ones, sum(self.sizes) + self.extra)


@dataclass(frozen=True)
class Layout:
    """A stateful language model as onnxruntime-genai sees it.

    Attributes:
        model: its interface.
        vocabulary: the number of its tokens. onnxruntime-genai is told one more, which stands for padding.
        slots: what holds the state.
        layer: the number of the layer that they belong to, which no cache has.
        caches: the keys and values of attention layers, whose names are already right.
    """

    model: StatefulModel
    vocabulary: int
    slots: tuple[Slot, Slot]
    layer: int
    caches: tuple[StateTensor, ...]

    @property
    def padding(self) -> int:
        """The id of the token that stands for padding, and that the model never chooses."""
        return self.vocabulary

    @property
    def positions(self) -> int:
        """The most tokens of a sequence, prompt and answer together."""
        return min(self.model.positions, _MOST_TOKENS)

    @property
    def unused_caches(self) -> tuple[str, ...]:
        """The inputs of a cache without a use, which is there if the model has no others; see `rewrite`."""
        return () if self.caches else tuple(PAST % (self.layer + 1) + kind for kind in (KEY, VALUE))

    def past(self, slot: Slot) -> str:
        """Return the name of a slot's input."""
        return PAST % self.layer + slot.name

    def present(self, slot: Slot) -> str:
        """Return the name of a slot's output."""
        return PRESENT % self.layer + slot.name


def layout_of(file: ExportedModel) -> Layout:
    """Return how onnxruntime-genai can run a model.

    Raises:
        InputError: it cannot.
    """
    if not file.stateful:
        raise InputError(
            f"{file.path.name} keeps no state, and onnxruntime-genai continues texts token by token",
            "Export it with `stateful=True`",
        )
    model = stateful_interface(file)
    _check_kind(model)
    parts = [part for part in model.past if part.spec.name != PAST_LENGTH]
    caches = tuple(part for part in parts if part.grows)
    _check_caches(model, caches)
    used = {int(found[1]) for part in caches if (found := _CACHE.fullmatch(part.spec.name))}
    layer = next(number for number in range(len(used) + 1) if number not in used)
    return Layout(model, _vocabulary(model), _slots(model, [part for part in parts if not part.grows]), layer, caches)


def _check_kind(model: StatefulModel) -> None:
    """Raise InputError unless a model takes ids, and nothing else, in calls of any length."""
    if not model.takes_ids:
        raise _refusal(model, f"it takes vectors ({model.tokens}), not ids of tokens")
    if model.file.precision == "bfloat16":
        raise _refusal(model, "it computes in bfloat16, which ONNX Runtime does not on the CPU", "another type")
    if model.others:
        raise _refusal(model, f"it has the input {next(iter(model.others))}, which nothing there gives it")
    if model.file.stateful != CAUSAL:
        raise _refusal(
            model, f"it is {model.file.stateful}, so that its answers depend on how a prompt is divided", "causal"
        )
    if isinstance(model.tokens.axes[1], int):
        raise _refusal(model, f"it takes {model.tokens.axes[1]} tokens a call, not any number", "dynamic sizes")


def _check_caches(model: StatefulModel, caches: Sequence[StateTensor]) -> None:
    """Raise InputError unless all that grows is the keys and values of attention layers."""
    names = {part.spec.name for part in caches}
    for part in caches:
        found = _CACHE.fullmatch(part.spec.name)
        if found is None or not _is_cache(part.spec):
            raise _refusal(model, f"{part.spec.name} grows with every token, and is no cache of keys or values")
        pair = {f"{PAST_KEY_VALUES}.{found[1]}.{kind}" for kind in (KEY, VALUE)}
        if missing := pair - names:
            raise _refusal(model, f"it has {part.spec.name}, but not {missing.pop()}")
    if len({part.spec.dtype for part in caches}) > 1:
        raise _refusal(model, "its caches of keys and values have several types")


def _vocabulary(model: StatefulModel) -> int:
    output = model.output
    size = output.axes[-1] if len(output.axes) == _LOGITS_RANK and output.axes[1] == TOKENS else None
    if not isinstance(size, int) or output.dtype.kind != "f":
        raise _refusal(model, f"its output is {output}, not logits for each token")
    return size


def _slots(model: StatefulModel, parts: Sequence[StateTensor]) -> tuple[Slot, Slot]:
    """Return the slots: for the sums and what else is in float32, with the number of tokens; for another type."""
    single = np.dtype(np.float32)
    for part in parts:
        if not all(isinstance(axis, int) for axis in part.spec.axes[1:]):
            raise _refusal(model, f"the size of {part.spec} is not known")
    others = [part for part in parts if part.spec.dtype != single]
    kinds = {part.spec.dtype for part in others}
    if len(kinds) > 1 or any(kind.kind != "f" for kind in kinds):
        raise _refusal(model, f"its state has the types {', '.join(sorted(map(str, {single, *kinds})))}")
    recurrent = Slot(RECURRENT, single, tuple(part for part in parts if part.spec.dtype == single), extra=1)
    # It has to be there, if only for a value that nobody reads.
    return Slot(CONV, kinds.pop() if kinds else single, tuple(others), extra=int(not others)), recurrent


def _is_cache(spec: TensorSpec) -> bool:
    """Return whether a tensor is (batch, heads, tokens, width), with known sizes but of the batch and the tokens."""
    return len(spec.axes) == _CACHE_RANK and isinstance(spec.axes[1], int) and isinstance(spec.axes[3], int)


def _refusal(model: StatefulModel, why: str, instead: str = "") -> InputError:
    hint = f"Export it with {instead}" if instead else "Package it for another server, such as triton"
    return InputError(f"onnxruntime-genai cannot run {model.name}: {why}", hint)
