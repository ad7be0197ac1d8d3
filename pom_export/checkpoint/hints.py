"""Settings that a checkpoint's shapes cannot determine: from options, the file's metadata, or a nearby config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pom_export.checkpoint.families import FAMILIES, JIT, NANOGPT
from pom_export.errors import CheckpointError, InputError, kind_of, with_article

_LARGEST = 2**31 - 1  # the largest value of a hint
# The names of each hint, ours first, then those of the official constructors.
NAMES = {
    "degree": ("degree", "order"),
    "heads": ("heads", "n_head"),
    "in_context_start": ("in_context_start",),
    "family": ("family",),
}
_OF_OTHERS_TOO = frozenset({"order"})  # a name that solvers and interpolations use too
_LEAST = {"in_context_start": 0}  # 1 for the others


@dataclass(frozen=True)
class Hints:
    """Settings beyond names and shapes; None means unknown.

    Attributes:
        family: "pom-v1", "pom-v1-grouped", "pom-v2", "language-model", "nanogpt-pom" or "jit-pom".
        degree: polynomial degree, if it does not follow from the shapes (v1).
        heads: number of attention heads, if it does not follow from the shapes (a hybrid without its inv_freq buffers).
        in_context_start: block before which an image model inserts its in-context tokens, which follows from no shape.
        rotary: whether a configuration mentions rotary positions.
        local: whether a configuration mentions attention in local windows.
        origins: for hints that may belong to something else, where they were read; given hints have none.
        doubts: reasons why settings saved by the trainer were not used, one sentence each.
    """

    family: str | None = None
    degree: int | None = None
    heads: int | None = None
    in_context_start: int | None = None
    rotary: bool = False
    local: bool = False
    origins: Mapping[str, str] = field(default_factory=dict, compare=False)
    doubts: tuple[str, ...] = field(default=(), compare=False)

    def over(self, weaker: Hints) -> Hints:
        """Return these hints, completed by weaker ones."""
        return Hints(
            self.family if self.family is not None else weaker.family,
            self.degree if self.degree is not None else weaker.degree,
            self.heads if self.heads is not None else weaker.heads,
            self.in_context_start if self.in_context_start is not None else weaker.in_context_start,
            self.rotary or weaker.rotary,
            self.local or weaker.local,
            {**{name: place for name, place in weaker.origins.items() if getattr(self, name) is None}, **self.origins},
            (*self.doubts, *weaker.doubts),
        )

    def origin(self, hint: str) -> str:
        """Return where a hint was read, to be appended to its value; "" if it was given."""
        return f", read from {self.origins[hint]}," if hint in self.origins else ""


def hints_from(config: Mapping[str, Any], source: str) -> Hints:
    """Return the hints in a configuration, ignoring names that it uses for other purposes.

    Raises:
        CheckpointError: a value is unusable; the message names the source.
    """
    found: dict[str, Any] = {}
    origins = {}
    for hint, names in NAMES.items():
        name = next((name for name in names if config.get(name) is not None), None)
        # In other software's configurations, `family` may mean something else.
        if name is not None and (hint != "family" or config[name] in FAMILIES):
            found[hint] = _value(config[name], hint, f"{source}: {name}")
            if name in _OF_OTHERS_TOO:
                origins[hint] = f"{source}: {name}"
    rotary = bool(config.get("rope")) or config.get("module") == "PoMRoPE"
    return Hints(**found, rotary=rotary, origins=origins)


def check_given(hints: Mapping[str, Any]) -> None:
    """Raise InputError if a caller's hint is neither None nor a valid number."""
    for name, value in hints.items():
        if value is not None and not is_usable(value, name):
            raise InputError(
                f"{name} must be a whole number from {_LEAST.get(name, 1)} to {_LARGEST}, got {_shown(value)}",
                "Leave it out if the shapes determine it",
            )


def check_kind(kind: str, heads: int | None, in_context_start: int | None) -> None:
    """Raise CheckpointError for a hint that does not apply to an architecture, or to a family that was named."""
    if in_context_start is not None and kind != JIT:
        raise no_context_error(kind, in_context_start)
    if heads is not None and kind != NANOGPT:
        raise CheckpointError(
            f"{heads} attention heads don't fit: {with_article(kind)} has no attention", "Leave `heads` out"
        )


def no_context_error(kind: str, in_context_start: int) -> CheckpointError:
    """Return the error for a model that has no in-context tokens."""
    return CheckpointError(
        f"`in_context_start={in_context_start}` does not fit: this {kind} has no in-context tokens",
        "Leave `in_context_start` out",
    )


def _value(value: Any, hint: str, where: str) -> str | int:
    if hint == "family":
        return str(value)
    # The metadata of a safetensors file is text.
    if isinstance(value, str) and value.isdecimal() and len(value) <= len(str(_LARGEST)):
        value = int(value)
    least = _LEAST.get(hint, 1)
    if not is_usable(value, hint):
        raise CheckpointError(f"{where} is {_shown(value)}", f"It must be a whole number from {least} to {_LARGEST}")
    return value


def is_usable(value: Any, hint: str) -> bool:
    """Return whether a value is a valid number for a hint."""
    return type(value) is int and _LEAST.get(hint, 1) <= value <= _LARGEST


def _shown(value: Any) -> str:
    """Return a value for a message; some are too long to be printed."""
    if isinstance(value, int) and abs(value) > _LARGEST:
        return f"an integer of {value.bit_length()} bits"
    return repr(value) if isinstance(value, (str, int, float)) else kind_of(value)
