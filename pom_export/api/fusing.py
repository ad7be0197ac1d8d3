"""Rewrite a plain export of PoM to the op, and compare it with the original before the file appears."""

from __future__ import annotations

import logging
import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pom_export.api.progress import Progress, silent
from pom_export.api.side_files import own_side_files
from pom_export.errors import InputError, only_ours
from pom_export.files import check_replaceable, sha256_of, staged_output
from pom_export.graph.exported_model import INLINED, METADATA_PREFIX, ExportedModel, read_model
from pom_export.parity.report import is_all_zero
from pom_export.stages import logged

if TYPE_CHECKING:
    from pom_export.graph.fusing.files import Fused
    from pom_export.parity.observing import Observer
    from pom_export.parity.plain_cases import PlainInputs

_LOG = logging.getLogger(__name__)
_HINT: Final = "No file was written: the original is as it was. Report this"
_NOTHING: Final = "it has no polynomial of clamp(leaky_relu(x)) and no product of GELUs that is averaged over tokens"


_QUANTIZED: Final = (
    "it is quantized, and rounding inside a mixer is no part of the op: fuse the file first, then quantize it"
)


@dataclass(frozen=True)
class FuseResult:
    """The outcome of `fuse`; truthy if anything was fused, and a file written.

    Attributes:
        model: path of the ONNX file; None: there was nothing to fuse, and none was written.
        fused: number of aggregations in standard operators that are nodes of the op now.
        kept: number of nodes of the op that the file had before.
        left: what is almost an aggregation and stays as it is: the name of a node of it, and the reason.
        opset: version of the standard ops.
        inputs: name, dtype and axes of each input.
        outputs: the same for each output.
        bytes: size of the file (and of its external weights, if any).
        sha256: the file's hash.
        checked: backends on which it agrees with the original.
        cases: the inputs on which both were run, by name.
        notes: further remarks, one line each.
    """

    model: str | None
    fused: int
    kept: int
    left: list[dict[str, str]]
    opset: int
    inputs: list[str]
    outputs: list[str]
    bytes: int | None = None
    sha256: str | None = None
    checked: list[str] = field(default_factory=list)
    cases: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return self.fused > 0

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON-serialisable values."""
        return asdict(self)


@only_ours
def fuse(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    optimize: bool = True,
    progress: Progress = silent,
) -> FuseResult:
    """Rewrite a file whose mixers are standard operators, whoever exported it, so that they are nodes of the op.

    The part of the graph that computes an aggregation is recognised by its numbers, not by how it is written. Weights,
    inputs, outputs and metadata stay as they are. Before the file appears, ONNX Runtime runs it and the original on
    random inputs and edge cases of several sizes, with the kernel and with the function, and the outputs must agree.

    Args:
        model: the ONNX file.
        output: path of the new file.
        optimize: whether to rewrite products and gates around the new nodes so that they cost less.
        progress: called with one line per stage; the lines are also logged at level INFO.

    Returns:
        The result. If there was nothing to fuse it is falsy, says why, and no file was written.

    Raises:
        InputError: the file or the output is unusable, or there is nothing to compare the two on.
        ParityError: the outputs differ; no file is written.
        MissingDependencyError: ONNX Runtime is not installed.
    """
    progress = logged(progress, _LOG)
    original = read_model(model)
    sources = [original.path, *original.weights]
    check_replaceable(Path(output), sources)
    progress("looking for aggregations")
    fused, inputs, observer = _fused(original, optimize)
    if not fused.findings.found:
        return _nothing(original, fused)
    with staged_output(output, *sources, stale=lambda: own_side_files(output)) as staged:
        return _written(original, fused, (inputs, observer), staged, os.fspath(output), progress)


def _fused(original: ExportedModel, optimize: bool) -> tuple[Fused, PlainInputs, Observer]:
    """Return the rewritten graph of a file, how to draw its inputs, and what runs the file."""
    import numpy as np
    import onnx

    from pom_export.graph.fusing.files import Observation, fused_graph
    from pom_export.graph.fusing.shapes import Seen
    from pom_export.parity.observing import Observer
    from pom_export.parity.plain_cases import plain_inputs

    drawn: list[tuple[PlainInputs, Observer]] = []

    def observe(proto: onnx.ModelProto) -> Observation:
        observer = Observer(proto, original.path.parent, kernels=bool(original.aggregations))
        inputs, sizes = plain_inputs(original.inputs, proto.graph, observer.values)
        drawn.append((inputs, observer))
        random = np.random.default_rng(0)
        feeds = [(size, inputs.draw(*size, "normal", random)) for size in sizes]
        runs = [Seen(inputs.sizes(*size), observer.values(feed)) for size, feed in feeds]
        return Observation(runs, inputs.same)

    fused = fused_graph(original.path, original.inputs, observe, optimize=optimize)
    inputs, observer = drawn[0]
    return fused, replace(inputs, masks=fused.masks, padding=fused.padding), observer


def _nothing(original: ExportedModel, fused: Fused) -> FuseResult:
    already = f"its {fused.kept} aggregation{'s are nodes' if fused.kept > 1 else ' is a node'} of the op already"
    notes = [] if fused.findings.left else [f"nothing was fused: {already if fused.kept else _NOTHING}"]
    if fused.quantized:
        notes.append(_QUANTIZED)
    return FuseResult(
        model=None,
        fused=0,
        kept=fused.kept,
        left=_left(fused),
        **original.facts() | {"bytes": None},
        notes=notes,
    )


def _left(fused: Fused) -> list[dict[str, str]]:
    return [{"node": node, "reason": reason} for node, reason in fused.findings.left.items()]


def _written(
    original: ExportedModel,
    fused: Fused,
    running: tuple[PlainInputs, Observer],
    staged: Path,
    output: str,
    progress: Progress,
) -> FuseResult:
    """Save a rewritten graph, compare it with the original, and describe it.

    Args:
        original: the file.
        fused: the graph.
        running: how to draw inputs, and what runs the original on them.
        staged: where the new file goes.
        output: its path in the end.
        progress: called with one line per stage.
    """
    from pom_export.graph.saving import save_model
    from pom_export.parity.mixers import compare_mixers, zero_notes
    from pom_export.parity.rewritten import compare_rewritten

    fused.model.metadata_props.pop(METADATA_PREFIX + INLINED, None)
    save_model(fused.model, staged)
    count = len(fused.findings.found)
    rewritten = read_model(staged)
    inputs, observer = running
    cases = list(inputs.cases())
    progress(
        f"{count} aggregation{'s' if count != 1 else ''}; comparing with {original.path.name} on {len(cases)} cases"
    )
    found = compare_rewritten(original, rewritten, cases, unrounded=False)
    usable = [case for case in cases if case.name in found.cases]
    mixers = compare_mixers(observer, staged, usable, rewritten.precision)
    found = replace(found, comparisons=[*found.comparisons, *mixers])
    found.check(original.path, _HINT)
    if is_all_zero(found.comparisons):
        raise InputError(f"{original.path} gives 0 on all inputs that were tried, which proves nothing", _HINT)
    return FuseResult(
        model=output,
        fused=count,
        kept=fused.kept,
        left=_left(fused),
        **rewritten.facts(),
        sha256=sha256_of(staged),
        checked=found.paths,
        cases=list(found.cases),
        notes=[*fused.notes, *found.notes, *zero_notes(mixers)],
    )
