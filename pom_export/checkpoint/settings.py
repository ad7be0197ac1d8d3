"""Read the model's own settings from what a trainer saved beside the weights.

A trainer uses the same names for many things: the order of an interpolation, the degree of a spline. A value counts
as the model's if it is at the top level of the settings, below a key that names the model or a part of it ("model",
"model_args", "mixing_layer"), or beside a `_target_` that names a class of mixers. All others are ignored.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from pom_export.checkpoint.families import FAMILIES
from pom_export.checkpoint.formats import read_json
from pom_export.checkpoint.hints import NAMES, Hints, hints_from, is_usable
from pom_export.checkpoint.unpickling import Inert
from pom_export.errors import CheckpointError, kind_of

_CONFIG: Final = "config.json"
_WORD: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
# A key leads to settings of the model if each of its words is one of these.
_MODEL_WORDS: Final = frozenset(
    {"hyper", "parameters", "hparams", "config", "configs", "cfg", "conf", "args", "kwargs", "init", "settings"}
    | {"options", "opt", "hp", "meta", "metadata"}
    | {"model", "net", "network", "module", "lit", "arch", "architecture", "backbone", "transformer", "denoiser"}
    | {"gpt", "mixer", "mixing", "pom", "attention", "attn", "layer", "layers", "block", "blocks", "alternate"}
)
# Keys in which configuration libraries store their entries.
_TRANSPARENT: Final = frozenset({"_content", "_fields", "__dict__"})
_CLASS_KEYS: Final = ("_target_", "class_path")
_MIXER_CLASS: Final = re.compile(
    r"\w*(pom|polynomial_?mixer)(_?(rope|rotary|1d|2d|mixer|mixing|layer|block|attention|module|net|v?\d+))*",
    re.IGNORECASE,
)
# Classes of whole models. A `degree` beside such a class may be that of its mixers; beside any other, it belongs to
# that class.
_MODEL_CLASS: Final = re.compile(r"model|net|gpt|transformer|lm|[jd]it|denoiser|module|backbone|encoder", re.IGNORECASE)
_CONFIG_CLASS: Final = re.compile(
    r"conf|cfg|arg|namespace|dict|param|setting|option|node|list|munch|bunch|box", re.IGNORECASE
)
_ARGUMENTS: Final = frozenset({"init_args", "kwargs", "args", "params", "dict_kwargs", "_args_"})  # of a class
_LOCAL_CLASS: Final = re.compile(r"local.*att|att.*local", re.IGNORECASE)
_MOST_NAMED: Final = 3
# Nothing nested deeper than this is a setting, but a hostile file may nest a million tables.
_DEEPEST: Final = 100

_Place = tuple[str, Any]


def config_beside(folder: Path) -> Hints:
    """Return the hints in a folder's config.json, if there is one.

    Raises:
        CheckpointError: the file is not a JSON object.
    """
    config, file = _config_of(folder), folder / _CONFIG
    if config is None:
        return Hints()
    nested = {key: value for key, value in config.items() if isinstance(value, (dict, list))}
    return hints_from(config, str(file)).over(settings_in(nested, f"{file}: "))


def _config_of(folder: Path) -> dict[str, Any] | None:
    """Return what a folder's config.json holds, if there is one."""
    file = folder / _CONFIG
    if not file.is_file():
        return None
    config = read_json(file)
    if not isinstance(config, dict):
        raise CheckpointError(f"{file} holds {kind_of(config)}, not an object", "Correct it or move it away")
    return config


def quantization_beside(folder: Path) -> Mapping[str, Any] | None:
    """Return how the weights are quantized according to a folder's config.json; None if it does not say.

    Raises:
        CheckpointError: the file is not a JSON object.
    """
    config = _config_of(folder)
    said = (config or {}).get("quantization_config")
    return said if isinstance(said, dict) else None


def settings_in(content: Any, source: str = "the file's ") -> Hints:
    """Return the hints in what a trainer saved, if they are the model's own.

    A value is only used if all places that give it agree; those beside a mixer's class take precedence over others.

    Args:
        content: nested tables, and other things among them.
        source: what to put before the keys in messages.
    """
    found: dict[str, list[_Place]] = {hint: [] for hint in NAMES}
    mixers: dict[str, list[_Place]] = {hint: [] for hint in NAMES}
    local = False
    for place, entries, is_model in _tables(content):
        kind = _class_in(entries)
        local = local or (is_model and _LOCAL_CLASS.search(kind) is not None)
        if not _MIXER_CLASS.fullmatch(kind) and (not is_model or _is_of_another(kind)):
            continue
        for hint, names in NAMES.items():
            name = next((name for name in names if _is_plain_hint(entries.get(name), hint)), None)
            if name is not None:
                target = mixers if _MIXER_CLASS.fullmatch(kind) else found
                target[hint].append((f"{place}.{name}" if place else name, entries[name]))
    return _agreed({hint: mixers[hint] or found[hint] for hint in NAMES}, local, source)


def _class_in(entries: Mapping[str, Any]) -> str:
    """Return the name of the class that a table's settings are for, without its module; "" if it has none."""
    return next((entries[key] for key in _CLASS_KEYS if isinstance(entries.get(key), str)), "").rpartition(".")[2]


def _is_of_another(kind: str) -> bool:
    """Return whether a class is neither a mixer nor a whole model; "" is no class."""
    return bool(kind) and not _MIXER_CLASS.fullmatch(kind) and not _MODEL_CLASS.search(kind)


def _is_object_of_another(value: Any) -> bool:
    """Return whether an object, or the call that a `partial` stands for, is of a class as in `_is_of_another`."""
    if not isinstance(value, Inert):
        return False
    called = [part for part in value.contents if isinstance(part, Inert)] if "partial" in value.name else []
    kind = (called[0] if called else value).name.rpartition(".")[2]
    return not _CONFIG_CLASS.search(kind) and _is_of_another(kind)


def _is_plain_hint(value: Any, hint: str) -> bool:
    return isinstance(value, str) and value in FAMILIES if hint == "family" else is_usable(value, hint)


def _agreed(found: Mapping[str, list[_Place]], local: bool, source: str) -> Hints:
    values: dict[str, Any] = {}
    origins, doubts = {}, []
    for hint, places in found.items():
        if len({value for _, value in places}) == 1:
            origins[hint], values[hint] = f"{source}{places[0][0]}", places[0][1]
        elif places:
            listed = ", ".join(f"{place} is {value}" for place, value in places[:_MOST_NAMED])
            doubts.append(f"settings contradict each other, so none of them is used: {source}{listed}")
    return Hints(**values, local=local, origins=origins, doubts=tuple(doubts))


def _tables(content: Any) -> Iterator[tuple[str, dict[str, Any], bool]]:
    """Yield every table of settings: its place, its entries, and whether the keys that lead to it are the model's.

    Each is yielded once, or twice if it is reached both ways; the same list may be part of many others, or of itself.
    """
    waiting: deque[tuple[str, Any, bool, int]] = deque([("", content, True, 0)])
    seen = {(id(content), True)}
    while waiting:
        place, value, is_model, depth = waiting.popleft()
        if depth > _DEEPEST:
            continue
        parts = list(_parts(value))
        entries = {key: part for key, part in parts if key and isinstance(part, (int, str))}
        if entries:
            yield place, {key: part for key, part in entries.items() if "." not in key}, is_model
            yield from _dotted(place, entries, is_model)
        another = bool(entries) and _is_of_another(_class_in(entries))
        for key, part in parts:
            if not isinstance(part, (dict, list, tuple, Inert, Mapping)):
                continue
            inner = is_model and (not key or _is_models(key)) and not (another and key in _ARGUMENTS)
            inner = inner and not _is_object_of_another(part)
            if (id(part), inner) not in seen:
                seen.add((id(part), inner))
                waiting.append((".".join(filter(None, (place, key))), part, inner, depth + 1))


def _dotted(place: str, entries: Mapping[str, Any], is_model: bool) -> Iterator[tuple[str, dict[str, Any], bool]]:
    """Yield tables for entries whose names are whole paths, such as "model.degree"."""
    for name, value in entries.items():
        *keys, last = name.split(".")
        if keys:
            yield ".".join(filter(None, (place, *keys))), {last: value}, is_model and all(map(_is_models, keys))


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the entries of a table by name, and the contents of other containers without names."""
    if isinstance(value, Mapping):
        for key, entry in value.items():
            if isinstance(key, str) and (not key.startswith("_") or key in {*_TRANSPARENT, *_CLASS_KEYS}):
                yield "" if key in _TRANSPARENT else key, _plain(entry)
    elif isinstance(value, Inert):
        yield from (("", part) for part in (value.state, value.entries, value.items, value.contents) if part)
    elif isinstance(value, (list, tuple)):
        yield from (("", part) for part in value)


def _is_models(key: str) -> bool:
    words = _WORD.findall(key)
    return key.isdecimal() or (bool(words) and all(word.lower() in _MODEL_WORDS for word in words))


def _plain(value: Any) -> Any:
    """Return the value of an OmegaConf node; other values are returned unchanged."""
    if isinstance(value, Inert) and isinstance(value.state, Mapping) and "_val" in value.state:
        return value.state["_val"]
    return value
