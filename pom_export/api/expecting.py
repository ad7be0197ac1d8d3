"""Compute a model's expected outputs: from its checkpoint, or from the parity data saved at export."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pom_export.api.recovering import find_reference
from pom_export.contract import PRODUCT
from pom_export.errors import CheckpointError, InputError
from pom_export.files import sha256_of
from pom_export.graph.claims import WEIGHTS
from pom_export.graph.exported_model import PRECISIONS, ExportedModel
from pom_export.parity.case import Case
from pom_export.parity.coverage import LONGER, Reach, make_coverage
from pom_export.parity.inputs import LONGEST, Inputs, case_of, make_cases
from pom_export.parity.interface import (
    check_limits,
    check_outputs,
    check_pinned,
    pinned_note,
)
from pom_export.parity.module_reference import ModuleReference
from pom_export.parity.names import SAME_NAMES, Names
from pom_export.parity.pairs import left_out, load_pairs
from pom_export.parity.precision import judged_precision, kept_in_single
from pom_export.parity.recording import load_recording, recording_path
from pom_export.parity.targets import Target, Targets

if TYPE_CHECKING:
    from torch import nn

    from pom_export.checkpoint.loading import LoadedModel
    from pom_export.graph.program import Program

# What the longest case may cost: multiplications by weights, numbers of an output, and of attention's scores.
_MOST_PRODUCTS = 2**35
_MOST_OUTPUTS = 2**24
_MOST_SCORES = 2**24
# Of an output of any case: 1 GiB of float64.
_MOST_NUMBERS = 2**27
# Tokens of the longest case of a model with a longer table: beyond them the sums of standard ops lose digits.
_LONGEST_TABLE = 16_384
# Positions that are computed lose digits of their angles; where there are none, all that float32 counts.
_PAST, _PAST_WITHOUT_POSITIONS = 100_003, 10_000_003
_LARGEST_HINT = 2**31


@dataclass(frozen=True)
class Expected:
    """What a model's outputs should be, case by case, and where that comes from.

    Attributes:
        cases: the inputs.
        targets: what the reference gives.
        reference: where they come from.
        precision: the type whose tolerance applies.
        notes: what a reader should know besides.
        names: what the model calls the inputs and outputs.
        own: whether the reference is a user's own module.
    """

    cases: Sequence[Case]
    targets: Sequence[Target]
    reference: str
    precision: str
    notes: Sequence[str] = ()
    names: Names = SAME_NAMES
    own: bool = False


def expected_of_recording(model: ExportedModel) -> Expected:
    """Return what was recorded when a model was exported.

    Raises:
        InputError: there are no parity data, or they are not of this model.
    """
    file = recording_path(model.path)
    recorded = load_recording(file, sha256_of(model.path), model.inputs, model.outputs)
    precision, notes = judged_precision(model)
    for target in recorded.targets:
        check_outputs(model, target.outputs)
    count = len(recorded.cases)
    notes.append(
        f"without `checkpoint`, only the {count} recorded cases were compared, not what the file's metadata claims"
    )
    told = f"PyTorch in float64, recorded in {file}"
    return Expected(recorded.cases, recorded.targets, told, precision, notes, own=recorded.own)


def expected_of_pairs(model: ExportedModel, inputs: Inputs) -> Expected:
    """Return what a user says that the outputs of inputs are.

    Raises:
        InputError: an input is missing, there is no output, or one does not fit.
    """
    given, found = load_pairs(model, inputs)
    precision, notes = judged_precision(model)
    told = f"the outputs in {'the mapping' if isinstance(inputs, Mapping) else os.fspath(inputs)}"
    notes = [*found, *notes, "only the inputs that were given were compared, not the file's own claims"]
    return Expected(given.cases, given.targets, told, precision, notes, own=given.own)


def expected_of_checkpoint(
    model: ExportedModel,
    checkpoint: str | os.PathLike[str],
    inputs: Inputs | None,
    seed: int,
    hints: Mapping[str, Any],
) -> Expected:
    """Return what PyTorch computes in float64 of a checkpoint's weights, after comparing the file's interface with it.

    Args:
        model: the file; it says how the checkpoint was exported (mask, state, positions) and nothing else.
        checkpoint: the reference.
        inputs: a .npz of inputs; None: random and edge cases.
        seed: of the random inputs.
        hints: arguments of `load_model` besides the path; None: as the file says, or the one that was exported.

    Raises:
        InputError: the checkpoint is not usable or of another model, or the file's interface or claims are not its.
    """
    loaded, lacking = _load(model, checkpoint, hints)
    notes = [*lacking, *loaded.notes, *_source_notes(model, checkpoint, loaded.sha256)]
    return expected_of_ours(model, loaded.module, f"weights of {checkpoint}", notes, inputs, seed)


def expected_of_ours(
    model: ExportedModel, module: nn.Module, told: str, notes: Sequence[str], inputs: Inputs | None, seed: int
) -> Expected:
    """Return what one of our models computes in float64, after comparing the file's interface with it.

    Args:
        model: the file; it says how the model was exported (mask, state, positions) and nothing else.
        module: the model.
        told: what to call it.
        notes: what a reader should know of it.
        inputs: a .npz of inputs; None: random and edge cases.
        seed: of the random inputs.

    Raises:
        InputError: the file's interface or claims are not the model's.
    """
    from pom_export.graph.reference import Float64Module

    found = find_reference(model, module)
    program, interface = found.program, found.interface
    check_pinned(model, interface, program.limits, _width(program))
    precision, judged = judged_precision(model, _matrix_values(program))
    notes = [*notes, *found.notes, *judged]
    notes += [*check_limits(model, program.limits, interface.names), *pinned_note(interface)]
    if inputs is None:
        reach = _reach(program)
        cases = list(make_cases(interface.pinned_specs(), program.limits, seed, reach.common))
        further = make_coverage(interface, program.limits, reach, seed, causal=found.causal)
        cases += further.cases
        notes += further.notes
    else:
        cases = [case_of(inputs, interface.pinned_specs(), program.limits, interface.names)]
        notes += left_out(model, inputs, but=program.inputs)
    targets, outputs = targets_of(model, program, Float64Module(program.module), precision, cases)
    names = Names(interface.names, outputs)
    return Expected(
        cases, targets, f"PyTorch in float64, {told}{found.told}", precision, [*names.notes(), *notes], names
    )


def targets_of(
    model: ExportedModel, program: Program, wide: nn.Module, precision: str, cases: Sequence[Case]
) -> tuple[Targets, dict[str, str]]:
    """Return what a program gives for cases, and what the file calls outputs of another name.

    Args:
        model: the file.
        program: the program.
        wide: its module in float64.
        precision: the type that its outputs are compared in.
        cases: the inputs.

    Raises:
        InputError: the module fails, or the file does not give its outputs: found before any backend is loaded.
    """
    exact = kept_in_single(model, program.module) if precision != PRECISIONS[0] else ()
    reference = ModuleReference(
        program.module, wide, program.outputs, precision, exact, sizes_folded=model.sizes_folded
    )

    def compute(case: Case) -> Target:
        target = reference.target(case)
        if not case.cuts:  # the outputs of several calls are joined, and longer than the file's
            check_outputs(model, target.outputs)
        return target

    targets = Targets(cases, compute)
    return targets, check_outputs(model, targets[0].outputs)


def _source_notes(model: ExportedModel, checkpoint: str | os.PathLike[str], sha256: str) -> list[str]:
    """Say when the weights come from another file than the model's, or this is not known.

    The same weights may be saved in many ways.
    """
    if not model.properties:
        return ["the file has no metadata of an export: what it was exported from is not known"]
    exported_from = model.properties.get("source_sha256", sha256)
    if sha256 == exported_from:
        return []
    return [
        f"{checkpoint} is not the file that was exported: sha256 {sha256[:12]}, the model's is {exported_from[:12]}"
    ]


def _load(
    model: ExportedModel, checkpoint: str | os.PathLike[str], given: Mapping[str, Any]
) -> tuple[LoadedModel, list[str]]:
    """Return the checkpoint's model, and what to say where it lacks the set of weights that was exported."""
    # What a checkpoint's shapes don't tell, the exported file does.
    config = model.spec.get("config", {})
    hints: dict[str, Any] = {"heads": _hint(config.get("attention_heads")), "degree": _degree(model)}
    if config.get("in_context_len"):
        hints["in_context_start"] = _hint(config.get("in_context_start"), least=0)
    try:
        hints |= {name: value for name, value in given.items() if value is not None}
        loaded, notes = _load_set(checkpoint, hints.pop("weights", None), model.properties.get(WEIGHTS), hints)
    except CheckpointError as error:
        if not model.spec:
            raise
        was = f"a {model.spec.get('architecture', 'model')} of family {model.spec.get('family', 'unknown')}"
        raise InputError(
            f"{checkpoint} does not fit the model, which was exported from {was}: {error}",
            "Name the checkpoint that was exported",
        ) from error
    if model.properties.get("spec", loaded.spec.to_json()) != loaded.spec.to_json():
        raise InputError(
            f"{checkpoint} is a {loaded.spec.summary()}; the model was exported from another",
            "Name the checkpoint that was exported",
        )
    return loaded, notes


def _load_set(
    checkpoint: str | os.PathLike[str], weights: str | None, exported: str | None, hints: dict[str, Any]
) -> tuple[LoadedModel, list[str]]:
    """Load the set that is asked for, else the one that was exported, else the one that the checkpoint holds."""
    from pom_export.checkpoint import load_model

    if weights is not None or exported is None:
        return load_model(checkpoint, weights=weights, **hints), []
    try:
        return load_model(checkpoint, weights=exported, **hints), []
    except CheckpointError:
        loaded = load_model(checkpoint, **hints)
        return loaded, [f"the model was exported from weights called {exported}, of which {checkpoint} holds none"]


def _degree(model: ExportedModel) -> int | None:
    """Return the degree of a v1 model, which a checkpoint does not tell: as the file's spec has it, or its nodes."""
    from pom_export.checkpoint.families import V1

    if model.spec:
        v1 = str(model.spec.get("family", "")).startswith(V1)
        return _hint(model.spec.get("config", {}).get("degree")) if v1 else None
    degrees = {attributes.get("degree") for attributes in model.attributes if attributes.get("form") == PRODUCT}
    return _hint(degrees.pop()) if len(degrees) == 1 else None


def _hint(value: Any, least: int = 1) -> int | None:
    """Return a hyper-parameter that the file's spec gives; the loaded model's spec is compared with it afterwards."""
    return value if isinstance(value, int) and not isinstance(value, bool) and least <= value < _LARGEST_HINT else None


def _matrix_values(program: Program) -> int:
    """Return how many numbers the weight matrices have, the polynomials' coefficients left out."""
    matrices = (p for name, p in program.module.named_parameters() if p.dim() > 1 and not name.endswith("po_coeff"))
    return sum(matrix.numel() for matrix in matrices)


def _width(program: Program) -> int:
    """Return the largest number of values that there are of a token, in an input or output."""
    vocabularies = [counts[0] for name, counts in program.limits.values.items() if name == "input_ids"]
    widths = [tensor.shape[-1] for tensor in program.inputs.values() if tensor.is_floating_point()]
    return max([*vocabularies, *widths], default=1)


def _reach(program: Program) -> Reach:
    """Return how far cases of a model may go, so that they take seconds and no more memory than others."""
    from pom_export.models import JiT
    from pom_export.models.gpt import CausalSelfAttention, Rotary

    modules = list(program.module.modules())
    heads = max((part.n_head for part in modules if isinstance(part, CausalSelfAttention)), default=0)
    tokens = [
        max(LONGER, min(program.limits.tokens or 0, _LONGEST_TABLE)),
        _MOST_PRODUCTS // max(_matrix_values(program), 1),
        _MOST_OUTPUTS // _width(program),
        *([int((_MOST_SCORES / heads) ** 0.5)] if heads else []),
    ]
    positions = any(isinstance(part, Rotary) for part in modules)
    common = max(min(LONGEST, _MOST_NUMBERS // _width(program)), 1)
    images = [part.config.side**2 + part.config.in_context_len for part in modules if isinstance(part, JiT)]
    past = _PAST if positions else _PAST_WITHOUT_POSITIONS
    return Reach(max(min(tokens), 1), past, common, max(images, default=1))
