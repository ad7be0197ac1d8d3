"""Averages that are not complete state dicts: lists without names, parameters without buffers, names without dots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from pom_export.checkpoint.prefixes import common_prefixes
from pom_export.checkpoint.weight_set import WeightSet
from pom_export.errors import CheckpointError

_SOME = 4


def named_values(
    file: Path, average: WeightSet, values: Sequence[Tensor], raw: Mapping[str, Tensor], model: nn.Module
) -> dict[str, Tensor]:
    """Give the tensors of a list the names of the parameters that they are averages of.

    A list is in the order of `named_parameters()`, which is the state dict without its buffers and with only the first
    name of a tied parameter. Some trainers' lists correspond to the whole state dict instead, or to the parameters that
    are trained; their length tells.

    Args:
        file: for messages.
        average: the set that the list represents.
        values: its tensors.
        raw: the state dict beside it, without prefixes.
        model: the model that the state dict was recognised as.

    Returns:
        A whole state dict: the averages and, from the raw state dict, what is not trained: buffers and frozen
        parameters.

    Raises:
        CheckpointError: the list has more or fewer tensors than there are parameters, or one has another shape.
    """
    names = _names_of(values, raw, model)
    if len(values) != len(names):
        raise CheckpointError(
            f"{file}: {average.label} has {len(values)} tensors, but the model has {len(names)} parameters",
            "A list without names must hold every parameter, in the order of named_parameters()",
        )
    for number, (name, value) in enumerate(zip(names, values, strict=True)):
        if value.shape != raw[name].shape:
            raise CheckpointError(
                f"{file}: tensor {number} of {average.label} is {tuple(value.shape)}, but {name}, number {number} "
                f"in the model, is {tuple(raw[name].shape)}",
                "A list without names must be in the order of named_parameters()",
            )
    return {**_not_trained(raw, model), **dict(zip(names, values, strict=True))}


def part_of_list(
    values: Sequence[Tensor], raw: Mapping[str, Tensor], model: nn.Module, around: tuple[int, int]
) -> slice:
    """Find a model's parameters in a list that also contains those of other modules.

    Args:
        values: the list, in the order of `named_parameters()` of a module that contains the model and the others.
        raw: the model's state dict, without prefixes.
        model: the model that it was recognised as.
        around: how many names of the whole state dict, including buffers, come before and after the model's.

    Returns:
        The only place where all shapes fit; the whole list if there is none, or more than one.
    """
    shapes = [raw[name].shape for name in _parameters(raw, model)]
    given = [value.shape for value in values]
    others = len(given) - len(shapes)
    starts = range(max(0, others - around[1]), min(others, around[0]) + 1)
    fitting = [start for start in starts if given[start : start + len(shapes)] == shapes]
    return slice(fitting[0], fitting[0] + len(shapes)) if len(fitting) == 1 else slice(0, len(given))


def fits(values: Sequence[Tensor], raw: Mapping[str, Tensor], model: nn.Module) -> bool:
    """Return whether a list may belong to a model: it has a tensor for each of the parameters, with their shapes."""
    names = _names_of(values, raw, model)
    return [value.shape for value in values] == [raw[name].shape for name in names]


def _names_of(values: Sequence[Tensor], raw: Mapping[str, Tensor], model: nn.Module) -> list[str]:
    if len(values) == len(raw):
        return list(raw)
    trained = _parameters(raw, model, trained=True)
    return trained if len(values) == len(trained) else _parameters(raw, model)


def with_buffers(
    file: Path, average: WeightSet, tensors: Mapping[str, Tensor], raw: Mapping[str, Tensor], model: nn.Module
) -> dict[str, Tensor] | None:
    """Complete averages of parameters by name with what is not trained, from the raw state dict.

    Args:
        file: for messages.
        average: the set that contains the averages.
        tensors: the averages; their names may lack the dots.
        raw: the state dict beside them, without prefixes.
        model: the model that the state dict was recognised as.

    Returns:
        A whole state dict; None if these are not averages of this model.

    Raises:
        CheckpointError: parameters of the model are missing.
    """
    names = _names_in(tensors, raw)
    if names is None or any(tensor.shape != raw[name].shape for name, tensor in names.items()):
        return None
    if absent := [name for name in _parameters(raw, model, trained=True) if name not in names]:
        raise CheckpointError(
            f"{file}: {average.label} lacks parameters of the model, such as {', '.join(absent[:_SOME])}",
            "An average must hold every parameter that is trained",
        )
    return {**_not_trained(raw, model), **names}


def _names_in(tensors: Mapping[str, Tensor], raw: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Return tensors by the raw state dict's names; None if any of them is not in it."""
    for prefix in common_prefixes(tensors):
        inner = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
        if inner.keys() <= raw.keys():
            return inner
    dotted = {name.replace(".", ""): name for name in raw}
    if len(dotted) < len(raw):
        return None
    # The names of modules around the model may precede every name, also without their dots.
    first = min(tensors, default="")
    for prefix in sorted((first.removesuffix(name) for name in dotted if first.endswith(name)), key=len):
        inner = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        if len(inner) == len(tensors) and inner.keys() <= dotted.keys():
            return {dotted[name]: tensor for name, tensor in inner.items()}
    return None


def _not_trained(raw: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    names = {name for name, _ in model.named_buffers()}
    names |= {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    return {name: tensor for name, tensor in raw.items() if name in names}


def _parameters(raw: Mapping[str, Tensor], model: nn.Module, *, trained: bool = False) -> list[str]:
    """Return the names of parameters, only the first one of tied parameters, in the file's order if it has one.

    Args:
        raw: the state dict.
        model: the model that it was recognised as.
        trained: whether to leave out those that the model freezes.
    """
    identity = {
        name: id(parameter)
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if parameter.requires_grad or not trained
    }
    # If a file's names are sorted, their order means nothing. The model's order is that of the official module.
    order = [name for name in identity if name in raw] if list(raw) == sorted(raw) else raw
    first: dict[int, str] = {}
    for name in order:
        if name in identity:
            first.setdefault(identity[name], name)
    return list(first.values())
