"""Load a model from a checkpoint file."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pom_export.checkpoint.families import V1, V1_GROUPED
from pom_export.checkpoint.hints import Hints, check_given, check_kind, no_context_error
from pom_export.checkpoint.reader import Checkpoint, read_checkpoint
from pom_export.checkpoint.recognition import tied_names
from pom_export.checkpoint.spec import ModelSpec, empty_model
from pom_export.checkpoint.values import check_values
from pom_export.checkpoint.weight_set import WeightSet
from pom_export.checkpoint.weights import find_weights
from pom_export.errors import CheckpointError, only_ours
from pom_export.models.gpt import GPTConfig, Rotary
from pom_export.models.jit import JiTConfig
from pom_export.torch_modes import plain_modes

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedModel:
    """A model with its checkpoint's weights, in evaluation mode.

    Attributes:
        module: the model; its weights keep their floating-point type, and may be mapped from the file.
        spec: its specification.
        sha256: the file's hash, see `Checkpoint`.
        dtypes: number of weights of each floating-point type.
        weights: name of the chosen set of weights.
        other_weights: names of the file's other sets.
        notes: remarks about the weights for the user, one sentence each.
    """

    module: nn.Module
    spec: ModelSpec
    sha256: str
    dtypes: Mapping[str, int] = field(default_factory=dict)
    weights: str = "model"
    other_weights: Sequence[str] = ()
    notes: Sequence[str] = ()


def load_model(
    path: str | os.PathLike[str],
    *,
    family: str | None = None,
    degree: int | None = None,
    heads: int | None = None,
    in_context_start: int | None = None,
    weights: str | None = None,
) -> LoadedModel:
    """Read a checkpoint, recognise its model, and build it.

    Args:
        path: a file, or a folder in Hugging Face's layout.
        family: "pom-v1", "pom-v1-grouped", "pom-v2", "language-model", "nanogpt-pom" or "jit-pom"; default: recognised.
        degree: polynomial degree, if it does not follow from the shapes (v1).
        heads: number of attention heads of a hybrid, if it does not follow from the shapes.
        in_context_start: block before which an image model inserts its in-context tokens; default: from a
            configuration, or that of the published model with the same depth.
        weights: which of several sets of weights in the file to load: a name listed by `inspect` ("model", "ema"), the
            keys that lead to the set, or a prefix of names in the state dict; default: the trained weights, in
            preference to averages.

    Raises:
        InputError: the file cannot be read.
        CheckpointError: the model is unknown, or shapes and hints together do not determine it.
    """
    check_given({"degree": degree, "heads": heads, "in_context_start": in_context_start})
    checkpoint = read_checkpoint(path)
    given = Hints(family, degree, heads, in_context_start).over(checkpoint.hints)
    hints = given.over(checkpoint.settings)
    doubts = _contradictions(given, checkpoint.settings)
    found = find_weights(checkpoint, weights, hints)
    spec, tensors = found.spec, found.tensors
    _check_hints(spec, None if "degree" in given.origins else given.degree, heads, in_context_start)
    check_values(checkpoint.path, tensors)
    dtypes = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values())
    module = empty_model(spec)
    tied, untied = _shared(tensors, tied_names(module), checkpoint, found.chosen)
    module.load_state_dict(tensors, strict=False, assign=True)  # names have been compared
    _tie(module, tied)
    _fill_frequencies(module)
    _LOG.debug("%s holds a %s; %s taken of %d sets", path, spec.summary(), found.chosen.name, 1 + len(found.others))
    return LoadedModel(
        module.eval().requires_grad_(requires_grad=False),
        spec,
        checkpoint.sha256,
        dtypes,
        found.chosen.name,
        found.others,
        [*checkpoint.notes_on(found.chosen), *untied, *found.notes, *_settings_notes(spec, hints, tensors), *doubts],
    )


def _contradictions(given: Hints, settings: Hints) -> list[str]:
    """Note settings of the trainer that contradict flags, metadata or a configuration."""
    return [
        f"{place} is {getattr(settings, name)}; {name} {getattr(given, name)} was given, or read beside it"
        for name, place in settings.origins.items()
        if getattr(given, name) not in {None, getattr(settings, name)}
    ]


def _settings_notes(spec: ModelSpec, hints: Hints, tensors: Mapping[str, Tensor]) -> list[str]:
    """Note which of the trainer's settings were used, and which of them contradict the shapes."""
    notes = list(hints.doubts)
    used = {
        "degree": spec.family in {V1, V1_GROUPED},
        "heads": isinstance(spec.config, GPTConfig) and "rotary.inv_freq" not in tensors,
        "in_context_start": isinstance(spec.config, JiTConfig),
    }
    notes += [
        f"{name} {getattr(hints, name)} is read from {place}" for name, place in hints.origins.items() if used.get(name)
    ]
    if isinstance(spec.config, JiTConfig) and spec.config.in_context_len and hints.in_context_start is None:
        notes.append(
            f"in_context_start {spec.config.in_context_start} is the published model's for {spec.config.depth} "
            f"blocks; the file does not say it, and `in_context_start` gives another"
        )
    if "degree" in hints.origins and hints.degree != spec.degree:
        notes.append(f"{hints.origins['degree']} is {hints.degree}; the shapes say degree {spec.degree}")
    return notes


def _check_hints(spec: ModelSpec, degree: int | None, heads: int | None, in_context_start: int | None) -> None:
    """Refuse hints from the user, or from a configuration beside the file, that contradict the shapes."""
    if degree is not None and degree != spec.degree:
        raise CheckpointError(
            f"degree {degree}, given or read from a configuration, does not fit: the shapes say {spec.degree}",
            "Leave it out, or correct the configuration",
        )
    without_context = isinstance(spec.config, JiTConfig) and not spec.config.in_context_len
    if in_context_start is not None and without_context:
        raise no_context_error(spec.architecture, in_context_start)
    check_kind(spec.architecture, heads, in_context_start)
    if heads is None or not isinstance(spec.config, GPTConfig):
        return
    if heads not in {spec.config.n_head, spec.config.attention_heads}:
        raise CheckpointError(
            f"{heads} attention heads don't fit: its shapes say {spec.config.attention_heads}", "Leave `heads` out"
        )


def _shared(
    tensors: dict[str, Tensor], tied: Sequence[Sequence[str]], checkpoint: Checkpoint, chosen: WeightSet
) -> tuple[list[Sequence[str]], list[str]]:
    """Use one tensor for all names that the model ties; writers of safetensors only keep one of them.

    Returns:
        The groups of names that are tied, and notes on the others: libraries that quantize layers leave the embedding
        as it was, and what was tied to it has values of its own from then on.
    """
    quantized = {id(tensor) for tensor in checkpoint.dequantized(chosen)}
    kept, notes = [], []
    for names in tied:
        first = next(name for name in names if name in tensors)
        differ = [name for name in names if not torch.equal(tensors.get(name, tensors[first]), tensors[first])]
        if differ and not any(id(tensors[name]) in quantized for name in (first, *differ)):
            raise CheckpointError(f"{checkpoint.path}: {differ[0]} and {first} differ", "The model ties them")
        tensors.update({name: tensors[first] for name in names if name not in differ})
        if differ:
            notes.append(
                f"{differ[0]} and {first} are one weight in this model; one was quantized without the other, so each "
                "has its own values"
            )
        else:
            kept.append(names)
    return kept, notes


def _tie(module: nn.Module, tied: Sequence[Sequence[str]]) -> None:
    """Tie parameters again, because loading by assignment creates one for each name."""
    for first, *others in tied:
        for name in others:
            parent, _, attribute = name.rpartition(".")
            setattr(module.get_submodule(parent), attribute, module.get_parameter(first))


def _fill_frequencies(module: nn.Module) -> None:
    """Compute the frequencies of rotations that the file lacks, which follow from the number of heads."""
    for part in module.modules():
        if isinstance(part, Rotary) and part.get_buffer("inv_freq").is_meta:
            part.inv_freq = Rotary(2 * part.get_buffer("inv_freq").shape[0]).inv_freq


@only_ours
def load_checkpoint(
    path: str | os.PathLike[str],
    *,
    family: str | None = None,
    degree: int | None = None,
    heads: int | None = None,
    in_context_start: int | None = None,
    weights: str | None = None,
) -> nn.Module:
    """Return a checkpoint's model in evaluation mode; arguments and errors are those of `load_model`."""
    with plain_modes():
        return load_model(
            path, family=family, degree=degree, heads=heads, in_context_start=in_context_start, weights=weights
        ).module
