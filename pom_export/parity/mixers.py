"""Compare what each aggregation of a rewritten file feeds with the same value of the original.

Outputs may hide a difference: the last product of a mixer that was never trained is often all zeros.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import onnx

from pom_export.graph.nodes import is_aggregation
from pom_export.parity import tolerances
from pom_export.parity.case import Array, Case
from pom_export.parity.comparison import Difference, difference
from pom_export.parity.observing import Observer
from pom_export.parity.report import CaseResult, Comparison

_RUNTIME = "onnxruntime"


def compare_mixers(original: Observer, rewritten: Path, cases: Sequence[Case], precision: str) -> list[Comparison]:
    """Run both files, and compare the values after their aggregations that both have, by name.

    Args:
        original: the original graph.
        rewritten: the file made from it.
        cases: the inputs, which both take.
        precision: the rewritten file's type.

    Returns:
        One comparison per value. Aggregations in branches have none, since their values are not the graph's own.
    """
    model = onnx.load(rewritten, load_external_data=False)
    names = _values_after(model.graph, original.names)
    if not names:
        return []
    observer = Observer(model, rewritten.parent, kernels=True)
    found: dict[str, list[CaseResult]] = {name: [] for name in names}
    for case in cases:
        wanted, made = original.arrays(case.feed, names), observer.arrays(case.feed, names)
        for name, results in found.items():
            results.append(CaseResult(case.name, "", _difference(made[name], wanted[name], precision)))
    path = "kernel" if observer.kernels else "function"
    return [Comparison(_RUNTIME, path, name, tuple(results)) for name, results in found.items()]


def zero_notes(comparisons: Sequence[Comparison]) -> list[str]:
    """Note the values of which nothing could be compared."""
    return [
        f"{each.output} is 0 on all inputs, which proves nothing about it" for each in comparisons if each.inconclusive
    ]


def _values_after(graph: onnx.GraphProto, known: Collection[str]) -> list[str]:
    """Return the nearest values after each aggregation that have one of the known names."""
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    found: dict[str, None] = {}
    waiting = [name for node in graph.node if is_aggregation(node) for name in node.output]
    while waiting:
        name = waiting.pop(0)
        if name in known:
            found[name] = None
        else:
            waiting += [output for node in users.get(name, ()) for output in node.output]
    return list(found)


def _difference(made: Array, wanted: Array, precision: str) -> Difference:
    given = tolerances.MODELS[precision]
    features = tolerances.Tolerance(given.relative * tolerances.STATE_FEATURES, given.absolute, given.reason)
    # A row whose mask keeps no token is NaN in the original only.
    return difference(made.astype(np.float64), wanted.astype(np.float64), features, partial=True)
