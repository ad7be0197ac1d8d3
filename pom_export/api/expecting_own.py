"""Compute a file's expected outputs with a user's own module or with a torch.export program."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pom_export.api.expecting import Expected, expected_of_ours, targets_of
from pom_export.api.expecting_stateful import expected_of_stateful
from pom_export.api.own_inputs import as_examples, as_taken, specs_of
from pom_export.api.progress import silent
from pom_export.errors import InputError, kind_of
from pom_export.graph.claims import Bounds
from pom_export.graph.exported_model import ExportedModel, TensorSpec
from pom_export.parity.case import Case
from pom_export.parity.inputs import Inputs, case_of, check_sizes
from pom_export.parity.names import Names, match_names
from pom_export.parity.pairs import left_out
from pom_export.parity.precision import judged_precision
from pom_export.runtime.runners import to_numpy

if TYPE_CHECKING:
    from torch import nn

    from pom_export.api.source import Examples, Source
    from pom_export.graph.program import Program
    from pom_export.graph.tracing import Traced


def expected_of_module(
    model: ExportedModel, module: nn.Module, examples: Examples | None, inputs: Inputs | None, seed: int
) -> Expected:
    """Compute a module's outputs in float64: one of our models as from a checkpoint, any other on its example inputs.

    Args:
        model: the file.
        module: the module.
        examples: example inputs for a module that is not one of our models; None: those in `inputs`.
        inputs: a .npz, or arrays by name, to compare on instead.
        seed: seed of the random inputs.

    Raises:
        InputError: the module does not take the inputs, or the file has different ones.
    """
    from pom_export.checkpoint.spec import spec_of

    if not hasattr(module, "forward"):
        raise InputError(f"the module is {kind_of(module)}", "Give an nn.Module")
    if examples is None and spec_of(module) is not None:
        return expected_of_ours(model, module, type(module).__name__, [], inputs, seed)
    if examples is None and inputs is None:
        raise InputError(f"{type(module).__name__} is not one of our models", "Give example_inputs to compare on")
    if model.stateful:
        return expected_of_stateful(model, module, examples, inputs, seed)
    return expected_of_own(model, module, examples, inputs)


def expected_of_own(
    model: ExportedModel,
    source: nn.Module | str | os.PathLike[str],
    examples: Examples | None,
    inputs: Inputs | None,
    hints: Mapping[str, Any] | None = None,
) -> Expected:
    """Compute a module's outputs in float64 on its example inputs, and on the same values at other sizes.

    Args:
        model: the file.
        source: the module, or the path of a torch.export program, which contains its example inputs.
        examples: example inputs for a module, as `export` takes them; None: those in `inputs`.
        inputs: a .npz, or arrays by name, to compare on instead.
        hints: arguments that only apply to checkpoints, and are refused here.

    Raises:
        InputError: the module does not take the inputs, or the file has different ones.
    """
    from pom_export.api.source import load_source
    from pom_export.graph.options import GraphOptions

    if examples is None and inputs is not None and not isinstance(source, (str, os.PathLike)):
        examples = as_examples(case_of(inputs, model.inputs, model.limits))
    loaded = load_source(source, GraphOptions(), example_inputs=examples, hints=hints or {}, progress=silent)
    program = loaded.plain()
    specs = specs_of(program)
    names = match_names(model, "input", model.inputs, specs)
    taken = as_taken(model, specs, names)
    example = {spec.name: to_numpy(program.inputs[spec.name]).astype(spec.dtype) for spec in taken}
    precision, notes = judged_precision(model)
    if inputs is not None:
        cases = [case_of(inputs, taken, model.limits, names)]
        notes += left_out(model, inputs, but=program.inputs)
    else:
        check_sizes("example inputs", example, taken, model.limits)
        cases = [Case("example inputs", example)]
        others, said = _other_sizes(program, taken, model.limits.sizes)
        cases += others
        notes += said
    targets, output_names = targets_of(model, program, loaded.reference(), precision, cases)
    found = Names(names, output_names)
    called = os.fspath(source) if isinstance(source, (str, os.PathLike)) else type(source).__name__
    reference = f"PyTorch in float64, {called}"
    return Expected(
        cases,
        targets,
        reference,
        precision,
        [*found.notes(), *notes],
        found,
        own=True,
        program=program,
        trace=functools.partial(_trace, loaded),
    )


def _trace(source: Source, opset: int) -> tuple[Program, Traced]:
    from pom_export.api.sizing import settle_sizes

    program, traced, _ = settle_sizes(source, source.program(), opset)
    return program, traced


def _other_sizes(
    program: Program, specs: list[TensorSpec], bounds: Mapping[str, Bounds]
) -> tuple[list[Case], list[str]]:
    """Return cases with the example's values at other sizes that the file takes, and notes about them."""
    from pom_export.api.sizing import plan_sizes

    plan = plan_sizes(program, {spec.name: spec.axes for spec in specs}, bounds)
    types = {spec.name: spec.dtype for spec in specs}
    cases = [
        Case(case.name, {name: array.astype(types[name]) for name, array in case.feed.items()}) for case in plan.cases
    ]
    return cases, plan.notes
