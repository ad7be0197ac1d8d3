"""Compare what a runtime computes by its own choice of precision, which may be coarser than the file's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pom_export.graph.exported_model import ExportedModel
from pom_export.parity.candidates import Candidate
from pom_export.parity.case import Case
from pom_export.parity.names import Names
from pom_export.parity.targets import Target
from pom_export.parity.tolerances import Bounds, Growth, Tolerance
from pom_export.parity.verification import PathError, compare
from pom_export.runtime.backend_names import OPENVINO
from pom_export.runtime.openvino import GROUP, HINT, SINGLE, OpenVinoRunner

_TYPES: Final = {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}


def openvino_note(
    model: ExportedModel,
    candidates: Sequence[Candidate],
    cases: Sequence[Case],
    targets: Sequence[Target],
    tolerance: Tolerance,
    bounds: Bounds | Growth | None,
    names: Names,
) -> list[str]:
    """Note how far OpenVINO is off if nobody tells it what to compute in; nothing if it is none of the candidates.

    By default it computes in bfloat16 on processors that have it, whatever the file's types are.

    Args:
        model: the file.
        candidates: the candidates that were compared.
        cases: the inputs.
        targets: the expected outputs, case by case.
        tolerance: the bound on each floating-point output.
        bounds: further bounds in half precision.
        names: the file's names of inputs and outputs.
    """
    its = next((each for each in candidates if each.backend == OPENVINO), None)
    if its is None:
        return []
    runner = OpenVinoRunner(model, None)
    candidate = Candidate(f"{OPENVINO} in its own precision", its.path, runner)
    try:
        found = compare(cases, targets, candidate, tolerance, bounds, names)
    except PathError as error:
        return [f"without {HINT}, {error.what}"]
    kind = _TYPES.get(runner.computes_in, runner.computes_in)
    if runner.computes_in == SINGLE and all(found):
        return [f"without {HINT}, {OPENVINO} computes in {kind} on this processor too"]
    worst = max(found, key=lambda each: each.worst.difference.max_rel)
    far = worst.worst.difference
    setting = f"{GROUP} to 0" if runner.computes_in == SINGLE else f"{HINT} to {SINGLE}"
    verdict = "within tolerance" if all(found) else f"WRONG: set {setting} where you run the file"
    return [
        f"without {HINT}, {OPENVINO} computes in {kind} on this processor: {worst.output} differs by "
        f"{far.max_abs:.2e}, {far.max_rel:.1%} of its largest value, on {worst.worst.case}: {verdict}"
    ]
