"""Find the networks in a state dict: a model and its averages, two models, a model among losses and metrics."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from torch import Size, Tensor

from pom_export.checkpoint.architectures import ARCHITECTURES, Architecture
from pom_export.checkpoint.families import MIXER
from pom_export.checkpoint.prefixes import common_prefixes, without_wrappers
from pom_export.checkpoint.quantized import QuantizedTensor
from pom_export.checkpoint.weight_set import AVERAGES, NOT_AVERAGED, WeightSet, is_average, words

# Words in the prefixes of two copies of a network, or of two networks, in a state dict.
_ROLES: Final = (
    AVERAGES
    | NOT_AVERAGED
    | {"model", "net", "network", "student", "teacher", "target", "momentum"}
    | {"generator", "discriminator", "actor", "critic", "policy"}
)
COUNTERS: Final = frozenset({"n_averaged", "initted", "step", "steps", "decay", "num_updates"})
"""Names of the counters of averages: torch's AveragedModel, ema-pytorch, and LitEma."""
_WHOLE_MODELS: Final = tuple(architecture for architecture in ARCHITECTURES if architecture.architecture != MIXER)
_DEEPEST: Final = 7

_SHAPED: Final = (Tensor, QuantizedTensor)

_Groups = dict[str, dict[str, Any]]


def networks_of(file: Path, path: str, tensors: dict[str, Any]) -> list[WeightSet]:
    """Return a state dict as a single set, or as the networks that it contains under separate prefixes.

    If it also contains other things, the state dict itself is the first set, which `contains` the networks.

    Args:
        file: for messages.
        path: the state dict's place in the file.
        tensors: its entries, without prefixes of wrappers.

    Raises:
        CheckpointError: two names in one of them become the same.
    """
    plain, counted = _without_counters(file, path, tensors)
    whole = WeightSet(path, plain, average=counted or is_average(path), is_model=_is_one_of(_WHOLE_MODELS, plain))
    groups = _groups(plain)
    averaged = {frozenset(words(prefix) - AVERAGES) for prefix in groups if words(prefix) & AVERAGES}
    alone = {prefix: group for prefix, group in groups.items() if _stands_alone(prefix, group, averaged)}
    if len(groups) < 2:
        return [whole]
    found = [
        one
        for prefix, group in alone.items()
        for one in networks_of(file, _below(path, prefix), without_wrappers(file, group))
    ]
    if len(alone) == len(groups):  # an average that counts its updates is preferred to the weights beside it
        return [replace(one, preferred=one.preferred or (counted and one.average)) for one in found]
    if _is_one_of(ARCHITECTURES, plain):  # a model that contains its own average
        rest = {
            f"{prefix}.{name}" if name else prefix: value
            for prefix, group in groups.items()
            if prefix not in alone
            for name, value in group.items()
        }
        return [replace(whole, tensors=rest), *found]
    for prefix, group in groups.items():
        if prefix not in alone:
            found += _networks_deeper(file, _below(path, prefix), group, _DEEPEST)
    return [replace(whole, contains=bool(found)), *found]


def _networks_deeper(file: Path, path: str, tensors: dict[str, Any], depth: int) -> Iterator[WeightSet]:
    """Yield the whole models and the averages below further prefixes of something that is neither."""
    if not depth or not WeightSet(path, tensors).has_mixers:
        return
    for prefix, group in _groups(tensors).items():
        if _names_average(prefix) or _is_one_of(_WHOLE_MODELS, group):
            yield from networks_of(file, _below(path, prefix), without_wrappers(file, group))
        else:
            yield from _networks_deeper(file, _below(path, prefix), group, depth - 1)


def _below(path: str, prefix: str) -> str:
    return f"{path}.{prefix}" if path else prefix


def _groups(tensors: Mapping[str, Any]) -> _Groups:
    """Group tensors by the first part of their names after the shared prefix, and by the rest."""
    shared = list(common_prefixes(tensors))[-1] if tensors else ""
    groups: _Groups = {}
    for name, value in tensors.items():
        head, _, rest = name.removeprefix(shared).partition(".")
        groups.setdefault(shared + head, {})[rest] = value
    return groups


def _without_counters(file: Path, path: str, tensors: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """Remove the counters of an average, and return whether there were any."""
    rest = {name: value for name, value in tensors.items() if name not in COUNTERS}
    if len(rest) in {0, len(tensors)}:
        return tensors, False
    wrapped = all(name.startswith(("module.", "ema_model.", "online_model.")) for name in rest)
    if not wrapped and not is_average(path) and any("." in name for name in rest):
        return tensors, False
    return without_wrappers(file, rest), True


def _stands_alone(prefix: str, tensors: Mapping[str, Any], averaged: Collection[frozenset[str]]) -> bool:
    """Return whether the names below a prefix are those of a separate network, as opposed to a part of one.

    Args:
        prefix: the prefix.
        tensors: tensors by the rest of their names.
        averaged: for each neighbouring prefix of an average, its words other than the one for "average".
    """
    if not WeightSet(prefix, tensors).has_mixers:
        return False
    last = prefix.rpartition(".")[2]
    if words(last) & _ROLES or _names_average(prefix):
        return True
    if words(prefix) in averaged:
        return True  # "unet" beside "unet_ema"
    return _is_one_of(_WHOLE_MODELS, tensors)


def _names_average(prefix: str) -> bool:
    """Return whether the last part of a prefix, or the part before its number, indicates an average."""
    *outer, last = prefix.split(".")
    return bool(words(outer[-1] if outer and last.isdecimal() else last) & AVERAGES)


def _is_one_of(architectures: Sequence[Architecture], tensors: Mapping[str, Any]) -> bool:
    """Return whether names, apart from a shared prefix, are those of one of the given architectures."""
    shapes: dict[str, Size] = {name: value.shape for name, value in tensors.items() if isinstance(value, _SHAPED)}
    for common in common_prefixes(shapes) if shapes else ():
        inner = {name.removeprefix(common): shape for name, shape in shapes.items()}
        if any(architecture.matches(inner) for architecture in architectures):
            return True
    return False
