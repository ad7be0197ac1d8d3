"""Find the sets of weights in a file: raw and averaged ones, several networks, lists without names."""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from pom_export.checkpoint.networks import networks_of
from pom_export.checkpoint.prefixes import without_wrappers
from pom_export.checkpoint.quantized import QuantizedTensor
from pom_export.checkpoint.storages import OtherTensor
from pom_export.checkpoint.unpickling import Inert
from pom_export.checkpoint.weight_set import MARKS, NOT_AVERAGED, WeightSet, is_average, words
from pom_export.errors import CheckpointError, kind_of

_TENSORS: Final = (Tensor, OtherTensor, QuantizedTensor)
# Words in a path that only indicate weights.
_PLAIN: Final = NOT_AVERAGED | {"model", "state", "dict", "net", "network", "module", "weights", "params"}
# "ema2", or "emas.2" for a list, but not the decimals of "ema.0.99".
_NUMBER: Final = re.compile(r"(?<![\d.])\d{1,2}$|(?<=[A-Za-z_]\.)\d{1,2}(?=\.[A-Za-z_]|$)")
# Trainers that swap the places of the average and the weights: keys in their files, the place of the average, and that
# of the weights.
_SWAPPED: Final = (
    (("state_dict", "current_model_state", "averaging_state"), "state_dict", "current_model_state"),  # Lightning
    (("state_dict", "ema_state_dict", "message_hub"), "state_dict", "ema_state_dict"),  # MMEngine
)
_COMPOSER: Final = "ema_weights_active"  # marks that its EMA has swapped average and weights
# Words in paths of tensors that are not weights.
_NO_WEIGHTS: Final = frozenset(
    {"optimizer", "optimizers", "optim", "opt", "scheduler", "schedulers", "scaler", "rng", "loops"}
    | {"grad", "grads", "gradients", "momenta"}
)
# What optimizers keep for every weight: averages, but of gradients.
_MOMENTS: Final = re.compile(
    r"(max_)?exp_(avg|avg_sq|avg_diff|inf)(_sq|_row|_col)?|exp_avgs?|exp_avg_sqs?|square_avg|grad_avg|"
    r"acc_delta|momentum_buffer|sum"
)
# Weights set aside while an average is in their place (torch_ema, diffusers).
_SET_ASIDE: Final = ("collected_params", "temp_stored_params")
_BARE: Final = "bare"  # weights without a key, if a key "model" leads to others
_DEEPEST, _MOST_SETS, _LONGEST_LIST_OF_SETS = 7, 64, 16


def find_sets(file: Path, content: Mapping[Any, Any]) -> list[WeightSet]:
    """Return the sets of weights in what was loaded, the least nested first.

    Raises:
        CheckpointError: two names in a set become the same, or one is not text.
    """
    found: list[WeightSet] = []
    for path, value in _state_dicts_and_lists(content):
        if isinstance(value, Mapping):
            if odd := [name for name in value if not isinstance(name, str)]:
                raise CheckpointError(
                    f"{file}: a name among the weights is {kind_of(odd[0])}, not text",
                    "Save the state dict of a module",
                )
            rest, lists = _without_lists(path, without_wrappers(file, value))
            found += [*networks_of(file, path, rest), *lists]
        else:
            found.append(WeightSet(path, values=value, average=True))
        if len(found) >= _MOST_SETS:
            break
    return _with_aliases(_once(_swapped(content, found)))


def _without_lists(path: str, tensors: dict[str, Any]) -> tuple[dict[str, Any], list[WeightSet]]:
    """Split off from a state dict the averages that are stored by number, as in a module's ParameterList."""
    numbered: dict[str, dict[str, Any]] = {}
    for name, value in tensors.items():
        owner, _, number = name.rpartition(".")
        if number.isdecimal() and is_average(owner):
            numbered.setdefault(owner, {})[number] = value
    lists = {owner: values for owner, entries in numbered.items() if (values := _as_list(entries)) is not None}
    rest = {name: value for name, value in tensors.items() if name.rpartition(".")[0] not in lists}
    places = {owner: f"{path}.{owner}" if path else owner for owner in lists}
    return rest, [WeightSet(places[owner], values=values, average=True) for owner, values in lists.items()]


def _as_list(entries: Mapping[Any, Any]) -> list[Any] | None:
    """Return weights named by consecutive numbers from 0 on as a list; None for other entries."""
    by_number = {str(key): value for key, value in entries.items()}
    values = [by_number[str(number)] for number in range(len(entries)) if str(number) in by_number]
    if len(values) < len(entries) or not all(isinstance(value, _TENSORS) and _is_floating(value) for value in values):
        return None
    # Averages of losses and norms are only numbers and vectors.
    return values if any(isinstance(value, OtherTensor) or value.ndim > 1 for value in values) else None


def is_state_dict(content: Mapping[Any, Any]) -> bool:
    """Return whether a mapping contains tensors by name, and nothing else."""
    return bool(content) and all(
        isinstance(name, str) and isinstance(value, _TENSORS) for name, value in content.items()
    )


def set_below(file: Path, chosen: WeightSet, asked: str) -> WeightSet | None:
    """Return the part of a set whose names begin with a prefix; None if there are none.

    Args:
        file: for messages.
        chosen: the set.
        asked: the prefix, with or without the keys that lead to the set. It becomes the part's name.
    """
    prefix = asked.removeprefix(f"{chosen.path}.")
    start = f"{prefix}."
    inner = {name.removeprefix(start): value for name, value in chosen.tensors.items() if name.startswith(start)}
    if not inner:
        return None
    path = f"{chosen.path}.{prefix}" if chosen.path else prefix
    return WeightSet(path, without_wrappers(file, inner), average=is_average(path), alias=asked)


def unread_averages(content: Mapping[Any, Any], found: Sequence[WeightSet]) -> list[str]:
    """Return the keys of averages in an unsupported form: a single tensor, or a pickled module."""
    paths = [path for one in found for path in (one.path, *one.other_paths)]
    return [
        key
        for key, value in content.items()
        if isinstance(key, str) and is_average(key) and not _is_optimizers([key]) and _has_values(value)
        if not any(f"{path}.".startswith(f"{key}.") or f"{key}.".startswith(f"{path}.") for path in paths)
        if "" not in paths
    ]


def saved_in_training(content: Mapping[Any, Any]) -> bool:
    """Return whether the state of a schedule-free optimizer shows that it was saved in training mode.

    Its weights then differ from those for evaluation, which such an optimizer averages itself.
    """
    states = [value for key, value in content.items() if isinstance(key, str) and words(key) & _NO_WEIGHTS]
    states += [part for value in states if isinstance(value, (list, tuple)) for part in value]
    groups = [state.get("param_groups") for state in states if isinstance(state, Mapping)]
    return any(
        isinstance(group, Mapping) and group.get("train_mode") is True
        for listed in groups
        if isinstance(listed, (list, tuple))
        for group in listed
    )


def _has_values(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() > 1 and value.is_floating_point()
    if isinstance(value, Mapping):
        return any(isinstance(part, Tensor) and _has_values(part) for part in value.values())
    return isinstance(value, Inert) and isinstance(value.state, Mapping) and "_modules" in value.state


def _state_dicts_and_lists(content: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    """Yield state dicts, and lists of tensors or tensors by number whose place indicates averages.

    A container with several places is only visited in a few of them, as it may be part of itself.
    """
    waiting: deque[tuple[tuple[str, ...], Any]] = deque([((), content)])
    seen, again = {id(content)}, 0
    while waiting:
        path, value = waiting.popleft()
        inner: list[tuple[str, Any]] = []
        if isinstance(value, Mapping) and is_average(".".join(path)) and (numbered := _as_list(value)) is not None:
            value = numbered
        if isinstance(value, Mapping):
            if any(isinstance(name, str) and name.endswith(MARKS) for name in value) or is_state_dict(value):
                if not _is_optimizers(path):
                    yield ".".join(path), value
            else:
                of_optimizer = {"state", "param_groups"} if "param_groups" in value else set()
                inner = [(str(key), part) for key, part in value.items() if isinstance(key, (str, float, int))]
                inner = [(name, part) for name, part in inner if name not in of_optimizer]
        elif value and all(isinstance(part, _TENSORS) for part in value):
            averages = is_average(".".join(path)) and not _is_optimizers(path) and path[-1] not in _SET_ASIDE
            if averages and all(map(_is_floating, value)):
                yield ".".join(path), list(value)
        elif len(value) <= _LONGEST_LIST_OF_SETS:
            inner = [(str(number), part) for number, part in enumerate(value)]
        for name, part in inner:
            if isinstance(part, (Mapping, list, tuple)) and len(path) < _DEEPEST:
                again += id(part) in seen
                if id(part) in seen and again > _MOST_SETS:
                    continue
                seen.add(id(part))
                waiting.append(((*path, name), part))


def _is_optimizers(path: Sequence[str]) -> bool:
    """Return whether a place belongs to an optimizer or a scheduler; some of them also keep averages of the weights."""
    for key in reversed(path):
        if _MOMENTS.fullmatch(key) or words(key) & _NO_WEIGHTS:
            return True
        if is_average(key):
            return False
    return False


def _is_floating(value: Tensor | OtherTensor | QuantizedTensor) -> bool:
    return not isinstance(value, Tensor) or value.is_floating_point()


def _swapped(content: Mapping[Any, Any], found: list[WeightSet]) -> list[WeightSet]:
    """Correct which sets are averages if a trainer has swapped the places of weights and average in the file."""
    places = next((places for keys, *places in _SWAPPED if all(key in content for key in keys)), None)
    if places is None and _is_swapped_by_composer(content):
        places = ["state.model", "state.algorithms"]
    if places is None:
        return found
    average, raw = (f"{place}." for place in places)
    corrected = []
    for one in found:
        if f"{one.path}.".startswith(average):
            corrected.append(replace(one, average=True, preferred=True))
        elif f"{one.path}.".startswith(raw):
            corrected.append(replace(one, average=False, preferred=False))
        elif one.path != "averaging_state":
            corrected.append(one)
    return corrected


def _is_swapped_by_composer(content: Mapping[Any, Any]) -> bool:
    state = content.get("state")
    algorithms = state.get("algorithms") if isinstance(state, Mapping) else None
    pairs = [pair for pair in algorithms if isinstance(pair, (tuple, list))] if isinstance(algorithms, list) else []
    return any(isinstance(part, Mapping) and part.get(_COMPOSER) is True for pair in pairs for part in pair)


def _once(found: list[WeightSet]) -> list[WeightSet]:
    """Drop sets that consist of another set's tensors: the same state dict under two keys."""
    distinct: dict[Any, WeightSet] = {}
    for one in found:
        tensors = one.tensors if one.values is None else {str(i): value for i, value in enumerate(one.values)}
        views = tuple((name, _view(value)) for name, value in tensors.items())
        key = one.values is None, views
        first = distinct.setdefault(key, one)
        if first is not one:
            # If an average consists of the trained weights themselves, it is not an average.
            kept, other = (one, first) if first.average and not one.average else (first, one)
            distinct[key] = replace(kept, other_paths=(*first.other_paths, other.path))
    return list(distinct.values())


def _view(entry: Any) -> Any:
    if isinstance(entry, QuantizedTensor):
        return tuple(map(_view, entry.parts))
    if not isinstance(entry, Tensor):
        return id(entry)
    return entry.data_ptr(), entry.dtype, entry.shape, entry.stride()


def _with_aliases(found: list[WeightSet]) -> list[WeightSet]:
    """Name raw weights "model" and averages "ema" or "ema1", if that is the name of only one set."""
    raw = [one for one in found if not one.average and not one.contains]
    models = sum(one.is_model for one in raw)
    wanted = ["" if one.contains else _alias(one, len(raw), models) for one in found]
    count, paths = Counter(wanted), {one.path for one in found}
    named = [alias if alias and count[alias] == 1 and alias not in paths else "" for alias in wanted]
    if "model" in paths:  # otherwise the name of weights without keys
        named = [_BARE if not one.path else alias for one, alias in zip(found, named, strict=True)]
    return [replace(one, alias=alias or one.alias) for one, alias in zip(found, named, strict=True)]


def _alias(one: WeightSet, raw: int, models: int) -> str:
    """Return the short name of a set, given how many sets are not averages, and how many of these are whole models."""
    if one.average:
        number = _NUMBER.search(one.path)
        return f"ema{number[0]}" if number and is_average(one.path[: number.end()]) else "ema"
    is_plain = words(one.path) <= _PLAIN or is_average(one.path)  # the latter if they were swapped
    return "model" if (raw == 1 and is_plain) or (one.is_model and models == 1) else ""
