"""Check an export before its file appears."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from pom_export.api.blaming import fault_hint
from pom_export.api.size_trials import OTHER_VALUES, SizePlan
from pom_export.errors import SEE_CAUSE, InputError
from pom_export.graph.exported_model import PAST_STATE, ExportedModel, TensorSpec, presents
from pom_export.parity import tolerances
from pom_export.parity.candidates import onnxruntime_candidates
from pom_export.parity.case import Array, Case
from pom_export.parity.inputs import make_cases
from pom_export.parity.interface import program_spec
from pom_export.parity.judging import half_notes, judge, own_error_notes, parity_error
from pom_export.parity.module_reference import ModuleReference
from pom_export.parity.precision import rounding_of
from pom_export.parity.recording import recording_path, save_recording
from pom_export.parity.report import Comparison, inconclusive_notes, is_all_zero
from pom_export.parity.splits import split_cases
from pom_export.parity.targets import Targets
from pom_export.parity.verification import PathError
from pom_export.runtime.runners import to_numpy

if TYPE_CHECKING:
    from pom_export.api.source import Source
    from pom_export.graph.program import Program

CASES_AT_EXPORT = 2
_DEPENDS = (
    "Look for what depends on a size, such as padding to a multiple. With dynamic_shapes, Dim('tokens', min=2) says "
    "for which sizes the graph must hold; what is left out is fixed"
)
_OF_CALLS = (
    "Each call is compared with one pass over all tokens: look for what depends on how many tokens there are, or on "
    "values that few tokens have, and for a layer of your own whose stream gives something else than its forward"
)
_OTHER_SIZES = f". At the example's own sizes they agree, not at {{sizes}}. {_DEPENDS}"
_MOST_NAMED = 3
_OTHER_VALUES = (
    ". On the example's own values they agree: look for what depends on a value while the model is traced, and for "
    "rows or tokens that the example has alike"
)


@dataclass(frozen=True)
class Checked:
    """The outcome of the comparison that precedes a file's appearance.

    Attributes:
        paths: the backends whose outputs agree, each with its implementation of the op.
        notes: remarks about the comparison, one line each.
    """

    paths: list[str]
    notes: list[str]


def check(
    exported: ExportedModel, sha256: str, source: Source, program: Program, sizes: SizePlan, samples: int
) -> Checked:
    """Compare the staged file with PyTorch, as `verify` does, and write the parity data.

    A user's own model is compared on its example inputs and at every size of the plan.

    Args:
        exported: the staged file.
        sha256: its hash.
        source: the source of the export.
        program: the program that was traced.
        sizes: the sizes at which to compare a user's own model.
        samples: number of cases to store in the parity data; 0 writes none.

    Raises:
        ParityError: an output differs.
        InputError: a backend fails to run the file.
    """
    cases = cases_for(exported, source, program, sizes)
    compared = len(cases) if source.own_inputs else CASES_AT_EXPORT
    cases = cases[: max(samples, compared)]
    targets = Targets(cases, reference_for(exported, source, program).target)
    if samples:
        save_recording(
            recording_path(exported.path),
            cases[:samples],
            targets[:samples],
            sha256,
            own=source.own_inputs,
        )
    candidates, _ = onnxruntime_candidates(exported)
    if not candidates:
        return Checked([], [])
    tolerance = tolerances.MODELS[exported.precision]
    bounds = tolerances.bounds_of(exported.precision, own=source.own_inputs)
    few = cases[:compared]
    own = _OF_CALLS if source.own_state else _DEPENDS
    hint = f"No file was written. {own if source.own_inputs else SEE_CAUSE}"
    try:
        found = judge(exported, candidates, few, targets, tolerance, bounds, own=source.own_inputs)
    except PathError as error:
        raise PathError(error.what, hint if source.own_inputs else error.hint) from error
    for comparison in found.comparisons:
        if not comparison:
            (worst,) = (case for case in few if case.name == comparison.worst.case)
            why = fault_hint(source, worst.feed, comparison.worst.difference)
            elsewhere = _why_elsewhere(comparison) if source.own_inputs and not source.own_state else ""
            raise parity_error(comparison, why + (f". {_OF_CALLS}" if source.own_state else elsewhere))
    if found.failed:
        raise InputError(found.failed[0], hint)
    notes = [*inconclusive_notes(found.comparisons), *half_notes(exported.precision, targets)]
    notes += own_error_notes(found.comparisons)
    notes += [f"not compared: {reason}" for reason in found.unable]
    return Checked([] if is_all_zero(found.comparisons) else found.paths, notes)


def cases_for(exported: ExportedModel, source: Source, program: Program, sizes: SizePlan, seed: int = 0) -> list[Case]:
    """Return the inputs to compare an export on: a user's own, at several sizes, or random and edge cases.

    Args:
        exported: the file.
        source: the source of the export.
        program: the program that was traced.
        sizes: the sizes at which to compare a user's own model.
        seed: seed of the random inputs.
    """
    if not source.own_inputs:
        return list(make_cases(exported.inputs, exported.limits, seed))
    example = Case("example inputs", {name: to_numpy(tensor) for name, tensor in program.inputs.items()})
    # Without its past, the example of a stateful model is no call.
    every = sizes.cases if source.own_state else [example, *sizes.cases]
    return [_as_taken(exported, case) for case in every]


def reference_for(
    exported: ExportedModel, source: Source, program: Program, *, rounded: bool = True
) -> ModuleReference:
    """Return the reference for an export's outputs: the model as it was given.

    Args:
        exported: the file.
        source: the source of the export.
        program: the program that was traced.
        rounded: whether it also computes what rounding does to the outputs.
    """
    # One pass has no state: what it gives to the calls that follow shows in their outputs.
    kept = presents(exported.inputs) if source.own_state else set()
    names = [spec.name for spec in exported.outputs if spec.name not in kept]
    plain = source.plain() if source.own_inputs else program
    rounding = rounding_of(exported, plain, exported.precision) if rounded else None
    return ModuleReference(plain.module, source.reference(), names, rounding, single=source.own_state)


def _why_elsewhere(comparison: Comparison) -> str:
    """Return a hint for outputs that agree on the example, which is the first case, but not on other cases."""
    if not comparison.cases[0].difference:
        return ""
    failed = [result.case for result in comparison.cases if not result.difference]
    if failed == [OTHER_VALUES]:
        return _OTHER_VALUES
    sizes = [case for case in failed if case != OTHER_VALUES]
    return _OTHER_SIZES.format(sizes=", ".join(sizes[:_MOST_NAMED]))


def _as_taken(exported: ExportedModel, case: Case) -> Case:
    """Convert a case of a user's inputs to the file's input types."""
    return replace(case, feed={spec.name: _as_input(spec, case.feed[spec.name]) for spec in exported.inputs})


def cases_of_calls(program: Program) -> list[Case]:
    """Return the calls on which the file of a user's stateful model is compared with one pass."""
    from pom_export.graph.programs.own_stateful import (
        context_inputs,
        empty_inputs,
        last_token_only,
        token_inputs,
    )

    inputs = {name: to_numpy(tensor) for name, tensor in empty_inputs(program).items()}
    cases = split_cases(inputs, token_inputs(program), context_inputs(program), program.limits)
    # A model that returns only its last token's output gives NaN for the tokens that are not compared.
    return [replace(case, partial=True) for case in cases] if last_token_only(program) else cases


def _as_input(spec: TensorSpec, array: Array) -> Array:
    """Convert an example input to the file's type.

    Raises:
        InputError: a finite value becomes infinite.
    """
    with np.errstate(over="ignore"):
        narrow = array.astype(spec.dtype)
    if array.dtype.kind == "f" and np.isfinite(array).all() and not np.isfinite(narrow.astype(np.float32)).all():
        raise InputError(
            f"example input {spec.name} reaches {np.abs(array).max():.3g}, which is infinite in {spec.dtype}",
            "Scale it, or export with another dtype",
        )
    return narrow


def trial_inputs(source: Source, program: Program, sizes: SizePlan) -> Iterator[Mapping[str, Array]]:
    """Yield the inputs that a float16 file is compared on, by name and in float32."""
    if source.own_inputs:
        if not source.own_state:
            yield {name: to_numpy(tensor) for name, tensor in program.inputs.items()}
        yield from (case.feed for case in sizes.cases)
        return
    specs = [_spec(program, name) for name in program.inputs]
    for case in make_cases(specs, program.limits, seed=0):
        yield {name: _widened(array) for name, array in case.feed.items()}


def _widened(array: Array) -> Array:
    return array.astype(np.float32) if array.dtype == np.float16 else array


def _spec(program: Program, name: str) -> TensorSpec:
    """Describe an input of one of our models as in a float16 file, with names for the dynamic dimensions."""
    spec = program_spec(program, name)
    half = program.inputs[name].is_floating_point() and name != PAST_STATE
    return replace(spec, dtype=np.dtype(np.float16)) if half else spec
