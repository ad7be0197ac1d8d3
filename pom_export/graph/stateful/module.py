"""The stateful form of a user's model, as a module to run and to trace."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx import traceback

from pom_export.graph.exported_model import PAST_LENGTH, PAST_STATE, present_name
from pom_export.graph.stateful.einsums import run_operator
from pom_export.graph.stateful.kinds import Kind
from pom_export.graph.stateful.masks import MASKED
from pom_export.graph.stateful.plan import Plan
from pom_export.graph.stateful.recipes import SDPA, sdpa_named, written_out
from pom_export.graph.stateful.roles import POSITIONS, TRIANGLE, VALID
from pom_export.graph.stateful.run import Run
from pom_export.graph.stateful.values import arguments, call
from pom_export.models.streaming import advanced

MASK = "mask"


class StatefulModule(nn.Module):
    """Runs a plan on a call's tokens and the state of earlier ones.

    Args:
        plan: the plan.
        names: names of the model's outputs.
        masked: whether it has an input that marks valid tokens.
    """

    def __init__(self, plan: Plan, names: tuple[str, ...], *, masked: bool = False) -> None:
        super().__init__()
        self.model = plan.trace.weights
        self._plan = plan
        self._names = names
        self._masked = masked
        self.last_token_only = plan.roles.last
        sums = [part for part in plan.parts if part.name.startswith(f"{PAST_STATE}.")]
        self._stacked = [part.name for part in sums] if len({part.shape for part in sums}) == 1 else []

    @property
    def past_shapes(self) -> dict[str, tuple[tuple[int | None, ...], torch.dtype]]:
        """The shape for one row and the type of each part of the state; None is the number of earlier tokens."""
        parts = {part.name: (part.shape, part.dtype) for part in self._plan.parts}
        if self._stacked:
            shape, dtype = parts[self._stacked[0]]
            stacked = {PAST_STATE: ((len(self._stacked), *shape), dtype)}
            parts = {**stacked, **{name: part for name, part in parts.items() if name not in self._stacked}}
        return {**parts, PAST_LENGTH: ((), torch.int64)}

    @property
    def forward(self) -> Any:  # type: ignore[override]
        """Run a call; the inputs are those of the model that remain, the state, and the mask if there is one."""

        def forward(**inputs: Any) -> tuple[Tensor, ...]:
            return self._run(inputs)

        names = [*self.inputs, *dict.fromkeys(name.partition(".")[0] for name in self.past_shapes)]
        names += [MASK] if self._masked else []
        parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
        forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return forward

    @property
    def inputs(self) -> list[str]:
        """The model's inputs that are still inputs: neither positions nor masks."""
        roles = self._plan.roles.of
        return [name for name in roles if roles[name] not in {POSITIONS, VALID, TRIANGLE}]

    def _run(self, inputs: Mapping[str, Any]) -> tuple[Tensor, ...]:
        plan = self._plan
        main = inputs[plan.roles.main]
        symbols = plan.trace.symbols
        run = Run(
            plan.kinds,
            symbols,
            plan.positions,
            {symbols.batch: main.shape[0], symbols.tokens: main.shape[1]},
            inputs[PAST_LENGTH],
            inputs.get(MASK),
            self._past(inputs),
        )
        self._note_sizes(run, inputs)
        later = plan.contexts.later
        with traceback.preserve_node_meta():
            self._compute(run, inputs, lambda node: plan.kinds.get(node) is Kind.CONSTANT and node not in later)
            self._keep_contexts(run, inputs)
            self._compute(run, inputs, later.__contains__)
            self._compute(run, inputs, lambda node: plan.kinds.get(node) is Kind.TOKENS and node not in plan.skipped)
        return tuple(run.values[node] for node in plan.trace.outputs) + self._present(run)

    def _compute(self, run: Run, inputs: Mapping[str, Any], wanted: Callable[[fx.Node], bool]) -> None:
        for node in filter(wanted, self._plan.trace.nodes):
            with traceback.set_current_meta(node):
                run.values[node] = self._value(node, run, inputs)

    def _value(self, node: fx.Node, run: Run, inputs: Mapping[str, Any]) -> Any:
        if node.op == "placeholder":
            return inputs[str(node.target)]
        if node.op == "get_attr":
            return self._plan.trace.weight(str(node.target))
        if node.target is MASKED:
            return run.values[node.args[0]]  # type: ignore[index]
        if node in self._plan.steps:
            return self._plan.steps[node].run(run)
        pick = self._plan.contexts.picks.get(node)
        if pick is not None:
            return call(node, lambda each: pick.widened(run.operand(each, node)))
        args, kwargs = arguments(node, lambda each: run.operand(each, node))
        if node.target is SDPA and self._plan.kinds[node] is Kind.CONSTANT:  # an encoder's, which may have no tokens
            return written_out(**sdpa_named(args, kwargs))
        return run_operator(node, run.symbols.batch, args, kwargs)

    def _keep_contexts(self, run: Run, inputs: Mapping[str, Any]) -> None:
        """Put what an earlier call computed from a context in the place of what this one did, unless it has one."""
        values = self._plan.contexts.values
        if not values:
            return
        context = inputs[self._plan.contexts.inputs[0]]
        # The number of its tokens as a tensor: a comparison of sizes would be fixed in a trace.
        given = torch.ones_like(context.flatten(2)[0, :, 0] if context.dim() > 2 else context[0], dtype=torch.int64)
        for value in values:
            used, kept = value.kept(run.values[value.node], run.past[value.name], given.sum() > 0)
            run.values[value.node], run.present[value.name] = used, kept
            if value.grows is not None:
                assert value.symbol is not None
                run.sizes[value.symbol] = used.shape[value.grows]

    def _note_sizes(self, run: Run, inputs: Mapping[str, Any]) -> None:
        for node in self._plan.trace.nodes:
            if node.op == "placeholder" and str(node.target) in inputs:
                for size, symbolic in zip(inputs[str(node.target)].shape, node.meta["val"].shape, strict=True):
                    if isinstance(symbolic, torch.SymInt):
                        run.sizes.setdefault(symbolic.node.expr, size)

    def _past(self, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        past: dict[str, Tensor] = {}
        for name in self.past_shapes:
            group, _, rest = name.partition(".")
            past[name] = inputs[group][rest] if rest else inputs[group]
        if self._stacked:
            past.update(zip(self._stacked, past.pop(PAST_STATE).unbind(1), strict=True))
        return past

    def _present(self, run: Run) -> tuple[Tensor, ...]:
        present = dict(run.present)
        if self._stacked:
            present[PAST_STATE] = torch.stack([present[name] for name in self._stacked], dim=1)
        present[PAST_LENGTH] = advanced(run.length, run.tokens, run.mask)
        return tuple(present[name] for name in self.past_shapes)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs: those of the model, then the next state."""
        return (*self._names, *map(present_name, self.past_shapes))
