"""Recognise the model and its hyper-parameters in a state dict, from names, shapes and hints."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Size, Tensor, nn

from pom_export.checkpoint.architectures import ARCHITECTURES, Architecture, Shapes
from pom_export.checkpoint.families import FAMILIES, MIXER
from pom_export.checkpoint.hints import Hints
from pom_export.checkpoint.prefixes import common_prefixes
from pom_export.checkpoint.spec import ModelSpec, empty_model
from pom_export.errors import CheckpointError, InputError
from pom_export.suggestions import did_you_mean

_LABELS = ", ".join(FAMILIES)
_NO_HINTS = Hints()
_IN_EVERY_MIXER = "ag_proj.weight"
# Parts of names by which torch, its pruning, and peft mark weights that are computed from others.
_COMPUTED = re.compile(r"(^|\.)(parametrizations\.|lora_|base_layer\.)|(_orig|_mask|weight_g|weight_v)$")


@dataclass(frozen=True)
class RecognisedModel:
    """The model in a state dict.

    Attributes:
        spec: the model's specification.
        prefix: the prefix of all names.
        sampled_from_average: see `Architecture`.
    """

    spec: ModelSpec
    prefix: str = ""
    sampled_from_average: bool = False


def recognise(tensors: Mapping[str, Tensor], hints: Hints = _NO_HINTS) -> RecognisedModel:
    """Return the model in a state dict.

    Raises:
        InputError: the hinted family does not exist.
        CheckpointError: no known model has its names or shapes; the message names the nearest one and the difference.
    """
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    _check_plain(shapes)
    candidates = _candidates(hints.family)
    for prefix in common_prefixes(shapes):
        inner = {name.removeprefix(prefix): shape for name, shape in shapes.items()}
        for architecture in candidates:
            if architecture.matches(inner):
                return RecognisedModel(_spec(architecture, inner, hints), prefix, architecture.sampled_from_average)
    raise _unknown(shapes, candidates)


def find_mixers(shapes: Shapes) -> list[str]:
    """Return the names of the modules in a state dict that have a mixer's parameters, in order of appearance."""
    below: dict[str, dict[str, Size]] = {
        name.removesuffix(_IN_EVERY_MIXER): {} for name in shapes if name.endswith(_IN_EVERY_MIXER)
    }
    for name, shape in shapes.items():
        # A parameter of the mixer itself, or of one of its layers.
        *outer, _ = name.rsplit(".", 2)
        for depth in range(len(outer) + 1):
            prefix = "".join(f"{part}." for part in outer[:depth])
            if prefix in below:
                below[prefix][name.removeprefix(prefix)] = shape
    mixers = [a for a in ARCHITECTURES if a.architecture == MIXER]
    return [prefix.rstrip(".") for prefix, inner in below.items() if any(a.matches(inner) for a in mixers)]


def tied_names(model: nn.Module) -> list[list[str]]:
    """Return groups of names in a model's state dict that stand for the same parameter."""
    groups: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(name)
    return [names for names in groups.values() if len(names) > 1]


def _candidates(family: str | None) -> list[Architecture]:
    chosen = [architecture for architecture in ARCHITECTURES if family in {None, architecture.label}]
    if not chosen:
        raise InputError(
            f"unknown family {family!r}", did_you_mean(str(family), FAMILIES) or f"Choose one of {_LABELS}"
        )
    return chosen


def _spec(architecture: Architecture, shapes: Shapes, hints: Hints) -> ModelSpec:
    """Derive the hyper-parameters; a missing name or an impossible shape gives a one-line error."""
    what = f"a {architecture.label} checkpoint"
    try:
        config = architecture.derive(shapes, hints)
    except KeyError as error:
        raise CheckpointError(f"it looks like {what}, but key {error.args[0]} is missing", "Is it complete?") from error
    except IndexError as error:
        raise CheckpointError(
            f"it looks like {what}, but a weight has too few dimensions", "Is it complete?"
        ) from error
    except InputError as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"it looks like {what}, but its shapes fit no configuration: {error.what}", "Is it complete?"
        ) from error
    spec = ModelSpec(architecture.architecture, architecture.family, config)
    _check_names_and_shapes(spec, shapes)
    return spec


def _check_names_and_shapes(spec: ModelSpec, shapes: Shapes) -> None:
    """Compare with the state dict of the spec's model; for tied names, one is enough."""
    model = empty_model(spec)
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    missing = {name for name in expected.keys() - shapes.keys() if not _follows(name)}
    for names in tied_names(model):
        if any(name in shapes for name in names):
            missing -= set(names)
    if missing:
        raise CheckpointError(
            f"missing keys for a {spec.summary()}: {_some(missing)}", "Check that the file is complete"
        )
    if unknown := shapes.keys() - expected.keys():
        raise CheckpointError(
            f"unknown keys for a {spec.summary()}: {_some(unknown)}",
            "Check that it is an unmodified model of this kind",
        )
    for name, shape in expected.items():
        if name in shapes and shapes[name] != shape:
            raise CheckpointError(
                f"{name} is {tuple(shapes[name])}, expected {tuple(shape)} for a {spec.summary()}",
                "Check that the file is complete",
            )


def _follows(name: str) -> bool:
    """Return whether values follow from the spec: frequencies of rotations, if the heads are known."""
    return name.endswith("rotary.inv_freq")


def _unknown(shapes: Shapes, candidates: list[Architecture]) -> CheckpointError:
    """Return an error that names the nearest architecture and the differences."""
    mixers = [name for name in find_mixers(shapes) if name]
    if mixers and len(candidates) == len(ARCHITECTURES):
        return CheckpointError(
            f"it holds {len(mixers)} mixer{'s' if len(mixers) > 1 else ''} ({_some(mixers, ordered=True)}) "
            f"in an architecture that pom-export does not know",
            "Load it into your own class and call pom_export.export(module, output, example_inputs=(...))",
        )
    # Biases are ignored, since they are optional in most layers.
    present = {re.sub(r"\.\d+\.", ".0.", name) for name in shapes if not name.endswith(".bias")}
    nearest = max(candidates, key=lambda a: len(present & set(a.typical)) / len(present | set(a.typical)))
    typical = set(nearest.typical)
    if not present & typical:
        return CheckpointError(f"no known model: its keys are {_some(shapes)}", f"Expected a checkpoint of {_LABELS}")
    absent = f"; missing: {_some(typical - present)}" if typical - present else ""
    other = f"; unexpected: {_some(present - typical)}" if present - typical else ""
    if not absent and not other:
        other = f", which has these names but other shapes: {_shapes_of(shapes)}"
    return CheckpointError(
        f"no known model; nearest is {nearest.label}{absent}{other}", "Save the whole state dict, or check the model"
    )


def _check_plain(shapes: Shapes) -> None:
    """Raise CheckpointError if weights are computed from others, by code that is not in the file."""
    if computed := [name for name in shapes if _COMPUTED.search(name)]:
        raise CheckpointError(
            f"weights are computed from others: {_some(computed)}",
            "Fold them before saving: torch.nn.utils.parametrize.remove_parametrizations, remove_weight_norm, "
            "prune.remove, or merge_and_unload (peft)",
        )


def _shapes_of(shapes: Shapes, limit: int = 3) -> str:
    return ", ".join(f"{name} {tuple(shape)}" for name, shape in list(shapes.items())[:limit])


def _some(names: Iterable[str], limit: int = 4, ordered: bool = False) -> str:
    """Return the first few names, and how many more there are."""
    listed = list(names) if ordered else sorted(names)
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + more
