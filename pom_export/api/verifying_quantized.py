"""Verify a quantized file: its outputs with what it should compute, and its products one by one."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

from pom_export.api.expecting import Expected
from pom_export.api.expecting_quantized import QuantizedFile, name_of
from pom_export.api.progress import Progress
from pom_export.debugging.quantized_products import Computed, chosen_cases, compare_products
from pom_export.engine.given import given_engine
from pom_export.graph.claims import QuantizedClaim
from pom_export.graph.exported_model import ExportedModel, is_past
from pom_export.graph.quantized.reading import FLOAT32
from pom_export.graph.quantized.unrounded import unrounded
from pom_export.parity.candidates import onnxruntime_candidates
from pom_export.parity.case import Arrays, Case
from pom_export.parity.quantized.fused import FusedResult, compare_fused
from pom_export.parity.quantized.report import Distance, ProductResult, QuantizedReport
from pom_export.parity.report import Comparison, ParityReport
from pom_export.parity.tolerances import MODELS
from pom_export.parity.verification import compare
from pom_export.runtime.session import inference_session

_UNROUNDED: Final = "float32 activations"
_NOTE: Final = (
    "the file rounds activations: outputs were compared without that, in a copy with the same weights, and what each "
    "product makes of its rounded activations with the same rounding in float64"
)
_NOT_REACHED: Final = "no finite activations reach it on the cases that were compared, which proves nothing"


def engine_to_compare(
    engine: str | os.PathLike[str] | None, model: ExportedModel, quantized: QuantizedFile | None
) -> tuple[str | os.PathLike[str] | None, list[str]]:
    """Return the engine to compare at float32's tolerances, and why not if it is none: it rounds activations too.

    Raises:
        InputError: it is not an engine of the file.
    """
    if engine is None or quantized is None or not quantized.rounds:
        return engine, []
    given_engine(engine, model)
    return None, [f"tensorrt: the file rounds activations, and {os.fspath(engine)} does so in its own way"]


@contextmanager
def to_compare(model: ExportedModel, quantized: QuantizedFile | None) -> Iterator[ExportedModel]:
    """Yield the file whose outputs are compared at float32's tolerances: a copy if the model rounds activations.

    Args:
        model: the file.
        quantized: its quantized products; None: it has none.
    """
    if quantized is None or not quantized.rounds:
        yield model
        return
    with unrounded(model) as copy:
        yield copy


def with_products(
    report: ParityReport, model: ExportedModel, quantized: QuantizedFile, progress: Progress
) -> ParityReport:
    """Add to a report what was found about a file's quantized products.

    Args:
        report: the comparison of the outputs, from the file of `to_compare`.
        model: the file itself.
        quantized: its products.
        progress: called with one line per stage.

    Raises:
        InputError: ONNX Runtime fails on the file.
    """
    expected = quantized.expected
    computed: dict[str, Computed] = {}
    comparisons, notes = report.comparisons, [*report.notes]
    candidates, _ = onnxruntime_candidates(model)
    if quantized.rounds:
        progress(f"{candidates[0].backend}: {len(quantized.products)} products, with the file's rounding")
        cases = chosen_cases(expected.cases)
        computed = compare_products(model.path, quantized.products, candidates[0], cases, expected.names.inputs)
        comparisons = [replace(each, path=f"{each.path}, {_UNROUNDED}") for each in comparisons]
        notes.append(_NOTE)
    results = [
        _with_computed(result, product.activations, computed.get(name_of(product)))
        for product, result in zip(quantized.products, quantized.results, strict=True)
    ]
    claim = model.claims.quantized or QuantizedClaim("", "")
    distances = [] if quantized.original is None else _distances(model, quantized.original)
    fused = _fused(model, cases, expected) if quantized.rounds else None
    found = QuantizedReport(claim.weights, claim.kept, results, distances, fused)
    return replace(report, model=str(model.path), comparisons=comparisons, notes=notes, quantized=found)


def _fused(model: ExportedModel, cases: Sequence[Case], expected: Expected) -> FusedResult | None:
    """Compare what fused layers make of cases with what the file's nodes make of them; None if nothing is fused."""
    fused = inference_session(model.path)
    if not fused.fused:
        return None
    plain = inference_session(model.path, fused=False)
    found: list[FusedResult] = []
    with unrounded(model) as copy:
        exact = inference_session(copy.path)
        for case in cases:
            feed = {expected.names.inputs.get(name, name): array for name, array in case.feed.items()}
            if not all(array.size or is_past(name) for name, array in feed.items()):
                continue  # ONNX Runtime's own nodes refuse some inputs without tokens
            outputs = [_outputs(session, feed) for session in (fused, plain, exact)]
            found += compare_fused(outputs[0], outputs[1], outputs[2], case.name)
    return max(found, key=lambda each: each.share, default=FusedResult("", "", math.inf, 1.0))


def _outputs(session: Any, feed: Arrays) -> Arrays:
    names = [output.name for output in session.get_outputs()]
    given = {value.name: feed[value.name] for value in session.get_inputs() if value.name in feed}
    return dict(zip(names, session.run(names, given), strict=True))


def _with_computed(result: ProductResult, activations: str, found: Computed | None) -> ProductResult:
    if activations == FLOAT32:
        return result
    if found is None:
        return replace(result, reason=result.reason or _NOT_REACHED)
    return replace(result, error=found.error, tolerance=found.tolerance, case=found.case)


def _distances(model: ExportedModel, original: Expected) -> list[Distance]:
    """Measure how far a file's outputs are from the original model's, on a few cases."""
    candidates, _ = onnxruntime_candidates(model)
    cases = [case for case in chosen_cases(original.cases) if any(case is each for each in original.cases)]
    cases = cases or list(original.cases[:1])
    targets = [original.targets[next(i for i, one in enumerate(original.cases) if one is case)] for case in cases]
    found = compare(cases, targets, candidates[0], MODELS[original.precision], names=original.names)
    return [_distance(each) for each in found if _is_float(each, targets[0].outputs)]


def _is_float(comparison: Comparison, outputs: Arrays) -> bool:
    return comparison.output not in outputs or outputs[comparison.output].dtype.kind == "f"


def _distance(comparison: Comparison) -> Distance:
    worst = max(comparison.cases, key=lambda each: each.difference.max_rel)
    found = worst.difference
    return Distance(comparison.output, worst.case, found.max_abs, found.max_rel, found.cosine)
