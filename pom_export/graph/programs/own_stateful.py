"""The program of a user's causal model that is called repeatedly, each call continuing from a state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.export import Dim

from pom_export.errors import InputError
from pom_export.graph.claims import Bounds
from pom_export.graph.copying import copy_module
from pom_export.graph.exported_model import (
    BATCH,
    CAUSAL,
    PAST_CONTEXT,
    PAST_TOKENS,
    STATEFUL,
    TOKENS,
    InputLimits,
    is_past,
)
from pom_export.graph.outputs import TensorsOnly, free_name, left_out, named_outputs
from pom_export.graph.own_program import Examples, run_on_examples
from pom_export.graph.program import Program
from pom_export.graph.size_bounds import look_up
from pom_export.graph.stateful.last_token import each_prefix
from pom_export.graph.stateful.layers import record_layers, watch_layers
from pom_export.graph.stateful.masks import make_causal, watch_masks
from pom_export.graph.stateful.module import MASK, StatefulModule
from pom_export.graph.stateful.plan import Plan, make_plan
from pom_export.graph.stateful.roles import (
    CONTEXT,
    FIXED,
    POSITIONS,
    STREAM,
    TRIANGLE,
    VALID,
    Roles,
    find_roles,
)
from pom_export.graph.stateful.trace import trace_causal
from pom_export.graph.stateful.values import placeholder_at
from pom_export.mixer import Mixer

_TRACED_PAST = 3
# How many prefixes are compared of a model that returns only its last token's output.
_PREFIXES = 32


def stateful_program(module: nn.Module, examples: Examples, *, masked: bool = False) -> Program:
    """Return the program of a user's causal model with a state.

    Args:
        module: the model, with our mixers in place of the user's; it is changed.
        examples: example inputs by name.
        masked: whether an input marks the valid tokens of each row.

    Raises:
        InputError: the model is not causal, or has a part whose state is not known.
    """
    module.eval()
    roles = roles_of(module, examples)
    if MASK in examples and roles[MASK] in {STREAM, CONTEXT, FIXED}:
        raise InputError(
            f"with `stateful`, {MASK} is the file's own input that marks valid tokens, and the model's is another one",
            f"Rename it, such as src_{MASK}",
        )
    # Run on a copy: whatever a module keeps from a call, such as tables for this length, would be part of the trace.
    tried = copy_module(module)
    with watch_masks(tried) as causal, watch_layers(tried) as layers:
        result = run_on_examples(tried, examples)
    outputs = [name for name in named_outputs(result) if name not in roles.aside]
    for name, part in tried.named_modules():
        if isinstance(part, Mixer) and causal.get(part):
            make_causal(cast("Mixer", module.get_submodule(name)))
    if layers and masked:
        raise InputError(
            f"{layers[0]} keeps a state of its own, which must not take in masked tokens, and can't know them",
            "Leave out `mask='padding'`, and give rows of one length",
        )
    record_layers(module, layers)
    trace = trace_causal(module, examples, roles)
    roles = trace.roles
    plan = make_plan(trace, layers)
    taken = {*examples, *outputs}
    names = tuple(free_name(f"{name}_out", taken) if name in examples else name for name in outputs)
    traced = StatefulModule(plan, names, masked=masked)
    limits = InputLimits(_vocabularies(plan), tokens=plan.most)
    inputs, shapes = _inputs(traced, plan, limits, masked=masked)
    properties = {"mask": "padding" if masked else "causal", STATEFUL: CAUSAL}
    if limits != InputLimits():
        properties["limits"] = limits.to_json()
    return Program(
        traced,
        inputs,
        shapes,
        traced.output_names,
        properties,
        limits,
        notes=(*left_out(result), *_role_notes(roles, examples, kept=bool(plan.contexts.values))),
        stand_ins=plan.trace.stand_ins,
    )


def roles_of(module: nn.Module, examples: Examples) -> Roles:
    """Return what each input of a user's causal model is."""
    return find_roles(examples, lambda feed: run_on_examples(copy_module(module), feed))


def _inputs(
    module: StatefulModule, plan: Plan, limits: InputLimits, *, masked: bool
) -> tuple[dict[str, Tensor], dict[str, dict[int, Any]]]:
    """Return the inputs to trace with, and which of their dimensions are dynamic."""
    traced, roles = plan.trace.inputs, plan.roles
    batch, tokens = Dim(BATCH, min=1), Dim(TOKENS, min=1, max=limits.tokens)
    past_tokens = Dim(PAST_TOKENS, min=1, max=limits.tokens)
    rows = traced[roles.main].shape[0]
    inputs: dict[str, Tensor] = {}
    shapes: dict[str, dict[int, Any]] = {}
    for name in module.inputs:
        inputs[name] = traced[name]
        shapes[name] = {0: batch} if traced[name].dim() and traced[name].shape[0] == rows else {}
        if roles[name] == STREAM:
            shapes[name][1] = tokens
        elif roles[name] == CONTEXT:
            shapes[name][1] = Dim(f"{name}_{TOKENS}", min=1)
    for name, (shape, dtype) in module.past_shapes.items():
        full = [rows, *(_TRACED_PAST if size is None else size for size in shape)]
        inputs[name] = torch.zeros(full, dtype=dtype)
        grows = Dim(f"{name.replace('.', '_')}_{TOKENS}", min=1) if name.startswith(f"{PAST_CONTEXT}.") else past_tokens
        shapes[name] = {0: batch, **{axis + 1: grows for axis, size in enumerate(shape) if size is None}}
    if masked:
        inputs[MASK] = torch.ones(traced[roles.main].shape[:2], dtype=torch.bool)
        shapes[MASK] = {0: batch, 1: tokens}
    return inputs, shapes


def _vocabularies(plan: Plan) -> dict[str, tuple[int, ...]]:
    """Return how many values each input of ids has: the rows of the table that they pick from."""
    found: dict[str, int] = {}
    for node in plan.trace.nodes:
        picked = look_up(node)
        if picked is None or not isinstance(picked.source, fx.Node) or not isinstance(picked.rows, int):
            continue
        name, rows = str(picked.source.target), picked.rows - picked.added
        if picked.source.op == "placeholder" and plan.roles[name] not in {POSITIONS, VALID}:
            found[name] = min(rows, found.get(name, rows))
    return {name: (rows,) for name, rows in found.items()}


def _role_notes(roles: Roles, examples: Examples, *, kept: bool) -> list[str]:
    notes = ["the file gives every token's output, the model only the last token's"] if roles.last else []
    notes += [f"the output {name} does not depend on the tokens and is not in the file" for name in sorted(roles.aside)]
    again = "is given to every call, and what depends on it alone is computed again in each"
    context = "is an input of the first call; what depends on it alone is kept" if kept else again
    for name, role in roles.of.items():
        if role == POSITIONS:
            notes.append(f"{name} is no input of the file: positions count on from past_length")
        elif role == TRIANGLE:
            notes.append(f"{name} is no input of the file: a token sees itself and all before it")
        elif role == VALID:
            notes.append(f"{name} is no input of the file: every token of a call counts")
        elif role == CONTEXT or (role == FIXED and examples[name].dim() > 1):
            notes.append(f"{name} {context if role == CONTEXT else again}")
    return notes


class OnePass(nn.Module):
    """A causal model over all tokens at once, called with the inputs of its stateful form; it ignores the state.

    Args:
        module: the model.
        examples: example inputs by name.
        roles: what each input is.
    """

    def __init__(self, module: nn.Module, examples: Mapping[str, Tensor], roles: Roles) -> None:
        super().__init__()
        self.model = TensorsOnly(module, roles.aside)
        self._examples, self._roles = examples, roles
        self.last_token_only = roles.last

    def forward(self, **inputs: Any) -> tuple[Tensor, ...]:
        """Return the model's outputs; those of masked tokens are NaN."""
        mask = inputs.get(MASK)
        if mask is None or bool(mask.all()):
            return self._prefixes(inputs) if self._roles.last else self._run(inputs)
        rows = [self._row(inputs, row, valid) for row, valid in enumerate(mask)]
        return tuple(map(torch.cat, zip(*rows, strict=True)))

    def _prefixes(self, inputs: Mapping[str, Any]) -> tuple[Tensor, ...]:
        """Return the last token's outputs of many prefixes, in their places."""
        count = inputs[self._roles.main].shape[1]
        lengths = sorted({*range(1, min(count, _PREFIXES) + 1), *range(count, 0, -(count // _PREFIXES + 1))})

        def run(length: int) -> tuple[Tensor, ...]:
            return self._run({**inputs, **{name: inputs[name][:, :length] for name in self._roles.streamed}})

        return each_prefix(iter(lengths), run, count)

    def _row(self, inputs: Mapping[str, Any], row: int, valid: Tensor) -> tuple[Tensor, ...]:
        """Run one row without its masked tokens."""
        count = inputs[self._roles.main].shape[0]
        its = {
            name: tensor[row : row + 1] if tensor.dim() and tensor.shape[0] == count else tensor
            for name, tensor in inputs.items()
            if isinstance(tensor, Tensor)
        }
        its |= {name: its[name][:, valid] for name in self._roles.streamed}
        outputs = []
        for output in self._prefixes(its) if self._roles.last else self._run(its):
            whole = output.new_full((1, len(valid), *output.shape[2:]), torch.nan)
            whole[:, valid] = output
            outputs.append(whole)
        return tuple(outputs)

    def _run(self, inputs: Mapping[str, Any]) -> tuple[Tensor, ...]:
        roles = self._roles
        rows, count = inputs[roles.main].shape[:2]
        feed = {}
        for name, example in self._examples.items():
            if roles[name] == TRIANGLE:
                feed[name] = roles.triangle(name, example, rows, count)
            elif roles[name] in {POSITIONS, VALID}:
                fill, flat = roles.fills.get(name), roles.is_flat(name)
                feed[name] = placeholder_at(roles[name], example, rows, count, fill, flat=flat)
            else:
                feed[name] = inputs[name]
        return self.model(**feed)


def one_pass_program(module: nn.Module, examples: Examples) -> Program:
    """Return the program of a user's causal model over all tokens at once, to compare its stateful form with."""
    module.eval()
    roles = roles_of(module, examples)
    outputs = named_outputs(run_on_examples(copy_module(module), examples))
    names = [name for name in outputs if name not in roles.aside]
    free = tuple(free_name(f"{name}_out", {*examples, *names}) if name in examples else name for name in names)
    streamed = {name: tensor for name, tensor in examples.items() if roles[name] in {STREAM, CONTEXT, FIXED}}
    return Program(OnePass(module, examples, roles), streamed, None, free, prefix="model.model")


def empty_inputs(program: Program) -> dict[str, Tensor]:
    """Return a stateful program's example inputs, with a state without tokens."""
    shapes = program.dynamic_shapes or {}
    found = {}
    for name, tensor in program.inputs.items():
        grows = [axis for axis in shapes.get(name, {}) if axis > 0] if is_past(name) else []
        found[name] = tensor[tuple(slice(0) if axis in grows else slice(None) for axis in range(tensor.dim()))]
    return found


def last_token_only(program: Program) -> bool:
    """Return whether the model of a program, stateful or in one pass, returns only its last token's output."""
    return bool(getattr(program.module, "last_token_only", False))


def context_inputs(program: Program) -> list[str]:
    """Return the inputs of a stateful program that only the first call gets."""
    if not any(name.startswith(f"{PAST_CONTEXT}.") for name in program.inputs):
        return []
    return [name for name in program.inputs if not is_past(name) and _second_axis(program, name) not in {"", TOKENS}]


def with_context_limits(program: Program, bounds: Mapping[str, Bounds]) -> Program:
    """Return a stateful program with the largest sizes of its contexts, such as those of an encoder's positions.

    Args:
        program: the program.
        bounds: the smallest and the largest size of dimensions, as torch traced it.
    """
    dimensions = {_second_axis(program, name) for name in program.inputs if not is_past(name)} - {"", TOKENS}
    # The calls after the first one may have none.
    sizes = {name: (0, high) for name, (_, high) in bounds.items() if name in dimensions and high is not None}
    if not sizes:
        return program
    limits = replace(program.limits, sizes=sizes)
    return replace(program, limits=limits, properties={**program.properties, "limits": limits.to_json()})


def token_inputs(program: Program) -> list[str]:
    """Return the inputs of a stateful program that have an entry for each token of a call."""
    return [name for name in program.inputs if not is_past(name) and _second_axis(program, name) == TOKENS]


def _second_axis(program: Program, name: str) -> str:
    """Return the name of an input's second dimension if it is dynamic."""
    return getattr(((program.dynamic_shapes or {}).get(name) or {}).get(1), "__name__", "")
