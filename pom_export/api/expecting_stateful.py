"""Compute the expected outputs of a user's own stateful model: those of one pass over all tokens."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pom_export.api.expecting import Expected
from pom_export.api.own_inputs import as_examples, as_taken, specs_of
from pom_export.api.progress import silent
from pom_export.graph.exported_model import ExportedModel, TensorSpec, is_past, presents
from pom_export.parity.case import Case
from pom_export.parity.inputs import Inputs, case_of
from pom_export.parity.module_reference import ModuleReference
from pom_export.parity.names import Names, match_names
from pom_export.parity.precision import judged_precision, rounding_of
from pom_export.parity.splits import cuts_of, split_cases
from pom_export.parity.targets import Targets
from pom_export.runtime.runners import to_numpy
from pom_export.runtime.streaming.interface import MASK, StatefulModel, stateful_interface

if TYPE_CHECKING:
    from torch import nn

    from pom_export.api.source import Examples, Source
    from pom_export.graph.program import Program
    from pom_export.graph.tracing import Traced


def expected_of_stateful(
    model: ExportedModel, module: nn.Module, examples: Examples | None, inputs: Inputs | None, seed: int
) -> Expected:
    """Compute a causal module's outputs in float64 in one pass, for sequences that the file gets in several calls.

    Args:
        model: the file, which keeps a state.
        module: the module.
        examples: its example inputs, as `export` takes them; None: those in `inputs`.
        inputs: a .npz, or arrays by name, to compare on instead: whole sequences, which are split into calls.
        seed: seed of the random values and of the calls' lengths.

    Raises:
        InputError: the module does not take the inputs, or the file has different ones.
    """
    from pom_export.api.source import load_source
    from pom_export.graph.options import GraphOptions
    from pom_export.graph.programs.own_stateful import last_token_only

    interface = stateful_interface(model)
    taken = [spec for spec in model.inputs if not is_past(spec.name) and spec.name != MASK]
    if examples is None:
        assert inputs is not None
        examples = as_examples(case_of(inputs, taken, model.limits))
    options = GraphOptions("padding" if interface.mask is not None else None, stateful=True)
    loaded = load_source(module, options, example_inputs=examples, hints={}, progress=silent)
    program = loaded.plain()
    specs = specs_of(program)
    names = Names(match_names(model, "input", taken, specs))
    cases = _cases(interface, program, as_taken(model, specs, names.inputs), names.inputs, inputs, seed)
    if last_token_only(program):
        cases = [replace(case, partial=True) for case in cases]
    outputs = [spec.name for spec in model.outputs if spec.name not in presents(model.inputs)]
    precision, notes = judged_precision(model)
    rounding = rounding_of(model, program, precision)
    reference = ModuleReference(program.module, loaded.reference(), outputs, rounding, single=True)
    return Expected(
        cases,
        Targets(cases, reference.target),
        f"PyTorch in float64, {type(module).__name__} in one pass",
        precision,
        [*names.notes(), *notes, "each call was compared with one pass over all tokens"],
        names,
        own=True,
        program=program,
        trace=functools.partial(_trace, loaded),
    )


def _cases(
    interface: StatefulModel,
    program: Program,
    specs: Sequence[TensorSpec],
    names: Mapping[str, str],
    inputs: Inputs | None,
    seed: int,
) -> list[Case]:
    """Return the sequences to compare on: random ones, or the given ones, in calls of random lengths."""
    feed = _feed(interface, {name: to_numpy(tensor) for name, tensor in program.inputs.items()}, names)
    streamed, contexts = _streamed(interface, feed, names)
    limits = _renamed(interface.file, names)
    if inputs is None:
        return split_cases(feed, streamed, contexts, limits, seed)
    case = case_of(inputs, specs, limits)
    cuts = cuts_of(case.feed[streamed[0]].shape[1], seed)
    axes, once = dict.fromkeys(streamed, 1), dict.fromkeys(contexts, 1)
    return [replace(case, feed=_feed(interface, case.feed, names), cuts=cuts, token_axes=axes, once=once)]


def _trace(source: Source, opset: int) -> tuple[Program, Traced]:
    from pom_export.graph.tracing import trace

    program = source.program()
    return program, trace(program, opset)


def _feed(interface: StatefulModel, arrays: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Return a call's inputs in the file's types: the given ones, a mask that keeps all tokens, and an empty state."""
    types = {spec.name: spec.dtype for spec in interface.file.inputs}
    feed = {name: array.astype(types[names.get(name, name)]) for name, array in arrays.items()}
    ids = next(feed[name] for name in feed if names.get(name, name) == interface.tokens.name)
    if interface.mask is not None:
        feed[MASK] = np.ones(ids.shape[:2], np.bool_)
    return {**feed, **interface.empty(ids.shape[0])}


def _streamed(
    interface: StatefulModel, feed: Mapping[str, Any], names: Mapping[str, str]
) -> tuple[list[str], list[str]]:
    """Return the inputs with an entry for each token, and those that only the first call gets."""
    axes = {spec.name: spec.axes for spec in interface.file.inputs}
    token_axis = interface.tokens.axes[1]
    mine = {name: names.get(name, name) for name in feed if not is_past(name)}
    streamed = [name for name, own in mine.items() if len(axes[own]) > 1 and axes[own][1] == token_axis]
    return streamed, [name for name, own in mine.items() if own in interface.contexts]


def _renamed(model: ExportedModel, names: Mapping[str, str]) -> Any:
    """Return the file's limits by the module's names."""
    ours = {own: name for name, own in names.items()}
    return replace(model.limits, values={ours.get(name, name): counts for name, counts in model.limits.values.items()})
