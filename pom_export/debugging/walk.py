"""Compare every module of a file with PyTorch's, on the inputs that the module has in the file."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

from pom_export.debugging.bounds import Bound
from pom_export.debugging.calls import Again, Call, Repeat
from pom_export.debugging.matching import closest, moved_axes, nearer, relative_error
from pom_export.debugging.reference import WatchedReference
from pom_export.debugging.tapping import Tapped
from pom_export.graph.module_values import CallValues, ModuleValues
from pom_export.parity.case import Array, Case
from pom_export.parity.modules import NOT_IN_GRAPH
from pom_export.parity.tolerances import MODULE_NOISE

if TYPE_CHECKING:
    from torch import Tensor

# The most bytes of inner values that are in memory at once; a larger model is run several times.
_MOST_BYTES: Final = 2**28
_SEED: Final = 20


@dataclass(frozen=True)
class Found:
    """One call of a module on one case; see `ModuleResult` for the errors.

    Attributes:
        error_in: of the inputs.
        error_out: of the outputs; None if none of them is in the graph.
        error: of the outputs, on the file's own inputs.
        tolerance: the bound on `error`.
        certain: whether all inputs were found in the graph, so that `error` is the module's own.
        case: name of the case.
        reason: why there is nothing to compare.
        axes: how the axes of an output differ, if that explains the error.
    """

    error_in: float | None = None
    error_out: float | None = None
    error: float | None = None
    tolerance: float | None = None
    certain: bool = True
    case: str = ""
    reason: str = ""
    axes: str = ""

    @property
    def share(self) -> float:
        """The share of the bound that is used; -1 if nothing was compared."""
        if self.error is None or self.tolerance is None:
            return -1.0
        return self.error / self.tolerance if self.tolerance else (float("inf") if self.error else 0.0)


@dataclass(frozen=True)
class Precision:
    """How exactly modules are computed.

    Attributes:
        bound: returns the bound for a module, given the nodes that compute its outputs.
        unit: the relative rounding error of a value.
        rounded: whether the reference's weights are rounded to half precision too.
    """

    bound: Bound
    unit: float
    rounded: bool


def walk(
    graph: ModuleValues,
    tapped: Tapped,
    reference: WatchedReference,
    case: Case,
    precision: Precision,
    names: Mapping[str, str],
) -> dict[Call, Found]:
    """Compare all modules on one case; the calls are in the order in which they end.

    Args:
        graph: the file's modules.
        tapped: the file, with all values that connect them as outputs.
        reference: the model.
        case: the inputs, for a single call.
        precision: how exactly the file computes.
        names: the file's names of inputs, by the reference's, where they differ.

    Raises:
        InputError: the reference or the file fails.
    """
    listing = _Listing()
    reference.run(case, listing, rounded=precision.rounded)
    feed = {names.get(name, name): array for name, array in case.feed.items()}
    found: dict[Call, Found] = {call: Found(reason=NOT_IN_GRAPH) for call in listing.sizes}
    parts = _parts(graph, listing.sizes)
    for wanted in _groups(listing.sizes, parts):
        values = tapped.run((name for part in wanted.values() for name in (*part.entering, *part.leaving)), feed)
        comparing = _Comparing(wanted, parts.keys(), values, precision, case.name)
        reference.run(case, comparing, rounded=precision.rounded)
        found |= comparing.found
    return found


def values_of(graph: ModuleValues, reference: WatchedReference, case: Case) -> set[str]:
    """Return the names of all values that enter or leave a module's calls."""
    listing = _Listing()
    reference.run(case, listing, rounded=False)
    parts = _parts(graph, listing.sizes).values()
    return {name for part in parts for name in (*part.entering, *part.leaving)}


def _parts(graph: ModuleValues, calls: Sequence[Call] | Mapping[Call, int]) -> dict[Call, CallValues]:
    """Return the part of the graph that each call became, for those that are in it."""
    counts: dict[str, int] = {}
    for call in calls:
        counts[call.module] = max(counts.get(call.module, 0), call.index + 1)
    parts = {module: graph.calls(module, count) for module, count in counts.items()}
    return {call: parts[call.module][call.index] for call in calls if parts[call.module]}


def _groups(sizes: Mapping[Call, int], parts: Mapping[Call, CallValues]) -> Iterator[dict[Call, CallValues]]:
    """Split calls into groups whose values fit into memory together."""
    group: dict[Call, CallValues] = {}
    total = 0
    for call, size in sizes.items():
        if call not in parts:
            continue
        if group and total + size > _MOST_BYTES:
            yield group
            group, total = {}, 0
        group[call] = parts[call]
        total += size
    if group:
        yield group


class _Listing:
    """Lists calls in the order in which they end, with the bytes of their inputs and outputs in float32."""

    def __init__(self) -> None:
        self.sizes: dict[Call, int] = {}
        self._given: dict[Call, int] = {}

    def enter(self, call: Call, given: list[Tensor]) -> list[Tensor | None]:
        if call == Call("", 0):
            self.sizes.clear()
        self._given[call] = sum(tensor.numel() for tensor in given)
        return [None] * len(given)

    def leave(self, call: Call, again: Again, made: list[Tensor]) -> None:  # noqa: ARG002 (not called again)
        self.sizes[call] = 4 * (self._given[call] + sum(tensor.numel() for tensor in made))


@dataclass
class _Given:
    """A call's inputs: the file's, where they were found."""

    tensors: list[Tensor]
    found: list[Tensor | None]
    error: float | None
    certain: bool


@dataclass
class _Comparing:
    """Compares the calls of a run with a file's values, as they happen."""

    wanted: Mapping[Call, CallValues]
    in_graph: Collection[Call]
    values: Mapping[str, Array]
    precision: Precision
    case: str
    found: dict[Call, Found] = field(default_factory=dict)
    _open: dict[Call, _Given] = field(default_factory=dict)
    _around: list[Call] = field(default_factory=list)
    # How far what each open call has passed on to modules in it is from PyTorch's.
    _passed: dict[Call, float] = field(default_factory=dict)

    def enter(self, call: Call, given: list[Tensor]) -> list[Tensor | None]:
        if call not in self.wanted:
            return [None] * len(given)
        self._open[call] = found = self._given(self.wanted[call], given)
        if self._around:
            self._passed[self._around[-1]] = max(self._passed[self._around[-1]], found.error or 0.0)
        self._around.append(call)
        self._passed[call] = 0.0
        return found.found

    def leave(self, call: Call, again: Again, made: list[Tensor]) -> list[Tensor | None] | None:
        if call not in self.wanted:
            return [None] * len(made) if call in self.in_graph else None
        import torch

        self._around.pop()
        given, passed = self._open.pop(call), self._passed.pop(call)
        self.found[call], pairs = self._compared(self.wanted[call], given, again, made, passed)
        known: list[Tensor | None] = [None] * len(made)
        if not self.found[call].certain:
            return known  # its error may be that of what computes its inputs, which the module around it answers for
        for array, index in pairs:
            known[index] = torch.from_numpy(array.astype(np.float64))
        return known

    def _given(self, part: CallValues, given: list[Tensor]) -> _Given:
        import torch

        tensors: list[Tensor] = []
        found: list[Tensor | None] = []
        errors, certain = [], True
        for tensor in given:
            wanted = tensor.detach().numpy()
            array = closest(self._arrays(part.entering), wanted)
            if array is None:
                tensors.append(tensor.detach().clone())
                found.append(None)
                certain = certain and isinstance(tensor, torch.nn.Parameter)
            else:
                tensors.append(torch.from_numpy(array.astype(np.float64)))
                found.append(tensors[-1])
                errors.append(relative_error(array, wanted))
        return _Given(tensors, found, max(errors, default=None), certain)

    def _compared(
        self, part: CallValues, given: _Given, again: Again, made: list[Tensor], passed: float
    ) -> tuple[Found, list[tuple[Array, int]]]:
        """Compare a call's outputs, and what it passes to the modules in it.

        Args:
            part: the part of the graph that the call became.
            given: its inputs.
            again: calls the module again.
            made: its outputs.
            passed: how far the inputs of the modules in it are from PyTorch's.

        Returns:
            What was found, and the file's value for each output, with its place in the result.
        """
        expected = [tensor.detach().numpy() for tensor in made]
        certain, axes = given.certain, ""
        bound = self.precision.bound(part.own if again.complete else part.nodes)
        pairs = self._pairs(part, expected)
        error = error_out = _worst(pairs, expected)
        if error is None:
            return Found(given.error, reason=NOT_IN_GRAPH), []
        # If all of these are PyTorch's, then whatever entered the module, it adds no error that matters.
        if max(error, passed) > bound:
            try:
                repeat = again(given.tensors)
            except Exception:  # noqa: BLE001 (a module may keep something from its first call)
                certain = False
            else:
                own = [tensor.detach().numpy() for tensor in repeat.made]
                pairs = self._pairs(part, own)
                error_out = _worst(pairs, expected)
                both = [(array, own[index]) for array, index in pairs]
                both += [(known.numpy(), tensor.detach().numpy()) for tensor, known in repeat.passed]
                error = max((relative_error(*each) for each in both), default=0.0)
                if error > bound:
                    bound = max(bound, MODULE_NOISE * self._noise(given, again, repeat))
                    axes = next((text for each in both if (text := moved_axes(*each, bound))), "")
        return Found(given.error, error_out, error, bound, certain, self.case, axes=axes), pairs

    def _pairs(self, part: CallValues, wanted: Sequence[Array]) -> list[tuple[Array, int]]:
        """Return the file's value for each tensor of a result that is in the graph, and the tensor's place."""
        plain = self._arrays(part.leaving)
        found = [closest(plain, each) for each in wanted]
        if part.biases:  # which the export has moved from the module into the aggregation
            biased = [self.values[name] + part.biases.get(name, 0) for name in part.leaving if name in self.values]
            found = [nearer(one, closest(biased, each), each) for one, each in zip(found, wanted, strict=True)]
        pairs = ((array, index) for index, array in enumerate(found) if array is not None)
        return [(array, index) for array, index in pairs if np.isfinite(wanted[index]).any()]

    def _noise(self, given: _Given, again: Again, repeat: Repeat) -> float:
        """Return how far rounding the inputs, and what the modules inside return, moves what a module computes."""
        import torch

        generator = torch.Generator().manual_seed(_SEED)

        def moved(tensor: Tensor) -> Tensor:
            signs = torch.randint(0, 2, tensor.shape, generator=generator).mul(2).sub(1)
            return tensor * (1 + self.precision.unit * signs)

        try:
            other = again([moved(tensor) for tensor in given.tensors], moved)
        except Exception:  # noqa: BLE001 (as above)
            return 0.0
        pairs = [*zip(other.made, repeat.made, strict=True)]
        pairs += [(one, two) for (one, _), (two, _) in zip(other.passed, repeat.passed, strict=False)]
        errors = (relative_error(one.detach().numpy(), two.detach().numpy()) for one, two in pairs)
        return max((error for error in errors if np.isfinite(error)), default=0.0)

    def _arrays(self, names: Sequence[str]) -> list[Array]:
        return [self.values[name] for name in names if name in self.values]


def _worst(pairs: Sequence[tuple[Array, int]], wanted: Sequence[Array]) -> float | None:
    return max((relative_error(array, wanted[index]) for array, index in pairs), default=None)
