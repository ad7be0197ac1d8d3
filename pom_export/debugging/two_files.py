"""Compare the modules of a file with those of another file of the same model."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pom_export.debugging.bounds import UNITS, Bound, bound_for
from pom_export.debugging.calls import Call
from pom_export.debugging.locate import Located, few, run_of
from pom_export.debugging.matching import closest, moved_axes, relative_error
from pom_export.debugging.parts import FileParts
from pom_export.debugging.tapping import TappedModel
from pom_export.debugging.walk import Found
from pom_export.errors import InputError, PomExportError
from pom_export.graph.exported_model import ExportedModel
from pom_export.graph.loading import load_graph
from pom_export.graph.module_values import CallValues, ModuleValues
from pom_export.parity.candidates import KERNEL, Candidate, onnxruntime_candidates
from pom_export.parity.case import Array, Arrays, Case
from pom_export.parity.modules import NOT_IN_GRAPH
from pom_export.parity.tolerances import MODULE_NOISE

# How many modules are compared at once: the values of these are in memory together.
_TOGETHER = 128


@dataclass(frozen=True)
class OtherFile:
    """A file to compare with.

    Attributes:
        model: the file.
        graph: its modules.
        candidate: how it is run.
        inputs: its names of inputs, by those of the file that is compared, where they differ.
    """

    model: ExportedModel
    graph: ModuleValues
    candidate: Candidate
    inputs: Mapping[str, str]

    @functools.cached_property
    def parts(self) -> FileParts:
        """The file, loaded to run its modules alone."""
        return FileParts(self.model.path, kernels=self.candidate.path == KERNEL)


def walk_files(
    model: ExportedModel,
    other: ExportedModel,
    cases: Sequence[Case],
    inputs: Mapping[str, str],
    precision: str,
    *,
    rtol: float | None,
    progress: Callable[[str], None],
) -> Located:
    """Compare a file's modules with another's on each backend.

    Args:
        model: the file.
        other: the file that it is compared with.
        cases: inputs to choose from, by the file's names.
        inputs: the other's names of inputs, where they differ.
        precision: the coarser type of the two.
        rtol: the bound on each module's own error; None: from the table of tolerances.
        progress: called with one line per backend.

    Raises:
        InputError: the files have no modules in common, or one can't be run.
    """
    graphs = [ModuleValues(load_graph(each.path)) for each in (model, other)]
    modules = sorted(graphs[0].modules & graphs[1].modules)
    if len(modules) < 2:
        raise InputError(
            f"no node of {model.path} and {other.path} is named after the same module",
            "Compare files that an export wrote, before another tool renames their nodes",
        )
    candidates, not_run = onnxruntime_candidates(model)
    others, _ = onnxruntime_candidates(other)
    if not candidates or not others:
        raise InputError(f"no backend here can run {(model if others else other).path}", "; ".join(not_run))
    compared = OtherFile(other, ModuleValues(load_graph(other.path), modules), others[0], inputs)
    graph = ModuleValues(load_graph(model.path), modules)
    shared = _Shared(graph, compared.graph)
    bound = bound_for(precision, rounds=True, own=False, rtol=rtol)
    runs, failed = [], []
    with TappedModel(other.path, shared.values(1), compared.candidate) as theirs:
        for candidate in candidates:
            progress(f"{candidate.backend} ({candidate.path}): {len(modules)} modules")
            try:
                with TappedModel(model.path, shared.values(0), candidate) as ours:
                    walk = _Walk(model, compared, shared, ours, theirs, bound, UNITS[precision])
                    found = [walk.found(case) for case in few(cases)]
            except InputError as error:
                failed.append(f"{candidate.backend} ({candidate.path}): {error.what}")
                continue
            runs.append(run_of(candidate, found, {"": "the model"}))
    if not runs:
        raise InputError(failed[0], "Check that ONNX Runtime runs both files")
    return Located(runs, failed, not_run)


class _Shared:
    """The modules that both files have, by name, in the order in which they end in the other file."""

    def __init__(self, graph: ModuleValues, other: ModuleValues) -> None:
        order = sorted(other.modules, key=lambda module: _end(other, module))
        self.called = [module for module in order if other.calls(module)]
        self.pairs = {
            module: (ours[0], other.calls(module)[0]) for module in self.called if (ours := graph.calls(module))
        }
        self.children: dict[str, list[str]] = {}
        for module in self.pairs:
            if module:
                self.children.setdefault(_around(module, self.pairs), []).append(module)

    def values(self, file: int) -> set[str]:
        """Return the names of all values that enter and leave the modules in one of the files."""
        return {name for pair in self.pairs.values() for name in (*pair[file].entering, *pair[file].leaving)}


@dataclass(frozen=True)
class _Walk:
    """A comparison of all modules, with both files loaded."""

    model: ExportedModel
    other: OtherFile
    shared: _Shared
    ours: TappedModel
    theirs: TappedModel
    bound: Bound
    unit: float

    def found(self, case: Case) -> dict[Call, Found]:
        """Compare all modules on one case, in the order in which they end in the other file."""
        pairs, children = self.shared.pairs, self.shared.children
        found = {Call(module, 0): Found(reason=NOT_IN_GRAPH) for module in self.shared.called}
        feeds = (_typed(case.feed, self.model, {}), _typed(case.feed, self.other.model, self.other.inputs))
        for chunk in _chunks(pairs):
            values = [
                tapped.run((name for pair in chunk.values() for name in (*pair[i].entering, *pair[i].leaving)), feed)
                for i, (tapped, feed) in enumerate(zip((self.ours, self.theirs), feeds, strict=True))
            ]
            for module, pair in chunk.items():
                compared = _Pair(*pair, values[0], values[1], feeds[1], self.other)
                named = children.get(module, ())
                inner = [pairs[child] for child in named if found[Call(child, 0)].certain]
                inside, complete = _known(inner, *values, entering=False)
                complete = complete and len(inner) == len(named)
                passed, _ = _known(inner, *values, entering=True)
                limit = self.bound(pair[0].own if complete else pair[0].nodes)
                found[Call(module, 0)] = compared.found(inside, passed, limit, self.unit, case.name)
        return found


def _around(module: str, modules: Collection[str]) -> str:
    """Return the innermost of the modules that contains a module."""
    path = module.rpartition(".")[0]
    while path and path not in modules:
        path = path.rpartition(".")[0]
    return path


def _known(
    pairs: Sequence[tuple[CallValues, CallValues]],
    values: Mapping[str, Array],
    others: Mapping[str, Array],
    *,
    entering: bool,
) -> tuple[dict[str, Array], bool]:
    """Return what enters or leaves modules in the first file, by the second's names, and whether all is known."""
    found, complete = {}, True
    for pair in pairs:
        ours, theirs = (part.entering if entering else part.leaving for part in pair)
        made = [values[name] for name in ours if name in values]
        for name in theirs:
            array = closest(made, others[name]) if name in others else None
            complete = complete and array is not None
            if array is not None:
                found[name] = array
    return found, complete


def _end(graph: ModuleValues, module: str) -> tuple[int, int]:
    calls = graph.calls(module)
    last = max((graph.position(node) for call in calls for node in call.nodes), default=-1)
    return last, -module.count(".") - bool(module)


def _chunks(
    pairs: Mapping[str, tuple[CallValues, CallValues]],
) -> Iterator[dict[str, tuple[CallValues, CallValues]]]:
    items = iter(pairs.items())
    while chunk := dict(itertools.islice(items, _TOGETHER)):
        yield chunk


def _typed(feed: Arrays, model: ExportedModel, names: Mapping[str, str]) -> dict[str, Array]:
    """Return inputs by a file's names and in its types."""
    types = {spec.name: spec.dtype for spec in model.inputs}
    renamed = {names.get(name, name): array for name, array in feed.items()}
    return {name: array.astype(types[name]) for name, array in renamed.items()}


@dataclass
class _Pair:
    """One module in both files."""

    ours: CallValues
    theirs: CallValues
    values: Mapping[str, Array]
    others: Mapping[str, Array]
    feed: Arrays
    other: OtherFile

    def found(
        self, inside: Mapping[str, Array], passed: Mapping[str, Array], bound: float, unit: float, case: str
    ) -> Found:
        """Compare the module.

        Args:
            inside: what leaves the modules in it in the first file, by the second's names: these are judged alone.
            passed: what enters them, in the same form.
            bound: on its own error.
            unit: the relative rounding error of a value.
            case: name of the case.
        """
        entering = {name: closest(self._arrays(self.ours.entering), self.others[name]) for name in self.theirs.entering}
        given = {name: array for name, array in entering.items() if array is not None}
        certain = len(given) == len(entering)
        error_in = max((relative_error(array, self.others[name]) for name, array in given.items()), default=None)
        pairs = [
            (array, name)
            for name in self.theirs.leaving
            if (array := closest(self._arrays(self.ours.leaving), self.others[name])) is not None
            and np.isfinite(self.others[name]).any()
        ]
        if not pairs:
            return Found(error_in, reason=NOT_IN_GRAPH)
        error_out = max(relative_error(array, self.others[name]) for array, name in pairs)
        own: Mapping[str, Array] = self.others
        made = {name for node in self.theirs.own for value in node.outputs if (name := value.name)}
        judged = [(array, name) for array, name in pairs if name not in inside]
        judged += [(array, name) for name, array in passed.items() if name in made]
        given |= inside
        names = [name for _, name in judged]
        error = max((relative_error(array, own[name]) for array, name in judged), default=0.0)
        if error > bound:
            try:
                kept = {name: self.others[name] for name in self.theirs.entering}
                own = self.other.parts.run(names, {**kept, **given}, self.feed)
            except PomExportError:
                certain = False
            error = max((relative_error(array, own[name]) for array, name in judged), default=0.0)
        axes = ""
        if error > bound:
            bound = max(bound, MODULE_NOISE * self._noise(names, given, own, unit))
            axes = next((text for array, name in judged if (text := moved_axes(array, own[name], bound))), "")
        return Found(error_in, error_out, error, bound, certain, case, axes=axes)

    def _noise(self, names: Sequence[str], given: Mapping[str, Array], own: Mapping[str, Array], unit: float) -> float:
        random = np.random.default_rng(0)
        moved = {
            name: (array * (1 + unit * random.choice((-1.0, 1.0), array.shape))).astype(array.dtype)
            for name, array in given.items()
        }
        try:
            outputs = self.other.parts.run(names, moved, self.feed)
        except PomExportError:
            return 0.0
        errors = (relative_error(outputs[name], own[name]) for name in names if name in outputs)
        return max((error for error in errors if np.isfinite(error)), default=0.0)

    def _arrays(self, names: Sequence[str]) -> list[Array]:
        return [self.values[name] for name in names if name in self.values]
