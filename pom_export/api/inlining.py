"""Rewrite a model in standard operators, and compare it with the original before the file appears."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from pom_export.api.progress import Progress, silent
from pom_export.api.side_files import check_recording_place, own_side_files
from pom_export.errors import InputError, only_ours
from pom_export.files import sha256_of, staged_output
from pom_export.graph.exported_model import ExportedModel, read_model
from pom_export.parity.inputs import Inputs
from pom_export.parity.recording import Recording, recording_of, recording_path, save_recording
from pom_export.parity.report import is_all_zero
from pom_export.stages import logged

_LOG = logging.getLogger(__name__)
_HINT: Final = "No file was written. Verify the original, and report this if it is right"


@dataclass(frozen=True)
class InlineResult:
    """The outcome of `inline`.

    Attributes:
        model: path of the ONNX file.
        opset: version of the standard ops.
        inlined: number of aggregations that standard operators compute now.
        inputs: name, dtype and axes of each input.
        outputs: the same for each output.
        bytes: size of the file (and of its external weights, if any).
        sha256: the file's hash.
        checked: backends on which it agrees with the original.
        cases: the inputs on which both were run, by name.
        notes: further remarks, one line each.
    """

    model: str
    opset: int
    inlined: int
    inputs: list[str]
    outputs: list[str]
    bytes: int
    sha256: str
    checked: list[str]
    cases: list[str]
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON-serialisable values."""
        return asdict(self)


@only_ours
def inline(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    inputs: Inputs | None = None,
    progress: Progress = silent,
) -> InlineResult:
    """Rewrite an exported model in standard operators, for runtimes that do not expand functions.

    The file has neither functions nor nodes of the custom op. Inputs, outputs, state, limits and metadata are the
    original's, and so are its weights and its parity data. Before it appears, ONNX Runtime runs both files on inputs of
    several sizes, and the outputs must agree.

    Args:
        model: the ONNX file.
        output: path of the new file.
        inputs: a .npz, or arrays by name, to compare on in addition to random ones.
        progress: called with one line per stage; the lines are also logged at level INFO.

    Raises:
        InputError: the file is unusable or has nothing to inline, a function in it does not compute what its node asks
            for, a node is neither a standard operator nor a function, or there is nothing to compare the two on.
        ParityError: the outputs differ; no file is written.
        MissingDependencyError: ONNX Runtime is not installed.
    """
    progress = logged(progress, _LOG)
    original = read_model(model)
    recording = recording_of(original)
    sources = [original.path, *original.weights, recording_path(original.path)]
    sources += [] if inputs is None or isinstance(inputs, Mapping) else [Path(inputs)]
    beside = [recording_path(output)] if recording else []
    with staged_output(output, *sources, beside=beside, stale=lambda: own_side_files(output)) as staged:
        if recording:
            check_recording_place(output)
        result = _written(original, recording, inputs, staged, os.fspath(output), progress)
        if recording:
            save_recording(recording_path(staged), recording.cases, recording.targets, result.sha256, own=recording.own)
        return result


def _written(
    original: ExportedModel,
    recording: Recording | None,
    inputs: Inputs | None,
    staged: Path,
    output: str,
    progress: Progress,
) -> InlineResult:
    """Save an inlined file, compare it with the original, and describe it."""
    from pom_export.graph.inlining import inlined_graph
    from pom_export.graph.saving import save_model
    from pom_export.parity.rewritten import compare_rewritten

    progress("inlining")
    graph, unknown = inlined_graph(original)
    save_model(graph, staged)
    del graph  # may hold large weights
    rewritten = read_model(staged)
    _check_interface(original, rewritten)
    recorded = [replace(case, name=f"{case.name} (recorded)") for case in (recording.cases if recording else ())]
    cases = [*recorded, *_cases(original, inputs)]
    progress(f"comparing with {original.path.name} on {len(cases)} cases")
    found = compare_rewritten(original, rewritten, cases)
    found.check(original.path, _HINT)
    zero = is_all_zero(found.comparisons)
    return InlineResult(
        model=output,
        **rewritten.facts(),
        inlined=rewritten.inlined,
        sha256=sha256_of(staged),
        checked=[] if zero else found.paths,
        cases=list(found.cases),
        notes=[
            *(f"{why}: its function was compared in the model alone" for why in unknown),
            *found.notes,
            *(["the outputs are zero everywhere, which proves nothing"] if zero else []),
        ],
    )


def _cases(model: ExportedModel, inputs: Inputs | None) -> list[Any]:
    """Return the inputs to compare on: random ones, as far as the dimensions' sizes can be chosen, and the user's."""
    from pom_export.parity.inputs import case_of
    from pom_export.parity.trials import trial_cases

    given = [] if inputs is None else [case_of(inputs, model.inputs, model.limits)]
    try:
        return [*trial_cases(model), *given]
    except InputError:
        if not given:
            raise
        return given


def _check_interface(original: ExportedModel, rewritten: ExportedModel) -> None:
    """Raise InputError if inputs, outputs or claims have changed, which would be a fault of ours."""
    before = ([str(spec) for spec in (*original.inputs, *original.outputs)], original.limits, original.stateful)
    after = ([str(spec) for spec in (*rewritten.inputs, *rewritten.outputs)], rewritten.limits, rewritten.stateful)
    if before != after:
        raise InputError(f"inlining {original.path} changed its interface: {after} instead of {before}", "Report this")
