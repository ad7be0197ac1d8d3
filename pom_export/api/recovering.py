"""Recover how a file was exported: from its metadata or, if a tool lost it, from its inputs, nodes and outputs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from pom_export.errors import InputError
from pom_export.graph.exported_model import BLOCK_CAUSAL, CAUSAL, STATEFUL, ExportedModel, is_past
from pom_export.parity.candidates import onnxruntime_candidates
from pom_export.parity.inputs import make_cases
from pom_export.parity.interface import Interface, check_outputs, match_inputs, program_spec
from pom_export.parity.names import Names
from pom_export.parity.targets import Target
from pom_export.parity.tolerances import MODELS
from pom_export.parity.verification import compare, record

if TYPE_CHECKING:
    from torch import nn

    from pom_export.graph.options import GraphOptions
    from pom_export.graph.program import Program

_CONTEXT: Final = "context"
_POSITIONS: Final = "positions"
# Inputs of an exported model other than its past.
_OURS: Final = {"x", "t", "y", "input_ids", "mask", _CONTEXT, _POSITIONS, "context_positions"}
_PADDING_RANK: Final = 2


@dataclass(frozen=True)
class Reference:
    """A program that should compute the same as a file.

    Attributes:
        program: the program.
        interface: the file's inputs in the program's terms.
        notes: remarks about how it was found.
    """

    program: Program
    interface: Interface
    notes: Sequence[str] = ()

    @property
    def causal(self) -> bool:
        """Whether each token of a call to a stateful model sees only the tokens up to itself."""
        return self.program.properties.get(STATEFUL) != BLOCK_CAUSAL

    @property
    def variant(self) -> str:
        """The model's mask and kind of state, in words for the report."""
        properties = self.program.properties
        settings = [f"mask {properties['mask']}"] if properties.get("mask") else []
        settings += [f"state {properties[STATEFUL]}"] if properties.get(STATEFUL) else []
        return f" ({', '.join(settings)})" if settings else ""


def find_reference(model: ExportedModel, module: nn.Module) -> Reference:
    """Return the program of one of our models that a file was exported from.

    If the file's metadata is incomplete, every variant that its inputs and nodes allow is tried, and the one whose
    outputs are closest to the file's is used. It is then compared like any other.

    Args:
        model: the file.
        module: the model.

    Raises:
        InputError: no program of the model has the file's inputs.
    """
    from pom_export.graph.programs import program_of

    found: dict[str, Reference] = {}
    names = {spec.name for spec in model.inputs}
    # The most informative refusal is raised. They are ordered by whether the file lacks an input of the program, then
    # by how much the numbers of inputs differ.
    refusals: list[tuple[bool, float, InputError]] = []
    for options in possible_options(model):
        lacking, besides = True, math.inf
        try:
            program = program_of(module, options)
            lacking, besides = not names >= program.inputs.keys(), abs(len(names) - len(program.inputs))
            interface = match_inputs(model, [program_spec(program, name) for name in program.inputs])
        except InputError as error:
            refusals.append((lacking, besides, error))
        else:
            reference = Reference(program, interface)
            found.setdefault(reference.variant, reference)
    if not found:
        raise min(refusals, key=lambda refusal: refusal[:2])[2]
    if len(found) == 1:
        return next(iter(found.values()))
    taken = min(found.values(), key=lambda reference: _distance(model, reference))
    others = " or".join(variant for variant in found if variant != taken.variant)
    note = f"the file does not say how it was exported; its outputs are closer to{taken.variant} than to{others}"
    return replace(taken, notes=[note])


def possible_options(model: ExportedModel) -> Iterator[GraphOptions]:
    """Yield the ways in which a file may have been exported, the likeliest first; just one if the metadata names it."""
    from pom_export.graph.options import GraphOptions

    names = {spec.name for spec in model.inputs}
    ours = all(name in _OURS or is_past(name) for name in names)
    cross, positions = ([name in names] if ours else [False, True] for name in (_CONTEXT, _POSITIONS))
    for kind, mask, context, given in itertools.product(_states(model, ours), _masks(model), cross, positions):
        yield GraphOptions(mask, context, given, stateful=bool(kind), block_causal=kind == BLOCK_CAUSAL)


def _states(model: ExportedModel, ours: bool) -> list[str]:
    """Return the possible kinds of state; "" means that the file keeps no state.

    Args:
        model: the file.
        ours: whether its inputs have the names that an export gives them.
    """
    past = any(is_past(spec.name) for spec in model.inputs)
    if STATEFUL in model.properties or (not past and (ours or "mask" in model.properties)):
        return [model.stateful]
    kept = {attributes.get("stateful", 0) for attributes in model.attributes} or {0, 1}
    kinds = [CAUSAL] * (_modes(model) != {"mean"}) + [BLOCK_CAUSAL] * (_modes(model) != {"causal"})
    return [""] * (not past and 0 in kept) + kinds * (past or 1 in kept)


def _masks(model: ExportedModel) -> list[str | None]:
    """Return the possible masks; None is the model's default."""
    if "mask" in model.properties:
        return [model.properties["mask"] or None]
    for spec in model.inputs:
        if spec.dtype == np.bool_:
            return ["padding" if len(spec.axes) == _PADDING_RANK else "full"]
    if _modes(model) == {"causal"}:
        return ["causal", None]
    return [None] if _modes(model) else [None, "causal"]


def _modes(model: ExportedModel) -> set[str]:
    return {str(attributes.get("mode")) for attributes in model.attributes}


def _distance(model: ExportedModel, reference: Reference) -> float:
    """Return how far the file's outputs are from a program's, relative to the largest; infinity if they don't fit."""
    from pom_export.graph.reference import Float64Module

    program, interface = reference.program, reference.interface
    case = next(make_cases(interface.pinned_specs(), program.limits, seed=0))
    candidates, _ = onnxruntime_candidates(model)
    distances = [0.0]
    try:
        expected = record(Float64Module(program.module), program.outputs, case)
        names = Names(interface.names, check_outputs(model, expected))
        for candidate in candidates[:1]:
            found = compare([case], [Target(expected)], candidate, MODELS[model.precision], names=names)
            distances += [each.worst.difference.max_rel for each in found]
    except InputError:
        return math.inf
    return max(distances)
