"""Cases that random inputs miss: every id and position, the last rows of tables, long pasts, many calls."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from pom_export.graph.exported_model import BATCH, CONTEXT_TOKENS, PAST_TOKENS, TOKENS, InputLimits, TensorSpec, is_past
from pom_export.parity.case import Array, Case
from pom_export.parity.inputs import LONGEST, ComparisonPlan, draw
from pom_export.parity.interface import Interface

LONGER: Final = 4100
"""Tokens in the longest case of a model without a limit: more than the public tables' 4096 positions."""

# After this many tokens, the second float of a state matters: the first one's rounding error is a hundredth of a
# token's features.
_LONG_PAST: Final = 5003
_MOST_CASES: Final = 64
_CALL: Final = 5
_CALLS: Final = 3
_TINY: Final = 1e-3


@dataclass(frozen=True)
class Reach:
    """Limits on the size of cases.

    Attributes:
        tokens: the most tokens that this machine computes in seconds.
        past: tokens before a call, for a model that stores nothing per token.
        common: tokens in the longest of the cases that every export is compared on.
        row: tokens per row of the batch, for a model that fixes them.
    """

    tokens: int
    past: int
    common: int = LONGEST
    row: int = 1


def make_coverage(interface: Interface, limits: InputLimits, reach: Reach, seed: int, *, causal: bool) -> Coverage:
    """Make the cases for a model's inputs, reproducible from the seed, and note what they leave out.

    Args:
        interface: the inputs.
        limits: the reference's limits on them.
        reach: limits on the size of cases.
        seed: seed of the random generator.
        causal: for a stateful model: whether several calls give the same as one pass.
    """
    planner = _Planner(interface, limits, reach, np.random.default_rng([seed, 1]))
    cases = [*planner.values(), *planner.length(), *planner.absent()]
    if any(is_past(spec.name) for spec in interface.specs):
        cases += [*planner.past(), *planner.calls(causal)]
    return Coverage(cases, planner.notes)


@dataclass(frozen=True)
class Coverage:
    """Cases, and notes on what they leave out, one line each."""

    cases: list[Case]
    notes: list[str]


class _Planner:
    def __init__(self, interface: Interface, limits: InputLimits, reach: Reach, random: np.random.Generator) -> None:
        self.interface = interface
        self.specs = interface.pinned_specs()
        self.limits = limits
        self.reach = reach
        self.random = random
        self.notes: list[str] = []
        self.longest = reach.common

    def _draw(self, plan: ComparisonPlan, specs: list[TensorSpec] | None = None) -> dict[str, Array]:
        return draw(self.specs if specs is None else specs, plan, self.limits, self.random)

    def values(self) -> Iterator[Case]:
        """Yield cases that contain every value of the integer inputs, as far as the limits allow."""
        counted = [spec for spec in self.specs if spec.name in self.limits.values]
        if not counted:
            return
        total = max(max(self.limits.values[spec.name]) for spec in counted)
        # One row of many tokens, or many rows if each has a single value.
        a_row = all(spec.axes == (BATCH,) for spec in counted)
        batch = min(total, max(self.reach.tokens // self.reach.row, 1)) if a_row else 1
        tokens = min(total, self.reach.tokens)
        places = min(self._places(spec, batch, tokens) for spec in counted)
        cases = min(-(-total // places), max(self.reach.tokens // (places * self.reach.row), 1), _MOST_CASES)
        names = " and ".join(spec.name for spec in counted)
        if (seen := cases * places) < total:
            self.notes.append(f"{seen} of {total} values of {names} were compared, spread evenly")
        for case in range(cases):
            feed = self._draw(ComparisonPlan("", batch, tokens, tokens, kept=1.0, past=0))
            for spec in counted:
                counts, like = self.limits.values[spec.name], feed[spec.name]
                columns = [_share(count, case, cases, like.size // len(counts)) for count in counts]
                feed[spec.name] = np.stack(columns, -1).reshape(like.shape).astype(spec.dtype)
            yield Case(f"every value of {names}" if seen >= total else f"values of {names}", feed)
        self.longest = max(self.longest, tokens if TOKENS not in self.interface.pinned else 0)

    def _places(self, spec: TensorSpec, batch: int, tokens: int) -> int:
        """Return how many values an input has room for in a case with this many rows and tokens."""
        sizes = {BATCH: batch, TOKENS: tokens, CONTEXT_TOKENS: tokens}
        shape = [axis if isinstance(axis, int) else sizes[axis] for axis in spec.axes]
        return math.prod(shape) // len(self.limits.values[spec.name])

    def length(self) -> Iterator[Case]:
        """Yield a case as long as the model's tables, or longer than any other."""
        if TOKENS in self.interface.pinned or not any(TOKENS in spec.axes for spec in self.specs):
            return
        limit = self.limits.tokens
        tokens = min(LONGER if limit is None else limit, self.reach.tokens)
        if tokens > self.longest:
            yield Case("the longest", self._draw(ComparisonPlan("", 1, tokens, tokens, kept=1.0, past=0)))
        common = self.reach.common
        if limit is not None and max(tokens, common) < limit:
            self.notes.append(f"positions from {max(tokens, common)} to {limit - 1} were not compared")
        elif limit is None and max(tokens, self.longest) <= common:
            self.notes.append(f"sequences of more than {common} tokens were not compared")

    def absent(self) -> Iterator[Case]:
        """Yield a case whose masked tokens are NaN, since a masked token may hold anything.

        The output in such a token's own position is not compared.
        """
        masks = {spec.axes: spec.name for spec in self.specs if spec.dtype == np.bool_}
        tokens = [spec for spec in self.specs if spec.dtype.kind not in "biu" and not is_past(spec.name)]
        masked = {spec.name: masks[spec.axes[:2]] for spec in tokens if spec.axes[:2] in masks}
        if not masked:
            return
        feed = self._draw(ComparisonPlan("", 2, 2 * _CALL, _CALL, kept=0.6))
        for name, mask in masked.items():
            feed[name][~feed[mask]] = np.nan
        yield Case("NaN where the mask leaves tokens out", feed, partial=True)

    def past(self) -> Iterator[Case]:
        """Yield cases that continue from a long past, at the last positions if the positions are limited."""
        grows = any(PAST_TOKENS in spec.axes for spec in self.specs)
        name = "a long past" if self.limits.tokens is None else "the last positions"
        past = self.limits.tokens or (_LONG_PAST if grows else self.reach.past)
        if self.limits.tokens is not None and TOKENS in self.interface.pinned:
            self.notes.append(
                "positions were compared only at the start and the end, because the file fixes its number of tokens"
            )
        for plan in (
            ComparisonPlan(name, 3, _CALL, _CALL, past=past),
            ComparisonPlan(f"{name}, tiny values", 1, 1, 1, _TINY, past=past),
        ):
            if plan.scale == 1.0 or any(spec.dtype.kind not in "biu" and not is_past(spec.name) for spec in self.specs):
                yield Case(plan.name, self._draw(plan))

    def calls(self, causal: bool) -> Iterator[Case]:
        """Yield a case whose tokens come in several calls, each of which gets the state of the previous one."""
        call = self.interface.pinned.get(TOKENS, _CALL)
        tokens = call * _CALLS
        if self.limits.tokens is not None and tokens > self.limits.tokens:
            return
        specs = self.interface.pinned_specs(but=TOKENS)
        axes = {spec.name: spec.axes.index(TOKENS) for spec in specs if TOKENS in spec.axes}
        feed = self._draw(ComparisonPlan("", 2, tokens, tokens, kept=1.0, past=0), specs)
        yield Case(f"{_CALLS} calls, each with the state of the last", feed, (call, 2 * call), axes, causal)


def _share(count: int, case: int, cases: int, places: int) -> Array:
    """Return a case's share of the values below a count, evenly spread if the cases cannot hold all of them."""
    numbers = np.arange(case, places * cases, cases)
    if places * cases >= count:
        return numbers % count
    return np.round(np.linspace(0, count - 1, places * cases)).astype(np.int64)[numbers]
