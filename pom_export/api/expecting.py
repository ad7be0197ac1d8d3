"""What a model's outputs should be: from its checkpoint, or from the parity data saved at export."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pom_export.errors import CheckpointError, InputError
from pom_export.files import sha256_of
from pom_export.graph.claims import WEIGHTS
from pom_export.graph.exported import BLOCK_CAUSAL, ExportedModel
from pom_export.parity.case import Case
from pom_export.parity.coverage import LONGER, Reach, make_coverage
from pom_export.parity.inputs import LONGEST, cases_from_npz, make_cases
from pom_export.parity.interface import (
    check_limits,
    check_outputs,
    check_pinned,
    match_inputs,
    pinned_note,
    program_spec,
)
from pom_export.parity.precision import judged_precision
from pom_export.parity.recording import load_recording, recording_path
from pom_export.parity.targets import Target, Targets
from pom_export.parity.verification import record

if TYPE_CHECKING:
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
    """

    cases: Sequence[Case]
    targets: Sequence[Target]
    reference: str
    precision: str
    notes: Sequence[str] = ()


def expected_of_recording(model: ExportedModel) -> Expected:
    """Return what was recorded when a model was exported.

    Raises:
        InputError: there are no parity data, or they are not of this model.
    """
    file = recording_path(model.path)
    cases, outputs = load_recording(file, sha256_of(model.path), model.inputs, model.outputs)
    precision, notes = judged_precision(model)
    for recorded in outputs:
        check_outputs(model, recorded)
    notes.append(f"without --checkpoint, only the {len(cases)} recorded cases were compared, not the file's own claims")
    targets = [Target(each) for each in outputs]
    return Expected(cases, targets, f"PyTorch in float64, recorded in {file}", precision, notes)


def expected_of_checkpoint(
    model: ExportedModel,
    checkpoint: str | os.PathLike[str],
    inputs: str | os.PathLike[str] | None,
    seed: int,
    weights: str | None = None,
) -> Expected:
    """Return what PyTorch computes in float64 of a checkpoint's weights, after comparing the file's interface with it.

    Args:
        model: the file; it says how the checkpoint was exported (mask, state, positions) and nothing else.
        checkpoint: the reference.
        inputs: a .npz of inputs; None: random and edge cases.
        seed: of the random inputs.
        weights: which of several sets of weights in the checkpoint; default: the one that was exported.

    Raises:
        InputError: the checkpoint is not usable or of another model, or the file's interface or claims are not its.
    """
    from pom_export.graph.reference import Float64Module

    loaded, lacking = _load(model, checkpoint, weights)
    program = _program(model, loaded)
    interface = match_inputs(model, [program_spec(program, name) for name in program.inputs])
    check_pinned(model, interface, program.limits, _width(program))
    precision, notes = judged_precision(model, _matrix_values(program))
    notes = [
        *lacking,
        *loaded.notes,
        *_source_notes(model, checkpoint, loaded.sha256),
        *notes,
        *check_limits(model, program.limits),
    ]
    notes += pinned_note(interface)
    if inputs is None:
        reach = _reach(program)
        cases = list(make_cases(interface.pinned_specs(), program.limits, seed, reach.common))
        causal = model.stateful != BLOCK_CAUSAL
        further = make_coverage(interface, program.limits, reach, seed, causal=causal)
        cases += further.cases
        notes += further.notes
    else:
        cases = cases_from_npz(inputs, interface.pinned_specs(), program.limits)
    reference = Float64Module(program.module)

    def compute(case: Case) -> Target:
        outputs = record(reference, program.outputs, case)
        check_outputs(model, outputs)
        return Target(outputs)

    targets = Targets(cases, compute)
    _ = targets[0]  # an interface of its own is found before any backend is loaded
    return Expected(cases, targets, f"PyTorch in float64, weights of {checkpoint}{_told(model)}", precision, notes)


def _told(model: ExportedModel) -> str:
    """Return what the reference was told of the export, for the report."""
    told = [f"mask {model.properties['mask']}"] if model.properties.get("mask") else []
    told += [f"state {model.stateful}"] if model.stateful else []
    return f" ({', '.join(told)})" if told else ""


def _source_notes(model: ExportedModel, checkpoint: str | os.PathLike[str], sha256: str) -> list[str]:
    """Say when the weights come from another file than the model's: the same ones may be saved in many ways."""
    exported_from = model.properties.get("source_sha256", sha256)
    if sha256 == exported_from:
        return []
    return [
        f"{checkpoint} is not the file that was exported: sha256 {sha256[:12]}, the model's is {exported_from[:12]}"
    ]


def _load(
    model: ExportedModel, checkpoint: str | os.PathLike[str], weights: str | None
) -> tuple[LoadedModel, list[str]]:
    """Return the checkpoint's model, and what to say where it lacks the set of weights that was exported."""
    from pom_export.checkpoint.spec import V1

    # What a checkpoint's shapes don't tell, the exported file does.
    config = model.spec.get("config", {})
    v1 = str(model.spec.get("family", "")).startswith(V1)
    hints: dict[str, Any] = {"heads": _hint(config.get("attention_heads"))}
    if v1:
        hints["degree"] = _hint(config.get("degree"))
    if config.get("in_context_len"):
        hints["in_context_start"] = _hint(config.get("in_context_start"), least=0)
    try:
        loaded, notes = _load_set(checkpoint, weights, model.properties.get(WEIGHTS), hints)
    except CheckpointError as error:
        was = f"a {model.spec.get('architecture', 'model')} of family {model.spec.get('family', 'unknown')}"
        raise InputError(
            f"{checkpoint} does not fit the model, which was exported from {was}: {error.what}",
            "Name the checkpoint that was exported",
        ) from error
    if model.properties.get("spec") != loaded.spec.to_json():
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


def _hint(value: Any, least: int = 1) -> int | None:
    """Return a hyper-parameter that the file's spec gives; the loaded model's spec is compared with it afterwards."""
    return value if isinstance(value, int) and not isinstance(value, bool) and least <= value < _LARGEST_HINT else None


def _program(model: ExportedModel, loaded: LoadedModel) -> Program:
    from pom_export.graph.program import GraphOptions
    from pom_export.graph.programs import program_of

    names = {spec.name for spec in model.inputs}
    options = GraphOptions(
        model.properties.get("mask") or None,
        "context" in names,
        "positions" in names,
        stateful=bool(model.stateful),
        block_causal=model.stateful == BLOCK_CAUSAL,
    )
    return program_of(loaded.module, options)


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
