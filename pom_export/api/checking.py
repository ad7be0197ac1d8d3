"""What an export must pass before its file appears."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from pom_export.api.blaming import fault_hint
from pom_export.api.progress import Progress
from pom_export.errors import InputError, ParityError
from pom_export.files import sha256_of
from pom_export.graph.exported import PAST_STATE, ExportedModel, TensorSpec
from pom_export.parity import tolerances
from pom_export.parity.candidates import onnxruntime_candidates
from pom_export.parity.case import Array, Case
from pom_export.parity.inputs import cases_from_example, make_cases
from pom_export.parity.interface import program_spec
from pom_export.parity.recording import recording_path, save_recording
from pom_export.parity.report import Comparison
from pom_export.parity.targets import Target
from pom_export.parity.verification import compare, record
from pom_export.runtime.runners import run_module, to_numpy

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pom_export.api.source import Source
    from pom_export.graph.program import Program

_CASES_AT_EXPORT = 2


def check(exported: ExportedModel, source: Source, program: Program, samples: int, progress: Progress) -> list[str]:
    """Compare the staged file with PyTorch; write the parity data; return the backends that were compared."""
    names = [spec.name for spec in exported.outputs]
    reference = source.reference()
    if source.own_inputs:
        feed = {spec.name: _as_input(spec, program.inputs[spec.name]) for spec in exported.inputs}
        example, *others = cases_from_example(feed, exported.inputs)
        cases = [example, *(case for case in others if _runs(reference, case))]
        if len(cases) <= len(others):
            progress("other sizes than the example's were not compared: the model itself does not take them")
    else:
        cases = list(make_cases(exported.inputs, exported.limits, seed=0))
    cases = cases[: max(samples, _CASES_AT_EXPORT)]

    candidates, _ = onnxruntime_candidates(exported)
    outputs = [record(reference, names, case) for case in cases] if samples or candidates else []
    if samples:
        save_recording(recording_path(exported.path), cases[:samples], outputs[:samples], sha256_of(exported.path))
    tolerance, few = tolerances.MODELS[exported.precision], cases[:_CASES_AT_EXPORT]
    for candidate in candidates:
        for comparison in compare(few, [Target(each) for each in outputs], candidate, tolerance):
            if not comparison:
                (worst,) = (case for case in few if case.name == comparison.worst.case)
                raise _parity_error(comparison, fault_hint(source, worst.feed, tolerance, comparison.worst.difference))
    return [f"{candidate.backend} {candidate.path}" for candidate in candidates]


def _parity_error(comparison: Comparison, hint: str) -> ParityError:
    worst = comparison.worst
    found = worst.difference
    why = f" ({found.reason})" if found.reason else ""
    return ParityError(
        f"{comparison.output} of {comparison.backend} ({comparison.path}) differs from PyTorch by "
        f"{found.max_abs:.3g}{why} on {worst.case}, tolerance {found.tolerance:.3g}",
        hint,
    )


def _as_input(spec: TensorSpec, tensor: Tensor) -> Array:
    """Return an example as the file takes it.

    Raises:
        InputError: it holds a number that becomes infinite.
    """
    array = to_numpy(tensor)
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


def check_dynamic(program: Program, exported: ExportedModel) -> None:
    """Raise InputError where the user asked for a dynamic dimension and tracing made it a number."""
    from torch.export import Dim

    axes = {spec.name: spec.axes for spec in exported.inputs}
    for name, dimensions in (program.dynamic_shapes or {}).items():
        for axis, asked in dimensions.items() if isinstance(dimensions, dict) else enumerate(dimensions or ()):
            if isinstance(asked, Dim) and isinstance(axes.get(name, ())[axis], int):
                raise InputError(
                    f"dimension {axis} of {name} was asked to be dynamic, but the model fixes it to {axes[name][axis]}",
                    "Leave it out of dynamic_shapes, or look for what depends on its value",
                )


def _runs(reference: nn.Module, case: Case) -> bool:
    """Return whether a user's model takes a case of other sizes than the example's; it may know why not."""
    try:
        run_module(reference, case.feed)
    except Exception:  # noqa: BLE001 (whatever the model raises)
        return False
    return True
