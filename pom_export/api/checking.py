"""What an export must pass before its file appears."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from pom_export.api.blaming import fault_hint
from pom_export.api.sizing import SizePlan
from pom_export.errors import InputError, ParityError
from pom_export.files import sha256_of
from pom_export.graph.exported import PAST_STATE, PRECISIONS, ExportedModel, TensorSpec
from pom_export.parity import tolerances
from pom_export.parity.candidates import Candidate, onnxruntime_candidates
from pom_export.parity.case import Array, Case
from pom_export.parity.inputs import make_cases
from pom_export.parity.interface import program_spec
from pom_export.parity.module_reference import ModuleReference
from pom_export.parity.precision import kept_in_single
from pom_export.parity.recording import recording_path, save_recording
from pom_export.parity.report import Comparison
from pom_export.parity.targets import Target
from pom_export.parity.tolerances import Tolerance
from pom_export.parity.verification import PathError, compare
from pom_export.runtime.runners import to_numpy

if TYPE_CHECKING:
    from pom_export.api.source import Source
    from pom_export.graph.program import Program

CASES_AT_EXPORT = 2
_DEPENDS = (
    "Look for what depends on a size, such as padding to a multiple. With dynamic_shapes, Dim('tokens', min=2) says "
    "for which sizes the graph must hold; what is left out is fixed"
)
_OTHER_SIZES = f". At the example's own sizes they agree. {_DEPENDS}"


def check(exported: ExportedModel, source: Source, program: Program, sizes: SizePlan, samples: int) -> list[str]:
    """Compare the staged file with PyTorch; write the parity data; return the backends that were compared.

    A user's own model is compared on the example, and at every size of the plan.
    """
    names = [spec.name for spec in exported.outputs]
    if source.own_inputs:
        example = Case("example inputs", {name: to_numpy(tensor) for name, tensor in program.inputs.items()})
        cases = [_as_taken(exported, case) for case in (example, *sizes.cases)]
        compared = len(cases)
    else:
        compared = CASES_AT_EXPORT
        cases = list(make_cases(exported.inputs, exported.limits, seed=0))[: max(samples, compared)]

    candidates, _ = onnxruntime_candidates(exported)
    recorded = _reference(exported, source, program, names, samples)
    targets = [recorded.target(case) for case in cases] if samples or candidates else []
    if samples:
        save_recording(recording_path(exported.path), cases[:samples], targets[:samples], sha256_of(exported.path))
    tolerance, few = tolerances.MODELS[exported.precision], cases[:compared]
    for candidate in candidates:
        for comparison in _compared(source, few, targets[: len(few)], candidate, tolerance):
            if not comparison:
                (worst,) = (case for case in few if case.name == comparison.worst.case)
                hint = fault_hint(source, worst.feed, tolerance, comparison.worst.difference)
                raise _parity_error(
                    comparison, hint + (_OTHER_SIZES if source.own_inputs and _only_example(comparison) else "")
                )
    return [f"{candidate.backend} {candidate.path}" for candidate in candidates]


def _compared(
    source: Source, cases: Sequence[Case], targets: Sequence[Target], candidate: Candidate, tolerance: Tolerance
) -> list[Comparison]:
    """Return the comparisons of one path.

    Raises:
        PathError: it cannot run the file; of a user's model, with what to look for.
    """
    try:
        return compare(cases, targets, candidate, tolerance)
    except PathError as error:
        if not source.own_inputs:
            raise
        raise PathError(error.what, f"No file was written. {_DEPENDS}") from error


def _reference(
    exported: ExportedModel, source: Source, program: Program, names: Sequence[str], samples: int
) -> ModuleReference:
    """Return what outputs are compared with; of our own architectures, parity data say what rounding does to it."""
    half = samples and exported.precision != PRECISIONS[0] and not source.own_inputs
    exact = kept_in_single(exported, program.module) if half else ()
    precision = exported.precision if half else PRECISIONS[0]
    return ModuleReference(program.module, source.reference(), names, precision, exact)


def _only_example(comparison: Comparison) -> bool:
    """Return whether outputs agree on the example, which is the first case, so that sizes are what matters."""
    return bool(comparison.cases[0].difference)


def _parity_error(comparison: Comparison, hint: str) -> ParityError:
    worst = comparison.worst
    found = worst.difference
    why = f" ({found.reason})" if found.reason else ""
    return ParityError(
        f"{comparison.output} of {comparison.backend} ({comparison.path}) differs from PyTorch by "
        f"{found.max_abs:.3g}{why} on {worst.case}, tolerance {found.tolerance:.3g}",
        hint,
    )


def _as_taken(exported: ExportedModel, case: Case) -> Case:
    """Return a case of a user's inputs in the types that the file takes."""
    return Case(case.name, {spec.name: _as_input(spec, case.feed[spec.name]) for spec in exported.inputs})


def _as_input(spec: TensorSpec, array: Array) -> Array:
    """Return an example as the file takes it.

    Raises:
        InputError: it holds a number that becomes infinite.
    """
    with np.errstate(over="ignore"):
        narrow = array.astype(spec.dtype)
    if array.dtype.kind == "f" and np.isfinite(array).all() and not np.isfinite(narrow.astype(np.float32)).all():
        raise InputError(
            f"example input {spec.name} reaches {np.abs(array).max():.3g}, which is infinite in {spec.dtype}",
            "Scale it, or export in another type",
        )
    return narrow


def trial_inputs(source: Source, program: Program) -> Iterator[Mapping[str, Array]]:
    """Yield, by name and in float32, what a float16 file is compared on; of a user's example, that one alone."""
    if source.own_inputs:
        yield {name: to_numpy(tensor) for name, tensor in program.inputs.items()}
        return
    specs = [_spec(program, name) for name in program.inputs]
    for case in make_cases(specs, program.limits, seed=0):
        yield {name: _widened(array) for name, array in case.feed.items()}


def _widened(array: Array) -> Array:
    return array.astype(np.float32) if array.dtype == np.float16 else array


def _spec(program: Program, name: str) -> TensorSpec:
    """Describe an input of one of our models, whose dynamic dimensions have names, as a float16 file has it."""
    spec = program_spec(program, name)
    half = program.inputs[name].is_floating_point() and name != PAST_STATE
    return replace(spec, dtype=np.dtype(np.float16)) if half else spec
