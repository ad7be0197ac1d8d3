"""Plan how a stateful model computes each value: token by token, from positions, or with a state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from pom_export.errors import InputError
from pom_export.graph.refusals import place_of
from pom_export.graph.stateful.attention import AttentionFinder
from pom_export.graph.stateful.context import Contexts, find_contexts
from pom_export.graph.stateful.kinds import Kind, belongs_to, find_kinds
from pom_export.graph.stateful.layers import PAST, PRESENT, LayerPast, LayerPresent
from pom_export.graph.stateful.locality import Axes, Locality, agree, clean_axes
from pom_export.graph.stateful.masks import MASKED
from pom_export.graph.stateful.mixing import AGGREGATION, aggregation
from pom_export.graph.stateful.pair_positions import PairPositions
from pom_export.graph.stateful.positions import Positions
from pom_export.graph.stateful.recipes import Recipes
from pom_export.graph.stateful.roles import Roles, mixes_rows
from pom_export.graph.stateful.run import StatePart, Step, no_place, placed
from pom_export.graph.stateful.shapes import shapes_of, token_axis
from pom_export.graph.stateful.trace import CausalTrace
from pom_export.graph.stateful.values import Values
from pom_export.graph.stateful.windows import WindowFinder

_FEWER = 2


@dataclass(frozen=True)
class Plan:
    """How each value is computed.

    Attributes:
        trace: the traced model.
        roles: what each input is.
        kinds: what each value depends on.
        positions: computes functions of the position.
        steps: what depends on earlier tokens.
        skipped: operators that a step includes.
        most: the largest number of tokens that tables of positions allow; None: no limit.
        contexts: what depends on a context alone.
    """

    trace: CausalTrace
    roles: Roles
    kinds: Mapping[fx.Node, Kind]
    positions: Positions
    steps: dict[fx.Node, Step] = field(default_factory=dict)
    skipped: set[fx.Node] = field(default_factory=set)
    most: int | None = None
    contexts: Contexts = field(default_factory=Contexts)

    @property
    def parts(self) -> list[StatePart]:
        """The parts of the state, in order."""
        parts = [part for step in self.steps.values() for part in step.parts()]
        return [*parts, *(value.part() for value in self.contexts.values)]


def make_plan(trace: CausalTrace, layers: Sequence[str] = ()) -> Plan:
    """Plan the stateful form of a causal model.

    Args:
        trace: the traced model.
        layers: names of the user's own stateful layers.

    Raises:
        InputError: something in it mixes tokens in a way that has no state of constant size, or is not causal.
    """
    roles = trace.roles
    planner = _Planner(trace, roles, layers)
    for node in trace.nodes:
        planner.visit(node)
    planner.check_outputs()
    return Plan(
        trace,
        roles,
        planner.kinds,
        planner.positions,
        planner.steps,
        planner.skipped | set(planner.pending),
        planner.most_positions(),
        find_contexts(trace, planner.kinds, roles),
    )


class _Planner:
    def __init__(self, trace: CausalTrace, roles: Roles, layers: Sequence[str]) -> None:
        self.layers, self.roles = layers, roles
        self.trace, self.symbols = trace, trace.symbols
        self.kinds = kinds = find_kinds(trace, roles, layers)
        self.values = values = Values(trace, kinds, roles)
        fewer = Values(trace, kinds, roles, values.tokens - _FEWER)
        self.positions = Positions(kinds, self.symbols, values, fewer)
        self.locality = Locality(self.symbols, kinds, values)
        self.pairs = PairPositions(self.positions, Recipes(self.symbols, kinds, values), values)
        self.attention = AttentionFinder(values, self.pairs)
        self.windows = WindowFinder(trace.nodes, kinds, self.symbols, values)
        self.steps: dict[fx.Node, Step] = {}
        self.skipped: set[fx.Node] = set()
        self.axes: dict[fx.Node, Axes] = {}
        self.counts = {"mixers": 0, "windows": 0, "attention": 0}
        self.used_positions: dict[fx.Node, None] = {}
        # Values of pairs of tokens that no attention has taken yet, and how many tokens each attention allows.
        self.pending: dict[fx.Node, None] = {}
        self.limits: list[int | None] = []

    def visit(self, node: fx.Node) -> None:
        """Decide how a value that depends on tokens is computed."""
        if self.kinds.get(node) is not Kind.TOKENS or node in self.axes or node in self.skipped or node in self.pending:
            return
        if node.op == "placeholder":
            axes: Axes | None = clean_axes(node, self.symbols)
        elif belongs_to(node, self.layers):
            axes = self._in_layer(node)
        elif node.target is MASKED:
            self._check_mask(node)
            axes = clean_axes(node, self.symbols)
        elif node.target is AGGREGATION and node.args[3] != "features":
            axes = self._mixer(node)
        else:
            axes = self.locality.axes(node, self.axes)
            if axes is not None:
                self._check_positions(node)
            elif self.attention.is_pair(node):
                self.pending[node] = None
            elif not self._stateful(node):
                raise self._mixes(node)
        if axes is not None:
            self.axes[node] = axes

    def _in_layer(self, node: fx.Node) -> Axes | None:
        """Take what a stateful layer of the user's computes as it is: the layer vouches for it."""
        if node.target is PAST:
            self.steps[node] = LayerPast(node)
        elif node.target is PRESENT:
            self.steps[node] = LayerPresent(node)
        else:
            self._check_positions(node)
        return clean_axes(node, self.symbols)

    def _mixer(self, node: fx.Node) -> Axes | None:
        axes = clean_axes(node.args[0], self.symbols)  # type: ignore[arg-type]
        if axes is not None and axes[0].index != 1:
            raise mixes_rows(self.roles.main, place_of(node))
        step = aggregation(node, self.counts["mixers"], self.kinds)
        self.counts["mixers"] += 1
        self.steps[node] = step
        for each in node.all_input_nodes:
            if self.kinds[each] is Kind.POSITION:
                self._use_position(each)
        return clean_axes(node, self.symbols)

    def _check_mask(self, node: fx.Node) -> None:
        """Raise InputError unless the mask that a mixer was called with is causal, and depends on positions alone."""
        mask = node.args[1]
        assert isinstance(mask, fx.Node)
        if self.kinds[mask] is Kind.TOKENS:
            raise InputError(
                f"with `stateful`, which tokens a mixer sees may not depend on their values{place_of(node)}",
                "Call it with mask \"causal\", and leave padding to `mask='padding'`",
            )
        matrix = self.kinds[mask] is Kind.POSITION and clean_axes(mask, self.symbols) is None
        if matrix and not self.pairs.is_lower_triangle(mask):
            raise InputError(
                f"with `stateful`, a mixer must see all earlier tokens, but its mask leaves some out{place_of(node)}",
                'Call it with mask "causal"',
            )

    def _stateful(self, node: fx.Node) -> bool:
        attention = self.attention.find(node, self.counts["attention"])
        if attention is not None:
            self.counts["attention"] += attention.has_values
            for each, step in attention.steps.items():
                self.steps.setdefault(each, step)
                self.pending.pop(each, None)
            self.limits.append(attention.most)
            self.axes[node] = [attention.axis] * len(list(shapes_of(node)))
            return True
        window = self.windows.find(node, self.counts["windows"])
        if window is None:
            return False
        self.counts["windows"] += bool(window.past)
        self._add(window, window.nodes)
        return True

    def _add(self, step: Step, nodes: Sequence[fx.Node]) -> None:
        """Add a step that computes the last of some nodes, after everything that it takes."""
        last = nodes[-1]
        inside = set(nodes)
        self.skipped |= inside - {last}
        for each in dict.fromkeys(each for node in nodes for each in node.all_input_nodes):
            if each not in inside:
                self.visit(each)
        self.steps[last] = step
        axes = clean_axes(last, self.symbols)
        assert axes is not None
        self.axes[last] = axes

    def _check_positions(self, node: fx.Node) -> None:
        for each in node.all_input_nodes:
            if self.kinds[each] is Kind.POSITION:
                self._use_position(each)
                self._check_rows(each, node)

    def _check_rows(self, node: fx.Node, consumer: fx.Node) -> None:
        """Raise InputError unless a function of the position can be computed for each row by itself."""
        rows, tokens = self.values.rows, self.values.tokens
        value = self.positions.evaluate(node, torch.arange(tokens).repeat(rows), self.values.__getitem__)
        axis = token_axis(next(shapes_of(node)), self.symbols.tokens)
        split = placed(value, node, axis, consumer, self.symbols, rows, tokens)
        if isinstance(split, Tensor) and not agree(*torch.broadcast_tensors(split, self.values[node])):
            raise no_place(node, consumer) if axis is not None else self._depends_on_count(node, consumer)

    @staticmethod
    def _depends_on_count(node: fx.Node, consumer: fx.Node) -> InputError:
        return InputError(
            f"with `stateful`, a token's result must not depend on how many tokens there are, but "
            f"{str(node.target).removesuffix('.default')} does{place_of(consumer)}",
            "Compute it from the positions alone, or use a fixed number",
        )

    def _use_position(self, node: fx.Node) -> None:
        if node not in self.used_positions and clean_axes(node, self.symbols) is not None:
            self.positions.check(node)
            self.used_positions[node] = None

    def most_positions(self) -> int | None:
        """Return how many positions the tables have."""
        found = [self.positions.most(node) for node in self.used_positions]
        limits = [most for most in (*found, *self.limits, self.trace.most_tokens) if most is not None]
        return min(limits, default=None)

    def check_outputs(self) -> None:
        """Raise InputError unless every output has an entry for each token along its second axis."""
        for node in self.trace.outputs:
            axes = self.axes.get(node)
            shape = node.meta["val"].shape
            if axes is None or axes[0].index != 1 or axes[0].is_merged or len(shape) < 2:
                raise InputError(
                    f"with `stateful`, every output must be (batch, tokens, ...), and one is "
                    f"{'x'.join(map(str, shape))}{place_of(node)}",
                    "Return what has an entry for each token",
                )

    def _mixes(self, node: fx.Node) -> InputError:
        operator = str(node.target).removesuffix(".default")
        return InputError(
            f"with `stateful`, a token's result may depend on others only through causal mixers, causal attention and "
            f"causal convolutions, but {operator} makes it depend on other tokens, or on their number{place_of(node)}",
            "Export without `stateful`, or give the module a state: see pom_export.StatefulLayer",
        )
