"""Run a user's own model at sizes other than its example's, one dimension at a time."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pom_export.errors import reason_of
from pom_export.graph.claims import Bounds
from pom_export.graph.size_expressions import size_of
from pom_export.parity.case import Array, Case
from pom_export.parity.comparison import difference
from pom_export.parity.resizing import (
    AxesByInput,
    candidate_sizes,
    dimension_sizes,
    meanings,
    other_values,
    resized,
)
from pom_export.parity.tolerances import MODELS
from pom_export.runtime.runners import to_numpy

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pom_export.graph.program import Program
    from pom_export.graph.tracing import Traced

OTHER_VALUES: Final = "other values"
"""The case of other values than the example's."""

# Larger ones would take too long, and too much memory, to compare at.
_LARGEST_TRIED = 2048


@dataclass
class SizePlan:
    """What was found out about the sizes that a model takes.

    Attributes:
        cases: inputs of other sizes than the example's, which the model takes.
        bounds: smallest and largest size of dimensions that the file limits, by name.
        notes: what a user should know of it, a line each.
    """

    cases: list[Case] = field(default_factory=list)
    bounds: dict[str, Bounds] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class SizeTrial:
    """Runs a model at other sizes than its example's, one dimension at a time."""

    def __init__(
        self,
        module: nn.Module,
        inputs: Mapping[str, Tensor],
        axes: AxesByInput,
        bounds: Mapping[str, Bounds],
        branches: Mapping[str, Sequence[int]],
    ) -> None:
        self.module = module
        self.feed = {name: to_numpy(tensor) for name, tensor in inputs.items()}
        self.axes = axes
        self.sizes = dimension_sizes(self.feed, axes)
        # torch takes sizes of 0 and 1 for any others; what matters is where more than one row is needed.
        self.bounds = {name: (low if low > 1 else 0, high) for name, (low, high) in bounds.items()}
        self.branches = branches
        # What the model says of a size of 0, where it does not take it.
        self.none: dict[str, str] = {}
        self.plan = SizePlan()
        outputs = self._run(self.feed)
        self.empty, self.finite = _unusable(outputs), _all_finite(outputs)

    def drop_idle_bounds(self, traced: Traced, program: Program, asked: Collection[str]) -> None:
        """Let dimensions be 1 that torch holds to be 2 or more, where nothing depends on it.

        Its own operators ask whether a size is 1, such as for the order of an image's values in memory.

        Args:
            traced: what torch made of the program.
            program: the program.
            asked: the dimensions whose sizes the user has said.
        """
        for name, (low, high) in self.bounds.items():
            if low == 2 and name not in asked and self._same_at_one(traced, program, name):
                self.bounds[name] = 0, high

    def _same_at_one(self, traced: Traced, program: Program, name: str) -> bool:
        """Return whether what was traced computes what the model does where a dimension is 1."""
        import torch

        feed = resized(self.feed, self.axes, {**self.sizes, name: 1})
        if feed is None or traced.run is None:
            return False
        inputs = {key: torch.from_numpy(np.ascontiguousarray(feed[key])) for key in program.inputs}
        try:
            with torch.no_grad():
                found = traced.run({key: tensor.to(program.inputs[key].dtype) for key, tensor in inputs.items()})
            pairs = list(zip(_tensors(found), self._run(feed), strict=True))
        except Exception:  # noqa: BLE001 (whatever the graph or the model raises)
            return False
        return all(difference(to_numpy(one), to_numpy(other), MODELS["float32"]) for one, other in pairs)

    def depends(self, name: str, axis: int, dimension: str) -> bool:
        """Return whether an axis of an input has another size when a dimension has."""
        before = self.axes[name][axis]
        return size_of(before, self.sizes) != size_of(before, {**self.sizes, dimension: self.sizes[dimension] + 1})

    def try_all(self) -> dict[str, str]:
        """Try every dynamic dimension; return those that the model takes at no other size, and what it said."""
        refused, larger = {}, {}
        for dimension, size in self.sizes.items():
            tried = _Dimension(self, dimension, size)
            tried.run()
            if not tried.taken:
                refused[dimension] = tried.reason
            else:
                larger[dimension] = max(tried.taken)
        if not refused:
            self._together(larger)
            self._other_values()
            self._say_rest()
        return refused

    def attempt(self, changes: Mapping[str, int], name: str) -> str:
        """Run the model at other sizes, and plan a case of them where it takes them; return why it does not."""
        feed = resized(self.feed, self.axes, {**self.sizes, **changes})
        if feed is None:
            return "an axis would have no size"
        reason = ""
        before, after = (max(sizes) for sizes in zip(*((self.sizes[d], n) for d, n in changes.items()), strict=True))
        for given in meanings(feed, before, after):
            try:
                outputs = self._run(given)
            except Exception as error:  # noqa: BLE001 (whatever the model raises)
                reason = reason or reason_of(error)
                continue
            if _unusable(outputs) - self.empty:
                self.plan.notes.append(f"{name} was not compared: an output is empty there, or not finite")
            else:
                self.plan.cases.append(Case(name, given))
            return ""
        return reason

    def _run(self, feed: Mapping[str, Array]) -> list[Any]:
        import torch

        from pom_export.graph.control_flow import without_compiler
        from pom_export.graph.copying import copy_module
        from pom_export.graph.exported_model import nested
        from pom_export.quiet import quiet_failure, quiet_warnings

        tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in feed.items()}
        # Warnings of the mean of too few tokens, say: what comes of it is looked at.
        with torch.no_grad(), without_compiler(), quiet_failure(), quiet_warnings():
            return _tensors(copy_module(self.module)(**nested(tensors)))

    def _together(self, larger: Mapping[str, int]) -> None:
        if len(larger) > 1 and (reason := self.attempt(larger, "other sizes")):
            self.plan.notes.append(f"no other sizes were compared with all dimensions changed at once: {reason}")

    def _other_values(self) -> None:
        """Plan a case that holds other values than the example, at other sizes where the model takes some."""
        feeds = [self.feed, *(case.feed for case in self.plan.cases)]
        feed = next(feed for feed in reversed(feeds) if all(array.size for array in feed.values()) or feed is self.feed)
        reason = ""
        for given in other_values(feed, self.axes):
            try:
                outputs = self._run(given)
            except Exception as error:  # noqa: BLE001 (whatever the model raises)
                reason = reason or reason_of(error)
                continue
            if not self.finite or _all_finite(outputs):
                self.plan.cases.append(Case(OTHER_VALUES, given))
                return
            reason = reason or "an output is not finite"
        self.plan.notes.append(f"only the example's own values were compared: {reason}")

    def attempt_none(self, dimension: str) -> str:
        """Run the model at a size of 0, and plan a case where it gives numbers; return why it gives none."""
        feed = resized(self.feed, self.axes, {**self.sizes, dimension: 0})
        if feed is None:
            return ""
        *_, fitting = meanings(feed, self.sizes[dimension], 0)
        try:
            outputs = self._run(fitting)
        except Exception as error:  # noqa: BLE001 (whatever the model raises)
            return reason_of(error)
        if not _all_finite(outputs):
            return "an output is not finite"
        if _unusable(outputs) <= self.empty:
            self.plan.cases.append(Case(f"{dimension} 0", fitting))
        elif any(output.numel() for output in outputs):
            self.plan.notes.append(f"{dimension} 0 was not compared: an output is empty there")
        return ""

    def _say_rest(self) -> None:
        """Note the limits, and the dimensions of which nothing says how to change them."""
        dynamic = {str(axis) for axes in self.axes.values() for axis in axes if isinstance(axis, str)}
        for axis in sorted(dynamic):
            low, high = self.plan.bounds[axis] = self.bounds.get(axis, (0, None))
            if low or high is not None:
                limits = [f"at least {low}"] * bool(low) + [f"at most {high}"] * (high is not None)
                self.plan.notes.append(f"{axis} must be {' and '.join(limits)}: {self._why(axis, high)}")
            else:
                del self.plan.bounds[axis]
            if size_of(axis, self.sizes) is None:
                self.plan.notes.append(f"the dimension {axis} was compared at the example's size only")

    def _why(self, axis: str, high: int | None) -> str:
        beyond = "beyond, the model takes another branch or a table ends"
        if axis not in self.none:
            return beyond
        return f"at 0 PyTorch fails or gives no numbers ({self.none[axis]})" + (f"; {beyond}" if high else "")


class _Dimension:
    """The sizes of one dimension that were tried."""

    def __init__(self, trial: SizeTrial, name: str, size: int) -> None:
        self.trial, self.name, self.size = trial, name, size
        self.taken: list[int] = []
        self.refused: list[int] = []
        self.reason = ""

    def run(self) -> None:
        """Try the sizes that tell most, and find where the model ends that takes some of them."""
        bounds = self.trial.bounds.get(self.name, (0, None))
        for size in sorted({*candidate_sizes(self.size, bounds), *self._branches(bounds)}):
            self._try(size)
        if max(self.taken, default=0) <= self.size and self._open(bounds):
            for size in (2 * self.size, 3 * self.size):  # a model that takes multiples of something
                if size not in self.refused and (bounds[1] is None or size <= bounds[1]):
                    self._try(size)
        if self.taken and self.refused:
            self._find_end(bounds)
        if self.taken and not bounds[0] and (reason := self.trial.attempt_none(self.name)):
            self.trial.bounds[self.name] = 1, self.trial.bounds.get(self.name, bounds)[1]
            self.trial.none[self.name] = reason

    def _branches(self, bounds: Bounds) -> set[int]:
        """Return the sizes where the model may take another branch; note those that are too large to be tried."""
        low, high = bounds
        sizes = {size for size in self.trial.branches.get(self.name, ()) if low <= size <= (high or size)}
        if large := sorted(size for size in sizes if size > _LARGEST_TRIED):
            self.trial.plan.notes.append(
                f"{self.name} {', '.join(map(str, large))}: not compared, and the model may take another branch there"
            )
        return sizes - set(large) - {self.size}

    def _open(self, bounds: Bounds) -> bool:
        return bounds[1] is None or bounds[1] > self.size

    def _try(self, size: int) -> bool:
        reason = self.trial.attempt({self.name: size}, f"{self.name} {size}")
        if reason and any(self._try_with(other, size) for other in self._as_large()):
            reason = ""
        (self.refused if reason else self.taken).append(size)
        self.reason = self.reason or reason
        return not reason

    def _as_large(self) -> list[str]:
        """Return the other dimensions that are as large in the example: the model may want them to stay so."""
        return [name for name, size in self.trial.sizes.items() if size == self.size and name != self.name]

    def _try_with(self, other: str, size: int) -> bool:
        return not self.trial.attempt({self.name: size, other: size}, f"{self.name} and {other} {size}")

    def _find_end(self, bounds: Bounds) -> None:
        """Find the largest size where every larger one is refused, and note other refusals."""
        fits = max([self.size, *self.taken])
        beyond = min((size for size in self.refused if size > fits), default=None)
        within = sorted(size for size in self.refused if size < fits)
        if beyond is not None:
            while beyond - fits > 1:
                middle = (fits + beyond) // 2
                fits, beyond = (middle, beyond) if self._try(middle) else (fits, middle)
            self.trial.bounds[self.name] = bounds[0], fits
        if within:
            sizes = ", ".join(map(str, sorted({self.size, *self.taken})))
            self.trial.plan.notes.append(
                f"{self.name} was compared at {sizes}; the model refuses {', '.join(map(str, within))}: {self.reason}"
            )


def _tensors(outputs: Any) -> list[Any]:
    import torch
    from torch.utils._pytree import tree_leaves

    return [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, torch.Tensor)]


def _all_finite(outputs: list[Any]) -> bool:
    return all(bool(output.isfinite().all()) for output in outputs if output.is_floating_point())


def _unusable(outputs: list[Any]) -> set[int]:
    """Return which outputs hold nothing that a comparison could say anything about."""
    return {
        index
        for index, output in enumerate(outputs)
        if not output.numel() or (output.is_floating_point() and not output.isfinite().any())
    }
