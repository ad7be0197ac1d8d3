"""Select the state dict of one recognised model from the sets of weights in a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from pom_export.checkpoint.averages import fits, named_values, part_of_list, with_buffers
from pom_export.checkpoint.choosing import listed
from pom_export.checkpoint.hints import Hints
from pom_export.checkpoint.layouts import with_joined_projections
from pom_export.checkpoint.networks import COUNTERS
from pom_export.checkpoint.reader import Checkpoint
from pom_export.checkpoint.recognition import recognise
from pom_export.checkpoint.spec import ModelSpec, empty_model
from pom_export.checkpoint.weight_set import WeightSet
from pom_export.errors import CheckpointError

_SOME = 4
_OLDER_LAYOUT = "its mixers have the older layout, with separate projections of context and gate; these were joined"
_OLDER_LISTS = (
    "a list without names that was saved with separate projections has the order of that layout, which is not supported"
)
_TRAINING_POINT = (
    "the weights were saved in the training mode of a schedule-free optimizer, and are not the ones to evaluate with: "
    "call optimizer.eval() before saving"
)


@dataclass(frozen=True)
class Weights:
    """The weights of one model in a file.

    Attributes:
        spec: the model that they were recognised as.
        tensors: the state dict, in the current layout, without prefixes.
        chosen: the chosen set.
        notes: remarks about the weights for the user, one sentence each.
        others: labels of the file's other sets.
    """

    spec: ModelSpec
    tensors: dict[str, Tensor]
    chosen: WeightSet
    notes: list[str] = field(default_factory=list)
    others: Sequence[str] = ()


@dataclass(frozen=True)
class _State:
    """A recognised state dict.

    Attributes:
        chosen: its set.
        tensors: its tensors, in the file's layout.
        older: prefixes of mixers in the older layout.
    """

    chosen: WeightSet
    spec: ModelSpec
    tensors: dict[str, Tensor]
    older: Sequence[str]
    sampled_from_average: bool

    def weights(self, tensors: dict[str, Tensor] | None = None, chosen: WeightSet | None = None) -> Weights:
        """Return its weights, or other weights of the same model."""
        current, older = with_joined_projections(self.tensors if tensors is None else tensors)
        return Weights(self.spec, current, chosen or self.chosen, [_OLDER_LAYOUT] if older else [])


def find_weights(checkpoint: Checkpoint, weights: str | None, hints: Hints) -> Weights:
    """Return the weights with a name, or the default ones.

    Raises:
        CheckpointError: there are none with that name, the choice is ambiguous, the model is unknown, or a list without
            names does not fit the model.
    """
    asked = None if weights is None else checkpoint.choose(weights)
    if asked is not None and not asked.average:
        return _with_choice_notes(checkpoint, _recognised(checkpoint, asked, hints).weights())
    state = _base(checkpoint, asked, hints)
    if state is None:
        assert asked is not None
        return _with_choice_notes(checkpoint, _recognised(checkpoint, asked, hints).weights())
    notes = []
    if asked is None and state.sampled_from_average and not state.chosen.average:
        asked = _first_average(checkpoint.sets)
        if asked is not None and asked.values is not None and state.older:
            notes.append(f"{asked.label} is not used: {_OLDER_LISTS}")
            asked = None
    try:
        found = state.weights() if asked is None else _average(checkpoint, asked, state, hints)
    except CheckpointError as error:
        if weights is not None:
            raise
        hint = f"{error.hint}. `weights={state.chosen.name!r}` takes the trained weights"
        raise CheckpointError(error.what, hint) from error
    found.notes.extend(notes)
    return _with_choice_notes(checkpoint, found)


def _base(checkpoint: Checkpoint, asked: WeightSet | None, hints: Hints) -> _State | None:
    """Return the state dict with the names for a list and the buffers for an average; None if there is none."""
    if asked is None:
        return _recognised(checkpoint, checkpoint.choose(), hints)
    if all(asked is not one for one in checkpoint.sets):  # part of another set
        return None
    raw = [one for one in checkpoint.sets if one.has_mixers and not one.average and not one.contains]
    try:
        base = checkpoint.choose()
    except CheckpointError:
        if asked.values is None:
            return None
        return _fitting(checkpoint, asked, raw, hints)
    if base is asked or base.average or base.contains:
        if asked.values is not None:
            return _fitting(checkpoint, asked, raw, hints) if raw else _recognised(checkpoint, base, hints)
        return _recognised(checkpoint, raw[0], hints) if len(raw) == 1 else None
    return _recognised(checkpoint, base, hints)


def _fitting(checkpoint: Checkpoint, asked: WeightSet, sets: Sequence[WeightSet], hints: Hints) -> _State:
    """Return the only set whose shapes fit a list without names, which is then an average of it.

    Raises:
        CheckpointError: none of the sets fits, or several do; or the only set is of an unknown model.
    """
    states, refused = [], []
    for one in sets:
        try:
            states.append(_recognised(checkpoint, one, hints))
        except CheckpointError as error:
            refused.append(error)
    if not states:
        raise refused[0]
    if len(sets) == 1:
        return states[0]
    fitting = [state for state in states if fits(checkpoint.values(asked), state.tensors, empty_model(state.spec))]
    if len(fitting) != 1:
        which = listed([state.chosen for state in fitting]) or f"none of {listed(sets)}"
        raise CheckpointError(
            f"{checkpoint.path}: {asked.label} has no names; judging by its shapes it could be an average of {which}",
            "Save the average as a state dict",
        )
    return fitting[0]


def _recognised(checkpoint: Checkpoint, chosen: WeightSet, hints: Hints) -> _State:
    tensors = checkpoint.state_dict(chosen)
    current, older = with_joined_projections(tensors)
    try:
        found = recognise(current, hints)
    except CheckpointError as error:
        if parts := [one.label for one in checkpoint.sets if chosen.contains and one.lies_in(chosen)]:
            hint = f"Take a part of it with `weights`: {' or '.join(parts[:_SOME])}. {error.hint}"
            raise CheckpointError(error.what, hint) from error
        raise
    inner = {name.removeprefix(found.prefix): tensor for name, tensor in tensors.items()}
    return _State(chosen, found.spec, inner, older, found.sampled_from_average)


def _first_average(sets: Sequence[WeightSet]) -> WeightSet | None:
    averages = [one for one in sets if one.average and not one.contains and (one.values is not None or one.has_mixers)]
    return min(averages, key=lambda one: one.name, default=None)


def _average(checkpoint: Checkpoint, asked: WeightSet, state: _State, hints: Hints) -> Weights:
    """Return an average, completed from the state dict beside it."""
    model = empty_model(state.spec)
    if asked.values is not None:
        if state.older:
            raise CheckpointError(
                f"{checkpoint.path}: {asked.label} cannot be used: {_OLDER_LISTS}",
                f"Leave `weights` out, or give {state.chosen.name or 'model'}",
            )
        values = checkpoint.values(asked)
        place = part_of_list(values, state.tensors, model, _around(checkpoint, state.chosen))
        named = named_values(checkpoint.path, asked, values[place], state.tensors, model)
        found = _with_buffer_note(state.weights(named, asked), state, named)
        if len(values[place]) < len(values):
            found.notes.append(
                f"{asked.label} is an average of more than the model: the tensors {place.start} to {place.stop - 1} of "
                f"its {len(values)} are the model's, judging by their shapes"
            )
        return found
    filled = with_buffers(checkpoint.path, asked, checkpoint.state_dict(asked), state.tensors, model)
    if filled is None:
        return _recognised(checkpoint, asked, hints).weights()
    return _with_buffer_note(state.weights(filled, asked), state, filled)


def _around(checkpoint: Checkpoint, chosen: WeightSet) -> tuple[int, int]:
    """Return how many names precede and follow a network's in the state dict that contains it."""
    outer = next((one for one in checkpoint.sets if one.contains and chosen.lies_in(one)), None)
    if outer is None:
        return 0, 0
    inside = chosen.path[len(outer.path) + 1 if outer.path else 0 :] + "."
    places = [place for place, name in enumerate(outer.tensors) if name.startswith(inside)]
    return places[0], len(outer.tensors) - 1 - places[-1]


def _with_buffer_note(found: Weights, state: _State, filled: Mapping[str, Tensor]) -> Weights:
    """Note if an average was completed with buffers that are less precise than itself."""
    buffers = [name for name, tensor in filled.items() if tensor is state.tensors.get(name)]
    precise = max((tensor.dtype.itemsize for name, tensor in filled.items() if name not in buffers), default=0)
    if rounded := [name for name in buffers if filled[name].dtype.itemsize < precise]:
        dtype = str(filled[rounded[0]].dtype).removeprefix("torch.")
        found.notes.append(
            f"{found.chosen.label} holds no buffers; those of {state.chosen.label} are used, which are rounded to "
            f"{dtype}: {', '.join(rounded[:_SOME])}"
        )
    return found


def _with_choice_notes(checkpoint: Checkpoint, found: Weights) -> Weights:
    """Note which set was chosen, and which others there are."""
    chosen = found.chosen
    average = ", an average" if chosen.average else ""
    is_set = any(chosen is one for one in checkpoint.sets)
    outer = [one for one in checkpoint.sets if chosen.lies_in(one) and (one.contains or not is_set)]
    left_out = [chosen, *outer]
    others = [one for one in checkpoint.sets if not one.contains and all(one is not other for other in left_out)]
    also = f"; the file also holds {listed(others)}: `weights=NAME` chooses" if others else ""
    if outer:
        beside = _beside(checkpoint, outer[0], chosen)
        found.notes.insert(
            0, f"the weights are those below {chosen.label}{average}; everything beside them is left out{beside}{also}"
        )
    elif others:
        found.notes.insert(0, f"the weights are {chosen.label}{average}{also}")
    elif average:
        found.notes.insert(0, "the weights are an average taken over training")
    if checkpoint.beside:
        read = ", ".join(file.name for file in checkpoint.files[:_SOME])
        others_there = ", ".join(checkpoint.beside[:_SOME])
        found.notes.append(
            f"the weights are read from {read}; the folder also holds {others_there}; give a file to choose"
        )
    found.notes.extend(
        f"{key} may be an average of the weights, in a form that is not supported" for key in checkpoint.unread
    )
    if checkpoint.in_training and not chosen.average:
        found.notes.append(_TRAINING_POINT)
    return replace(found, others=[one.label for one in others])


def _beside(checkpoint: Checkpoint, outer: WeightSet, chosen: WeightSet) -> str:
    """Return the beginnings of names in a state dict that are neither in the chosen part nor in another set."""
    start = len(outer.path) + 1 if outer.path else 0
    inside = [one for one in (chosen, *checkpoint.sets) if one.lies_in(outer)]
    inner = [f"{path[start:]}." for one in inside for path in (one.path, *one.other_paths)]
    heads = dict.fromkeys(
        _head(name, inner[0])
        for name in outer.tensors
        if name.rpartition(".")[2] not in COUNTERS and not any(name.startswith(prefix) for prefix in inner)
    )
    more = f" and {len(heads) - _SOME} more" if len(heads) > _SOME else ""
    return f" ({', '.join(list(heads)[:_SOME])}{more})" if heads else ""


def _head(name: str, other: str) -> str:
    """Return the beginning of a dotted name, up to where it differs from another."""
    parts = name.split(".")
    same = next((i for i, (a, b) in enumerate(zip(parts, other.split("."), strict=False)) if a != b), len(parts))
    return ".".join(parts[: same + 1])
