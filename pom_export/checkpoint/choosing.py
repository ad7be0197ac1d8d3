"""Choose one of the sets of weights in a file; the user decides between two of equal standing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from pom_export.checkpoint.weight_set import WeightSet
from pom_export.checkpoint.weight_sets import set_below
from pom_export.errors import CheckpointError
from pom_export.suggestions import did_you_mean

# Trainers' names for the state dict that is trained.
_TRAINED: Final = frozenset(
    {"model", "state_dict", "model_state_dict", "model_state", "net", "network", "module", "weights", "params"}
)
_MOST_NAMED: Final = 8
_CHOOSE: Final = "Choose with `weights=NAME`"


def default_set(file: Path, sets: Sequence[WeightSet]) -> WeightSet:
    """Return the default set: the trained weights, in preference to averages of them.

    Raises:
        CheckpointError: several sets rank equally, or there are only lists without names.
    """
    able = _without_parts([one for one in sets if one.has_mixers])
    if not able:
        named = sorted((one for one in sets if one.values is None), key=_rank)
        if not named:
            raise CheckpointError(
                f"{file} holds lists of weights without names: {listed(sets)}", "Save the state dict as well"
            )
        return named[0]  # not one of our models, whatever it is
    least = min(one.depth for one in able)
    preferred = [one for one in able if one.preferred and one.depth == least]
    raw = [one for one in able if not one.average]
    trained = [one for one in raw if _last_key(one) in _TRAINED or not one.path]
    for group in (preferred, trained, raw, able):
        shallow = [one for one in group if one.depth == min(other.depth for other in group)]
        if len(shallow) == 1:
            return shallow[0]
        if shallow:
            others = [one for one in sets if all(one is not other for other in shallow)]
            raise CheckpointError(f"{file} holds several sets of weights: {listed([*shallow, *others])}", _CHOOSE)
    raise AssertionError


def _without_parts(able: Sequence[WeightSet]) -> list[WeightSet]:
    """For a state dict that contains networks, keep only those that are whole models, or else only the whole."""
    left_out: list[WeightSet] = []
    for outer in (one for one in able if one.contains):
        inner = [one for one in able if one.lies_in(outer)]
        if any(one.is_model for one in inner):
            left_out += [outer, *(one for one in inner if not one.is_model)]
        else:
            left_out += inner
    return [one for one in able if all(one is not other for other in left_out)]


def asked_set(file: Path, sets: Sequence[WeightSet], weights: str) -> WeightSet:
    """Return the set with a name: its short name, the keys that lead to it, the last of these, or a prefix of names.

    Raises:
        CheckpointError: there is no such set, or there are several.
    """
    asked = weights.rstrip(".")
    for names_of in (
        lambda one: {path for path in (one.path, *one.other_paths) if path},
        lambda one: {one.alias, one.name},
        lambda one: set(_last_keys(one)),
    ):
        found = [one for one in sets if asked and asked in names_of(one)]
        if len(found) > 1:
            raise CheckpointError(f"{file} holds several weights {weights!r}: {listed(found)}", _CHOOSE)
        if found:
            one = _only_part(found[0], sets)
            return one if asked != one.alias else _part_or_whole(file, one, asked)
    if len(sets) == 1 and asked == "model":
        return _part_or_whole(file, sets[0], asked)
    found = [one for one in sets if not one.contains and asked and f".{asked}." in f".{one.path}."]
    if not found:
        parts = [part for one in sets if asked and (part := set_below(file, one, asked)) is not None]
        found = list({part.path: part for part in parts}.values())
        if len(found) > 1:
            found = [replace(part, alias="") for part in found]
    if len(found) == 1:
        return found[0]
    if found:
        raise CheckpointError(f"{file} holds several weights {weights!r}: {listed(found)}", _CHOOSE)
    known = {name for one in sets for name in (one.path, one.alias, one.name) if name}
    raise CheckpointError(
        f"{file} has no weights {weights!r}; it has {listed(sets)}",
        did_you_mean(asked, known) or "Give one of these names, or a prefix of names in the state dict",
    )


def _only_part(one: WeightSet, sets: Sequence[WeightSet]) -> WeightSet:
    """Return the only network in a set that also contains other things; the set itself if there is no such network."""
    inner = [other for other in sets if other.lies_in(one)]
    return inner[0] if one.contains and len(inner) == 1 else one


def _part_or_whole(file: Path, one: WeightSet, asked: str) -> WeightSet:
    """Return the part of a set below a prefix that equals the set's short name, unless that is the whole set."""
    part = set_below(file, one, asked)
    return one if part is None or len(part.tensors) == len(one.tensors) else part


def _last_key(one: WeightSet) -> str:
    return one.path.rpartition(".")[2]


def _last_keys(one: WeightSet) -> list[str]:
    """Return all trailing parts of a path."""
    keys = one.path.split(".")
    return [".".join(keys[start:]) for start in range(len(keys))]


def _rank(one: WeightSet) -> tuple[bool, int, bool]:
    return one.average, one.depth, _last_key(one) not in _TRAINED


def listed(sets: Sequence[WeightSet]) -> str:
    """Return the names of the first few sets."""
    named = [one.label for one in sets if not one.contains]
    more = f" and {len(named) - _MOST_NAMED} more" if len(named) > _MOST_NAMED else ""
    return ", ".join(named[:_MOST_NAMED]) + more
