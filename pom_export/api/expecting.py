"""Compute a model's expected outputs: from its checkpoint, or from the parity data saved at export."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from pom_export.api.recovering import find_reference
from pom_export.contract import PRODUCT
from pom_export.errors import CheckpointError, InputError
from pom_export.files import sha256_of
from pom_export.graph.claims import WEIGHTS
from pom_export.graph.exported_model import ExportedModel, presents
from pom_export.graph.module_names import is_inside
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
from pom_export.parity.precision import judged_precision, rounding_of
from pom_export.parity.recording import load_recording, recording_path
from pom_export.parity.targets import Target, Targets
from pom_export.values import is_whole

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pom_export.checkpoint.loading import LoadedModel
    from pom_export.graph.program import Program
    from pom_export.graph.tracing import Traced

# Limits for the longest case: multiplications by weights, values in an output, and attention scores.
_MOST_PRODUCTS = 2**35
_MOST_OUTPUTS = 2**24
_MOST_SCORES = 2**24
# The most values in an output of any case: 1 GiB of float64.
_MOST_NUMBERS = 2**27
# Tokens in the longest case of a model with a longer table of positions. Beyond this, sums in standard ops lose digits.
_LONGEST_TABLE = 16_384
# The longest past. The angles of computed positions lose digits as the positions grow; a model without positions is
# only limited by what float32 can count.
_PAST, _PAST_WITHOUT_POSITIONS = 100_003, 10_000_003
_LARGEST_HINT = 2**31


@dataclass(frozen=True)
class Expected:
    """The expected outputs of a model, case by case, and their origin.

    Attributes:
        cases: the inputs.
        targets: the reference's outputs.
        reference: a description of the reference.
        precision: the type whose tolerance applies.
        notes: further remarks for the reader of a report.
        names: the model's own names of the inputs and outputs.
        own: whether the reference is a user's own module.
        program: the program that computes the outputs, of the model as it was given; None for recorded ones.
        trace: traces that program again as for an export with the given opset, with our mixers in place of the user's.
        weights: for a quantized file: the values that parameters of the program's module have in it, as tensors.
    """

    cases: Sequence[Case]
    targets: Sequence[Target]
    reference: str
    precision: str
    notes: Sequence[str] = ()
    names: Names = SAME_NAMES
    own: bool = False
    program: Program | None = None
    trace: Callable[[int], tuple[Program, Traced]] | None = None
    weights: Mapping[str, Tensor] = field(default_factory=dict)


def expected_of_recording(model: ExportedModel) -> Expected:
    """Return the outputs that were recorded when a model was exported.

    Raises:
        InputError: there is no parity data, or it belongs to another model.
    """
    file = recording_path(model.path)
    recorded = load_recording(file, sha256_of(model.path), model.inputs, model.outputs)
    precision, notes = judged_precision(model)
    for target in recorded.targets:
        # One pass of a user's own model gives no state.
        lacking = presents(model.inputs) - target.outputs.keys() if recorded.own else set()
        given = [spec for spec in model.outputs if spec.name not in lacking]
        check_outputs(replace(model, outputs=given), target.outputs)
    count = len(recorded.cases)
    notes.append(
        f"without `checkpoint`, only the {count} recorded cases were compared, not what the file's metadata claims"
    )
    computed = "PyTorch in float64" if model.claims.quantized is None else "the quantized weights in float32"
    reference = f"{computed}, recorded in {file}"
    return Expected(recorded.cases, recorded.targets, reference, precision, notes, own=recorded.own)


def expected_of_pairs(model: ExportedModel, inputs: Inputs) -> Expected:
    """Return the expected outputs that a user supplies along with the inputs.

    Raises:
        InputError: an input is missing, there is no output, or one does not fit the model.
    """
    given, found = load_pairs(model, inputs)
    precision, notes = judged_precision(model)
    reference = f"the outputs in {'the mapping' if isinstance(inputs, Mapping) else os.fspath(inputs)}"
    notes = [*found, *notes, "only the inputs that were given were compared, not the file's own claims"]
    return Expected(given.cases, given.targets, reference, precision, notes, own=given.own)


def expected_of_checkpoint(
    model: ExportedModel,
    checkpoint: str | os.PathLike[str],
    inputs: Inputs | None,
    seed: int,
    hints: Mapping[str, Any],
) -> Expected:
    """Compare the file's interface with a checkpoint's model, and compute that model's outputs in float64.

    Args:
        model: the file. Only its record of how the checkpoint was exported (mask, state, positions) is used.
        checkpoint: the reference.
        inputs: a .npz of inputs; None: random and edge cases.
        seed: seed of the random inputs.
        hints: arguments of `load_model` other than the path; None: taken from the file, or the set that was exported.

    Raises:
        InputError: the checkpoint is unusable or belongs to another model, or the file's interface or claims do not
            match it.
    """
    loaded, lacking = _load(model, checkpoint, hints)
    notes = [*lacking, *loaded.notes, *_source_notes(model, checkpoint, loaded.sha256)]
    return expected_of_ours(model, loaded.module, f"weights of {checkpoint}", notes, inputs, seed)


def expected_of_ours(
    model: ExportedModel, module: nn.Module, called: str, notes: Sequence[str], inputs: Inputs | None, seed: int
) -> Expected:
    """Compare the file's interface with one of our models, and compute the model's outputs in float64.

    Args:
        model: the file. Only its record of how the model was exported (mask, state, positions) is used.
        module: the model.
        called: a description of the model for the report.
        notes: remarks about the model.
        inputs: a .npz of inputs; None: random and edge cases.
        seed: seed of the random inputs.

    Raises:
        InputError: the file's interface or claims do not match the model.
    """
    from pom_export.graph.reference import Float64Module

    found = find_reference(model, module)
    program, interface = found.program, found.interface
    check_pinned(model, interface, program.limits, _width(program))
    precision, judged = judged_precision(model, _matrix_values(program, model.keep_float32))
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
        cases,
        targets,
        f"PyTorch in float64, {called}{found.variant}",
        precision,
        [*names.notes(), *notes],
        names,
        program=program,
        trace=functools.partial(_trace, program),
    )


def _trace(program: Program, opset: int) -> tuple[Program, Traced]:
    import torch

    from pom_export.graph.copying import copy_module
    from pom_export.graph.tracing import trace

    single = replace(program, module=copy_module(program.module, torch.float32))
    return single, trace(single, opset)


def targets_of(
    model: ExportedModel, program: Program, wide: nn.Module, precision: str, cases: Sequence[Case]
) -> tuple[Targets, dict[str, str]]:
    """Compute a program's outputs for each case, and match the names of its outputs with the file's.

    Args:
        model: the file.
        program: the program.
        wide: its module in float64.
        precision: the type whose tolerance its outputs are compared with.
        cases: the inputs.

    Returns:
        The targets, and the file's names of those outputs that it names differently.

    Raises:
        InputError: the module fails, or its outputs don't fit the file's. This is found before any backend is loaded.
    """
    rounding = rounding_of(model, program, precision)
    reference = ModuleReference(program.module, wide, program.outputs, rounding)

    def compute(case: Case) -> Target:
        target = reference.target(case)
        if not case.cuts:  # the joined outputs of several calls are longer than the file's
            check_outputs(model, target.outputs)
        return target

    targets = Targets(cases, compute)
    return targets, check_outputs(model, targets[0].outputs)


def _source_notes(model: ExportedModel, checkpoint: str | os.PathLike[str], sha256: str) -> list[str]:
    """Note that the weights come from a file other than the one that was exported, or that this is unknown.

    It is no error: the same weights may be saved in many ways.
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
    """Load the checkpoint's model, with a note if the checkpoint lacks the set of weights that was exported."""
    # The exported file provides the hyper-parameters that cannot be inferred from the checkpoint's shapes.
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
    """Load the requested set of weights, else the exported one, else the checkpoint's default."""
    from pom_export.checkpoint import load_model

    if weights is not None or exported is None:
        return load_model(checkpoint, weights=weights, **hints), []
    try:
        return load_model(checkpoint, weights=exported, **hints), []
    except CheckpointError:
        loaded = load_model(checkpoint, **hints)
        return loaded, [f"the model was exported from weights called {exported}, which {checkpoint} does not contain"]


def _degree(model: ExportedModel) -> int | None:
    """Return the degree of a v1 model, which its checkpoint does not contain: from the file's spec, else its nodes."""
    from pom_export.checkpoint.families import V1

    if model.spec:
        v1 = str(model.spec.get("family", "")).startswith(V1)
        return _hint(model.spec.get("config", {}).get("degree")) if v1 else None
    degrees = {attributes.get("degree") for attributes in model.attributes if attributes.get("form") == PRODUCT}
    return _hint(degrees.pop()) if len(degrees) == 1 else None


def _hint(value: Any, least: int = 1) -> int | None:
    """Return a hyper-parameter from the file's spec if it is a usable number.

    The loaded model's spec is compared with the file's afterwards.
    """
    return value if is_whole(value) and least <= value < _LARGEST_HINT else None


def _matrix_values(program: Program, without: Sequence[str] = ()) -> int:
    """Count the values of the weight matrices, without the polynomials' coefficients.

    Args:
        program: the program.
        without: names of modules whose weights are not counted.
    """
    left_out = [f"{program.prefix}.{name}" for name in without]
    return sum(
        matrix.numel()
        for name, matrix in program.module.named_parameters()
        if matrix.dim() > 1 and not name.endswith("po_coeff") and not is_inside(name, left_out)
    )


def _width(program: Program) -> int:
    """Return the largest number of values per token in any input or output."""
    vocabularies = [counts[0] for name, counts in program.limits.values.items() if name == "input_ids"]
    widths = [tensor.shape[-1] for tensor in program.inputs.values() if tensor.is_floating_point()]
    return max([*vocabularies, *widths], default=1)


def _reach(program: Program) -> Reach:
    """Return limits for the cases, so that each takes seconds and no more memory than the rest of the comparison."""
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
