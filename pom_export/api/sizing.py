"""Decide which dimensions of a user's own model are dynamic, and at which sizes the export is compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pom_export.api.size_trials import SizePlan, SizeTrial
from pom_export.errors import InputError
from pom_export.graph.claims import Bounds
from pom_export.parity.resizing import AxesByInput

if TYPE_CHECKING:
    from pom_export.api.source import Source
    from pom_export.graph.program import Program
    from pom_export.graph.tracing import Traced


def settle_sizes(source: Source, program: Program, opset: int) -> tuple[Program, Traced, SizePlan]:
    """Trace a user's program with those dimensions dynamic at which the model takes other sizes than the example's.

    Returns:
        The program, with the file's limits; torch's trace of it; and the sizes to compare at.

    Raises:
        InputError: torch could not trace the model, or a dimension that was requested by name can't be dynamic.
    """
    from pom_export.graph.tracing import trace

    first, plain = program, source.plain()
    numbers: dict[tuple[str, int], str] = {}
    while True:
        traced = trace(program, opset)
        numbers = {**{each.where: each.note() for each in traced.numbers}, **numbers}
        _check_asked(program, traced, numbers)
        axes = dict(zip(program.inputs, traced.axes, strict=True))
        trial = SizeTrial(plain.module, plain.inputs, axes, traced.bounds, traced.branches)
        asked = {dimension for dimension in traced.bounds if _is_asked(program, axes, dimension)}
        trial.drop_idle_bounds(traced, program, asked)
        refused = trial.try_all()
        if not refused:
            break
        program = _without(program, trial, refused)
    plan = trial.plan
    plan.notes[:0] = [*_fixed_notes(first, traced), *numbers.values()]
    limits = replace(program.limits, sizes=plan.bounds)
    properties = {**program.properties, **({"limits": limits.to_json()} if plan.bounds else {})}
    return replace(program, limits=limits, properties=properties), traced, plan


def plan_sizes(program: Program, axes: AxesByInput, bounds: Mapping[str, Bounds]) -> SizePlan:
    """Plan the sizes at which to compare a file with a user's program, noting dimensions that it cannot resize.

    Args:
        program: the program, without our mixers in it.
        axes: axes of the file's inputs, by the program's names.
        bounds: smallest and largest size according to the file, for the dimensions that it limits. The largest is
            compared too, since a file may claim more than it can do.
    """
    ends = {name: [high] for name, (_, high) in bounds.items() if high is not None}
    trial = SizeTrial(program.module, program.inputs, axes, bounds, ends)
    trial.plan.notes += [
        f"the dimension {name} was compared at the example's size alone, the reference takes no other: {reason}"
        for name, reason in trial.try_all().items()
    ]
    return trial.plan


def _check_asked(program: Program, traced: Traced, numbers: Mapping[tuple[str, int], str]) -> None:
    """Raise InputError if tracing fixed a dimension that the user requested to be dynamic."""
    from pom_export.graph.dynamic_shapes import is_automatic

    for (name, hints), axes in zip(_hints(program), traced.axes, strict=True):
        for axis, hint in hints.items():
            low, high = traced.bounds.get(str(axes[axis]), (0, None))
            if not is_automatic(hint) and (isinstance(axes[axis], int) or low == high):
                why = f": {note}" if (note := numbers.get((name, axis))) else ""
                raise _asked_but_fixed(name, axis, program.inputs[name].shape[axis], why)


def _asked_but_fixed(name: str, axis: int, size: int, why: str = "") -> InputError:
    return InputError(
        f"dimension {axis} of {name} was asked to be dynamic, but the model fixes it to {size}{why}",
        "Leave it out of dynamic_shapes, or look for what depends on its value",
    )


def _hints(program: Program) -> list[tuple[str, Mapping[int, Any]]]:
    """Return the dynamic dimensions of each input, by axis, in the order of the inputs."""
    return [(name, (program.dynamic_shapes or {}).get(name) or {}) for name in program.inputs]


def _without(program: Program, trial: SizeTrial, refused: Mapping[str, str]) -> Program:
    """Return a program with those dimensions fixed whose other sizes the model refuses.

    Args:
        program: the program.
        trial: the trial that found the refusals.
        refused: the refused dimensions, each with the model's reason.
    """
    from pom_export.graph.dynamic_shapes import is_automatic

    shapes: dict[str, dict[int, Any]] = {}
    for name, hints in _hints(program):
        shapes[name] = dict(hints)
        for axis, hint in hints.items():
            dimension = next((each for each in refused if trial.depends(name, axis, each)), None)
            if dimension is None:
                continue
            if not is_automatic(hint):
                raise _asked_but_fixed(name, axis, program.inputs[name].shape[axis], f": {refused[dimension]}")
            del shapes[name][axis]
    return replace(program, dynamic_shapes=shapes)


def _fixed_notes(first: Program, traced: Traced) -> list[str]:
    fixed = [
        f"dimension {axis} of {name} at {axes[axis]}"
        for (name, hints), axes in zip(_hints(first), traced.axes, strict=True)
        for axis in hints
        if isinstance(axes[axis], int)
    ]
    return [f"fixed in the file: {', '.join(fixed)}; the model, as it was traced, takes no other size"] if fixed else []


def _is_asked(program: Program, axes: AxesByInput, dimension: str) -> bool:
    """Return whether the user specified the sizes of a dimension by name."""
    from pom_export.graph.dynamic_shapes import is_automatic

    return any(
        axes[name][axis] == dimension and not is_automatic(hint)
        for name, hints in _hints(program)
        for axis, hint in hints.items()
    )
