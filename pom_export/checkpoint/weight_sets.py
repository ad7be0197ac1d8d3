"""The sets of weights that one file holds: raw and averaged ones, several networks, lists without names."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from pom_export.checkpoint.architectures import ARCHITECTURES
from pom_export.checkpoint.prefixes import common_prefixes, without_wrappers
from pom_export.checkpoint.spec import MIXER
from pom_export.checkpoint.storages import OtherTensor
from pom_export.checkpoint.unpickling import Inert
from pom_export.errors import CheckpointError

_TENSORS: Final = (Tensor, OtherTensor)
# What names tell: a whole word in them, however words are set apart.
_WORD: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_AVERAGES: Final = frozenset({"ema", "average", "averaged", "averaging", "avg", "swa", "shadow", "polyak", "smoothed"})
_NOT_AVERAGED: Final = frozenset({"online", "raw", "current"})
# Words of a place that say nothing but that there are weights.
_PLAIN: Final = _NOT_AVERAGED | {"model", "state", "dict", "net", "network", "module", "weights", "params"}
# Of two copies of a network, or two networks, under two prefixes of one state dict.
_ROLES: Final = (
    _AVERAGES
    | _NOT_AVERAGED
    | {"model", "net", "network", "student", "teacher", "target", "momentum"}
    | {"generator", "discriminator", "actor", "critic", "policy"}
)
_NUMBER: Final = re.compile(r"(?<![\d.])\d{1,2}$")
# Names that a state dict of a mixer or of a model of mixers has, quantized ones included.
_MARKS: Final = ("ag_proj.weight", "ag_proj.qweight", "_packed_params")
_WITHOUT_DOTS: Final = "ag_projweight"
# Lightning's WeightAveraging puts the average where the weights were.
_SWAPPED: Final = ("state_dict", "current_model_state", "averaging_state")
# Words of places where tensors lie that are no weights.
_NO_WEIGHTS: Final = frozenset(
    {"optimizer", "optimizers", "optim", "opt", "scheduler", "schedulers", "scaler", "rng", "loops"}
    | {"grad", "grads", "gradients", "momenta"}
)
# What optimizers keep of every weight: averages, but of gradients.
_MOMENTS: Final = re.compile(
    r"(max_)?exp_(avg|avg_sq|avg_diff|inf)(_sq|_row|_col)?|exp_avgs?|exp_avg_sqs?|square_avg|grad_avg|"
    r"acc_delta|momentum_buffer|sum"
)
# Single numbers that averages count with: torch's AveragedModel, ema-pytorch, and LitEma.
_COUNTERS: Final = frozenset({"n_averaged", "initted", "step", "steps", "decay", "num_updates"})
# Weights that an average is to give its place back to (torch_ema, diffusers).
_SET_ASIDE: Final = ("collected_params", "temp_stored_params")
_DEEPEST, _MOST_SETS, _LONGEST_LIST_OF_SETS = 7, 64, 16


@dataclass(frozen=True)
class WeightSet:
    """One set of weights in a file.

    Attributes:
        path: where it lies: the keys that lead to it, joined by dots; "" for a bare state dict.
        tensors: by name, prefixes of wrappers removed, and what else lies among them; none of a list.
        values: those of a list without names, in its order; None of a state dict.
        average: whether it is an average of the weights that training went through.
        preferred: whether the file's own layout says that it is the one to use.
        alias: a short name for it: "model", "ema", "ema1"; "" where there is none.
        other_paths: where the same tensors lie besides.
    """

    path: str
    tensors: Mapping[str, Any] = field(default_factory=dict)
    values: Sequence[Tensor] | None = None
    average: bool = False
    preferred: bool = False
    alias: str = ""
    other_paths: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What it is asked for by."""
        return self.alias or self.path or "model"

    @property
    def label(self) -> str:
        """Its name, and where it lies in the file where that is another."""
        return f"{self.name} ({self.path})" if self.path not in {"", self.name} else self.name

    @property
    def depth(self) -> int:
        """How many keys lead to it."""
        return self.path.count(".")

    @property
    def has_mixers(self) -> bool:
        """Whether its names are of a model that has mixers."""
        return any(name.endswith((*_MARKS, _WITHOUT_DOTS)) for name in self.tensors)


def find_sets(file: Path, content: Mapping[Any, Any]) -> list[WeightSet]:
    """Return the sets of weights in what was loaded, those that lie least deep first.

    Raises:
        CheckpointError: a name arises twice in one of them, or is no text.
    """
    found: list[WeightSet] = []
    for path, value in _state_dicts_and_lists(content):
        if isinstance(value, Mapping):
            if odd := [name for name in value if not isinstance(name, str)]:
                raise CheckpointError(
                    f"{file}: a name among the weights is a {type(odd[0]).__name__}, not text",
                    "Save the state dict of a module",
                )
            found += _copies(file, path, without_wrappers(file, value))
        else:
            found.append(WeightSet(path, values=value, average=True))
        if len(found) >= _MOST_SETS:
            break
    return _with_aliases(_once(_swapped(content, found)))


def is_state_dict(content: Mapping[Any, Any]) -> bool:
    """Return whether a mapping holds tensors by name, and nothing else."""
    return bool(content) and all(
        isinstance(name, str) and isinstance(value, _TENSORS) for name, value in content.items()
    )


def set_below(file: Path, chosen: WeightSet, prefix: str) -> WeightSet | None:
    """Return the part of a set whose names begin with a prefix; None where none does."""
    start = f"{prefix}."
    inner = {name.removeprefix(start): value for name, value in chosen.tensors.items() if name.startswith(start)}
    if not inner:
        return None
    path = f"{chosen.path}.{prefix}" if chosen.path else prefix
    return WeightSet(path, without_wrappers(file, inner), average=_is_average(path), alias=prefix)


def unread_averages(content: Mapping[Any, Any], found: Sequence[WeightSet]) -> list[str]:
    """Return the keys of averages in a form that is not read: one tensor, tensors by number, a pickled module."""
    paths = [path for one in found for path in (one.path, *one.other_paths)]
    return [
        key
        for key, value in content.items()
        if isinstance(key, str) and _is_average(key) and not _is_optimizers([key]) and _has_values(value)
        if not any(f"{path}.".startswith(f"{key}.") or f"{key}.".startswith(f"{path}.") for path in paths)
        if "" not in paths
    ]


def _has_values(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() > 1 and value.is_floating_point()
    if isinstance(value, Mapping):
        return any(isinstance(part, Tensor) and _has_values(part) for part in value.values())
    return isinstance(value, Inert) and isinstance(value.state, Mapping) and "_modules" in value.state


def _state_dicts_and_lists(content: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    """Yield state dicts, and lists of tensors whose place says that they are averages.

    A container that lies in several places is looked at in a few of them: it may lie in itself.
    """
    waiting: deque[tuple[tuple[str, ...], Any]] = deque([((), content)])
    seen, again = {id(content)}, 0
    while waiting:
        path, value = waiting.popleft()
        inner: list[tuple[str, Any]] = []
        if isinstance(value, Mapping):
            if any(isinstance(name, str) and name.endswith(_MARKS) for name in value) or is_state_dict(value):
                if not _is_optimizers(path):
                    yield ".".join(path), value
            else:
                of_optimizer = {"state", "param_groups"} if "param_groups" in value else set()
                inner = [(str(key), part) for key, part in value.items() if isinstance(key, (str, float, int))]
                inner = [(name, part) for name, part in inner if name not in of_optimizer]
        elif value and all(isinstance(part, _TENSORS) for part in value):
            averages = _is_average(".".join(path)) and not _is_optimizers(path) and path[-1] not in _SET_ASIDE
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
    """Return whether what lies at a place is an optimizer's or a scheduler's; some keep averages of the weights too."""
    for key in reversed(path):
        if _MOMENTS.fullmatch(key) or _words(key) & _NO_WEIGHTS:
            return True
        if _is_average(key):
            return False
    return False


def _copies(file: Path, path: str, tensors: dict[str, Any]) -> list[WeightSet]:
    """Return a state dict as one set, or as those that lie in it under prefixes of their own."""
    plain, counted = _without_counters(file, path, tensors)
    groups = _groups(plain)
    if len(groups) < 2 or not all(_stands_alone(prefix, group, groups) for prefix, group in groups.items()):
        return [WeightSet(path, plain, average=counted or _is_average(path))]
    found = []
    for prefix, group in groups.items():
        below = f"{path}.{prefix}" if path else prefix
        inner = _copies(file, below, without_wrappers(file, group))
        found += [replace(one, preferred=one.preferred or (counted and one.average)) for one in inner]
    return found


def networks_in(chosen: WeightSet) -> list[str]:
    """Return the prefixes of names in a set below which a network lies by itself, among other things."""
    groups = _groups(chosen.tensors)
    return [prefix for prefix, group in groups.items() if len(groups) > 1 and _stands_alone(prefix, group, groups)]


def _groups(tensors: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return tensors by the first part of their names behind what all share, and by the rest of them."""
    shared = list(common_prefixes(tensors))[-1] if tensors else ""
    groups: dict[str, dict[str, Any]] = {}
    for name, value in tensors.items():
        head, _, rest = name.removeprefix(shared).partition(".")
        groups.setdefault(shared + head, {})[rest] = value
    return groups


def _without_counters(file: Path, path: str, tensors: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """Take off the numbers that keep count of an average, and say whether there were any."""
    rest = {name: value for name, value in tensors.items() if name not in _COUNTERS}
    if len(rest) in {0, len(tensors)}:
        return tensors, False
    wrapped = all(name.startswith(("module.", "ema_model.", "online_model.")) for name in rest)
    if not wrapped and not _is_average(path) and any("." in name for name in rest):
        return tensors, False
    return without_wrappers(file, rest), True


def _stands_alone(prefix: str, tensors: Mapping[str, Any], beside: Collection[str]) -> bool:
    """Return whether names below a prefix are of a network by itself, not of a part of one."""
    if not WeightSet(prefix, tensors).has_mixers:
        return False
    words = _words(prefix.rpartition(".")[2])
    if words & _ROLES:
        return True
    if any(other_words - _AVERAGES == words for other_words in map(_words, beside) if other_words & _AVERAGES):
        return True  # "unet" beside "unet_ema"
    shapes = {name: value.shape for name, value in tensors.items() if isinstance(value, Tensor)}
    whole = [architecture for architecture in ARCHITECTURES if architecture.architecture != MIXER]
    for common in common_prefixes(shapes):
        inner = {name.removeprefix(common): shape for name, shape in shapes.items()}
        if any(architecture.matches(inner) for architecture in whole):
            return True
    return False


def _is_floating(value: Tensor | OtherTensor) -> bool:
    return isinstance(value, OtherTensor) or value.is_floating_point()


def _words(text: str) -> set[str]:
    return {word.lower() for word in _WORD.findall(text)}


def _is_average(path: str) -> bool:
    """Return whether the keys that lead somewhere say that an average lies there; the last that tells counts."""
    for key in reversed(path.split(".")):
        words = _words(key)
        if words & _AVERAGES:
            return True
        if words & _NOT_AVERAGED:
            return False
    return False


def _swapped(content: Mapping[Any, Any], found: list[WeightSet]) -> list[WeightSet]:
    if not all(name in content for name in _SWAPPED):
        return found
    average, raw, _ = _SWAPPED
    return [
        replace(one, average=True, preferred=True) if one.path == average else replace(one, average=False)
        if one.path == raw else one
        for one in found
        if one.path != "averaging_state"
    ]  # fmt: skip


def _once(found: list[WeightSet]) -> list[WeightSet]:
    """Leave out sets whose every tensor is another set's own: one state dict under two keys."""
    distinct: dict[Any, WeightSet] = {}
    for one in found:
        tensors = one.tensors if one.values is None else {str(i): value for i, value in enumerate(one.values)}
        views = tuple((name, _view(value)) for name, value in tensors.items())
        key = one.values is None, views
        first = distinct.setdefault(key, one)
        if first is not one:
            # An average that is the trained weights themselves is none.
            kept, other = (one, first) if first.average and not one.average else (first, one)
            distinct[key] = replace(kept, other_paths=(*first.other_paths, other.path))
    return list(distinct.values())


def _view(entry: Any) -> Any:
    if not isinstance(entry, Tensor):
        return id(entry)
    return entry.data_ptr(), entry.dtype, entry.shape, entry.stride()


def _with_aliases(found: list[WeightSet]) -> list[WeightSet]:
    """Give raw weights the name "model" and averages "ema" or "ema1", wherever that is the name of one set only."""
    wanted = [_alias(one, found) for one in found]
    paths = [one.path for one in found]
    return [
        replace(one, alias=alias) if alias and wanted.count(alias) == 1 and alias not in paths else one
        for one, alias in zip(found, wanted, strict=True)
    ]


def _alias(one: WeightSet, found: Sequence[WeightSet]) -> str:
    if one.average:
        number = _NUMBER.search(one.path)
        return f"ema{number[0]}" if number else "ema"
    raw = [other for other in found if not other.average]
    return "model" if len(raw) == 1 and _words(one.path) <= _PLAIN else ""
