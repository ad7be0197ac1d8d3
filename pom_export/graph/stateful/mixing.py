"""The stateful form of a causal aggregation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from pom_export.contract import DEFAULT_DEGREE, DEFAULT_EPSILON, DEFAULT_ROTARY_BLOCKS
from pom_export.errors import InputError
from pom_export.graph.exported_model import PAST_STATE
from pom_export.graph.refusals import place_of
from pom_export.graph.stateful.kinds import Kind
from pom_export.graph.stateful.run import Run, StatePart
from pom_export.mixer.stateful_op import stateful_polynomial_aggregation

AGGREGATION = torch.ops.pom.polynomial_aggregation.default
_NAMES = ("x", "coefficients", "mask", "mode", "epsilon", "degree", "cos", "sin", "rotary_blocks")
_DEFAULTS = {
    "epsilon": DEFAULT_EPSILON,
    "degree": DEFAULT_DEGREE,
    "cos": None,
    "sin": None,
    "rotary_blocks": DEFAULT_ROTARY_BLOCKS,
}


def given(node: fx.Node) -> dict[str, Any]:
    """Return an aggregation's arguments by name."""
    return {**_DEFAULTS, **dict(zip(_NAMES, node.args, strict=False)), **node.kwargs}


@dataclass(frozen=True)
class Aggregation:
    """A causal aggregation that adds to the sums of earlier tokens.

    Attributes:
        node: the aggregation.
        index: its place among those of the model.
        channels: its width.
    """

    node: fx.Node
    index: int
    channels: int

    @property
    def _name(self) -> str:
        return f"{PAST_STATE}.{self.index}"

    def parts(self) -> Sequence[StatePart]:
        """Return the sums, and what they have lost to rounding."""
        return [StatePart(self._name, (2, self.channels), torch.float32)]

    def run(self, run: Run) -> Tensor:
        """Return the means of all tokens so far."""
        args = given(self.node)
        cos, sin = (_table(run, args[name]) for name in ("cos", "sin"))
        coefficients = None if args["coefficients"] is None else run.constant(args["coefficients"])
        y, run.present[self._name], _ = stateful_polynomial_aggregation(
            run.values[args["x"]],
            coefficients,
            run.mask,
            run.past[self._name],
            run.length,
            "causal",
            args["epsilon"],
            args["degree"],
            cos,
            sin,
            args["rotary_blocks"],
        )
        return y


def _table(run: Run, node: fx.Node | None) -> Tensor | None:
    """Return a table of angles, (B, N, C/2)."""
    if node is None:
        return None
    if run.kinds[node] is not Kind.POSITION:
        return run.values[node]
    return run.of_positions(node).reshape(run.rows, run.tokens, -1)


def aggregation(node: fx.Node, index: int, kinds: Mapping[fx.Node, Kind]) -> Aggregation:
    """Return the stateful form of an aggregation.

    Raises:
        InputError: it is not causal, or masks tokens.
    """
    args = given(node)
    if args["mode"] != "causal":
        raise InputError(
            f"with `stateful`, a token may only depend on earlier ones, but this mixer lets it see all tokens of its "
            f"sequence{place_of(node)}",
            'Call it with mask "causal"',
        )
    if args["mask"] is not None and kinds[args["mask"]] is not Kind.POSITION:
        raise InputError(
            f"with `stateful`, which tokens a mixer sees may not depend on their values{place_of(node)}",
            "Leave padding out of the examples",
        )
    return Aggregation(node, index, int(node.meta["val"].shape[2]))
