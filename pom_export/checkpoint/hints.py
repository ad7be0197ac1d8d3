"""What a checkpoint's shapes can't tell: from flags, from the file's own metadata, or from a config.json beside it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pom_export.checkpoint.formats import read_json
from pom_export.checkpoint.spec import JIT, LANGUAGE_MODEL, NANOGPT, V1, V1_GROUPED, V2
from pom_export.checkpoint.unpickling import Inert
from pom_export.errors import CheckpointError

FAMILIES = (NANOGPT, JIT, LANGUAGE_MODEL, V2, V1, V1_GROUPED)

_CONFIG = "config.json"
_LARGEST = 2**31 - 1  # of a hint
# Names under which a hint is found, ours first, then those of the official constructors.
_NAMES = {
    "degree": ("degree", "order"),
    "heads": ("heads", "n_head"),
    "in_context_start": ("in_context_start",),
    "family": ("family",),
}
_LEAST = {"in_context_start": 0}  # of others 1


@dataclass(frozen=True)
class Hints:
    """What to know besides names and shapes; None: nothing is said.

    Attributes:
        family: "pom-v1", "pom-v1-grouped", "pom-v2", "language-model", "nanogpt-pom" or "jit-pom".
        degree: polynomial degree, where the shapes don't tell it (v1).
        heads: heads of attention, where the shapes don't tell them (a hybrid without its inv_freq buffers).
        in_context_start: before which block an image model puts its in-context tokens, which no shape tells.
        rotary: whether a configuration speaks of rotary positions.
        local: whether a configuration speaks of attention in local windows.
    """

    family: str | None = None
    degree: int | None = None
    heads: int | None = None
    in_context_start: int | None = None
    rotary: bool = False
    local: bool = False

    def over(self, weaker: Hints) -> Hints:
        """Return these hints, and the weaker ones where these say nothing."""
        return Hints(
            self.family if self.family is not None else weaker.family,
            self.degree if self.degree is not None else weaker.degree,
            self.heads if self.heads is not None else weaker.heads,
            self.in_context_start if self.in_context_start is not None else weaker.in_context_start,
            self.rotary or weaker.rotary,
            self.local or weaker.local,
        )


def hints_from(config: Mapping[str, Any], source: str) -> Hints:
    """Return the hints in a configuration; names that it has for other purposes are ignored.

    Raises:
        CheckpointError: a value is of no use, with the source named.
    """
    found: dict[str, Any] = {}
    for hint, names in _NAMES.items():
        name = next((name for name in names if config.get(name) is not None), None)
        # A configuration of other software may have a family of its own.
        if name is not None and (hint != "family" or config[name] in FAMILIES):
            found[hint] = _value(config[name], hint, f"{source}: {name}")
    return Hints(**found, rotary=bool(config.get("rope")) or config.get("module") == "PoMRoPE")


def _value(value: Any, hint: str, where: str) -> str | int:
    if hint == "family":
        return str(value)
    # A safetensors file's metadata is text.
    if isinstance(value, str) and value.isdecimal() and len(value) <= len(str(_LARGEST)):
        value = int(value)
    least = _LEAST.get(hint, 1)
    if not _is_usable(value, hint):
        raise CheckpointError(f"{where} is {_shown(value)}", f"It must be a whole number from {least} to {_LARGEST}")
    return value


def _is_usable(value: Any, hint: str) -> bool:
    return type(value) is int and _LEAST.get(hint, 1) <= value <= _LARGEST


def _shown(value: Any) -> str:
    """Return a value as a message has it: not every one can be written out."""
    if isinstance(value, int) and abs(value) > _LARGEST:
        return f"an integer of {value.bit_length()} bits"
    return repr(value) if value is None or isinstance(value, (str, int, float)) else f"a {type(value).__name__}"


def hints_in(content: Any) -> Hints:
    """Return the hints in what a trainer saved beside the weights, wherever in it they stand.

    A value is taken where all places that name it agree.
    """
    found: dict[str, set[Any]] = {hint: set() for hint in _NAMES}
    local = False
    for key, value in _settings(content):
        for hint, names in _NAMES.items():
            usable = value in FAMILIES if hint == "family" else _is_usable(value, hint)
            if key in names and usable:
                found[hint].add(value)
        local = local or (key == "_target_" and isinstance(value, str) and "local" in value.lower())
    return Hints(**{hint: next(iter(values)) for hint, values in found.items() if len(values) == 1}, local=local)


def _settings(content: Any) -> Iterator[tuple[str, Any]]:
    """Yield every name and plain value in nested mappings, sequences and inert objects, each of these once.

    The same list may lie in many others, or in itself.
    """
    waiting, seen = deque([content]), {id(content)}
    while waiting:
        value = waiting.popleft()
        inner: Iterable[Any] = ()
        if isinstance(value, Mapping):
            inner = plain = [_plain(entry) for entry in value.values()]
            for key, entry in zip(value, plain, strict=True):
                if isinstance(key, str) and isinstance(entry, (int, str)):
                    yield key, entry
        elif isinstance(value, Inert):
            inner = (value.contents, value.state, value.items, value.entries)
        elif isinstance(value, (list, tuple)):
            inner = value
        for part in inner:
            if isinstance(part, (dict, list, tuple, Inert, Mapping)) and part and id(part) not in seen:
                seen.add(id(part))
                waiting.append(part)


def _plain(value: Any) -> Any:
    """Return what a node of an OmegaConf configuration holds; other values as they are."""
    if isinstance(value, Inert) and isinstance(value.state, Mapping) and "_val" in value.state:
        return value.state["_val"]
    return value


def config_beside(folder: Path) -> Hints:
    """Return the hints of a folder's config.json, or none where there is no such file.

    Raises:
        CheckpointError: the file is no JSON object.
    """
    file = folder / _CONFIG
    if not file.is_file():
        return Hints()
    config = read_json(file)
    if not isinstance(config, dict):
        raise CheckpointError(f"{file} holds a {type(config).__name__}, not an object", "Correct it or move it away")
    return hints_from(config, str(file))
