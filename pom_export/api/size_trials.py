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
"""Name of the case with values other than the example's."""

# Comparing at larger sizes would take too much time and memory.
_LARGEST_TRIED = 2048


@dataclass
class SizePlan:
    """The sizes that a model was found to take.

    Attributes:
        cases: inputs at sizes other than the example's, which the model takes.
        bounds: smallest and largest size of the dimensions that the file limits, by name.
        notes: remarks for the user, one line each.
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
        # torch assumes that sizes 0 and 1 behave like all others, so a lower bound only matters if it is above 1.
        self.bounds = {name: (low if low > 1 else 0, high) for name, (low, high) in bounds.items()}
        self.branches = branches
        # Why the model refuses a size of 0, by dimension.
        self.zero_refusals: dict[str, str] = {}
        self.plan = SizePlan()
        outputs = self._run(self.feed)
        self.empty, self.finite = _unusable(outputs), _all_finite(outputs)

    def drop_idle_bounds(self, traced: Traced, program: Program, asked: Collection[str]) -> None:
        """Allow a size of 1 where torch requires 2 or more, if nothing depends on it.

        torch's own operators check whether a size is 1, for example to choose the memory layout of an image.

        Args:
            traced: torch's trace of the program.
            program: the program.
            asked: the dimensions whose sizes the user has specified.
        """
        for name, (low, high) in self.bounds.items():
            if low == 2 and name not in asked and self._same_at_one(traced, program, name):
                self.bounds[name] = 0, high

    def _same_at_one(self, traced: Traced, program: Program, name: str) -> bool:
        """Return whether the traced program gives the model's outputs when a dimension is 1."""
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
        """Return whether the size of an input's axis changes with a dimension."""
        before = self.axes[name][axis]
        return size_of(before, self.sizes) != size_of(before, {**self.sizes, dimension: self.sizes[dimension] + 1})

    def try_all(self) -> dict[str, str]:
        """Try every dynamic dimension.

        Returns:
            The dimensions that the model takes at no other size, each with the model's reason.
        """
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
            self._note_limits()
        return refused

    def attempt(self, changes: Mapping[str, int], name: str) -> str:
        """Run the model at other sizes. If it takes them, plan a case with them, else return the reason."""
        feed = resized(self.feed, self.axes, {**self.sizes, **changes})
        if feed is None:
            return "an axis would get an invalid size"
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
        # Silences warnings, for example about the mean of too few tokens, because the outputs are checked anyway.
        with torch.no_grad(), without_compiler(), quiet_failure(), quiet_warnings():
            return _tensors(copy_module(self.module)(**nested(tensors)))

    def _together(self, larger: Mapping[str, int]) -> None:
        if len(larger) > 1 and (reason := self.attempt(larger, "other sizes")):
            self.plan.notes.append(f"sizes were not compared with all dimensions changed at once: {reason}")

    def _other_values(self) -> None:
        """Plan a case with values other than the example's, at other sizes if the model takes any."""
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

    def attempt_zero(self, dimension: str) -> str:
        """Run the model at a size of 0. If its outputs are finite, plan a case with it, else return the reason."""
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

    def _note_limits(self) -> None:
        """Note the limits, and the dimensions that could not be varied."""
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
        if axis not in self.zero_refusals:
            return beyond
        return f"at 0 PyTorch fails or gives no numbers ({self.zero_refusals[axis]})" + (f"; {beyond}" if high else "")


class _Dimension:
    """The sizes of one dimension that were tried."""

    def __init__(self, trial: SizeTrial, name: str, size: int) -> None:
        self.trial, self.name, self.size = trial, name, size
        self.taken: list[int] = []
        self.refused: list[int] = []
        self.reason = ""

    def run(self) -> None:
        """Try the most telling sizes. If the model takes only some of them, find where it stops."""
        bounds = self.trial.bounds.get(self.name, (0, None))
        for size in sorted({*candidate_sizes(self.size, bounds), *self._branches(bounds)}):
            self._try(size)
        if max(self.taken, default=0) <= self.size and self._open(bounds):
            for size in (2 * self.size, 3 * self.size):  # the model may only take multiples of something
                if size not in self.refused and (bounds[1] is None or size <= bounds[1]):
                    self._try(size)
        if self.taken and self.refused:
            self._find_end(bounds)
        if self.taken and not bounds[0] and (reason := self.trial.attempt_zero(self.name)):
            self.trial.bounds[self.name] = 1, self.trial.bounds.get(self.name, bounds)[1]
            self.trial.zero_refusals[self.name] = reason

    def _branches(self, bounds: Bounds) -> set[int]:
        """Return the sizes at which the model may take another branch; note those that are too large to try."""
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
        """Return the other dimensions with the same size in the example, which the model may require to stay equal."""
        return [name for name, size in self.trial.sizes.items() if size == self.size and name != self.name]

    def _try_with(self, other: str, size: int) -> bool:
        return not self.trial.attempt({self.name: size, other: size}, f"{self.name} and {other} {size}")

    def _find_end(self, bounds: Bounds) -> None:
        """Find the size above which every size is refused, and note other refusals."""
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
    """Return the indices of outputs that cannot be compared: empty ones, and those without a finite value."""
    return {
        index
        for index, output in enumerate(outputs)
        if not output.numel() or (output.is_floating_point() and not output.isfinite().any())
    }
