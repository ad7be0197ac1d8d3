"""Find the aggregations in a graph of standard operators, and what is almost one."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final

import onnx_ir as ir

from pom_export.graph.fusing.aggregates import Aggregate, match_aggregate
from pom_export.graph.fusing.evaluation import Evaluator
from pom_export.graph.fusing.features import Features, NotFusedError
from pom_export.graph.fusing.power import match_power, near_power
from pom_export.graph.fusing.product import match_product
from pom_export.graph.fusing.rotation import match_rotation
from pom_export.graph.fusing.separate import are_a_part, match_separate_powers, match_separate_products
from pom_export.graph.nodes import is_aggregation

# Operators of which activations consist, as exporters and optimizers write them.
_CLAMPS: Final = frozenset(("Clip", "LeakyRelu", "Max", "Min", "PRelu", "Relu", "Where"))
_GELUS: Final = frozenset(("BiasGelu", "Erf", "FastGelu", "Gelu", "QuickGelu", "Sigmoid", "Silu", "Swish", "Tanh"))
# Where a projection ends: what is before is not part of an activation.
_PROJECTIONS: Final = frozenset(("Conv", "Einsum", "FusedMatMul", "Gemm", "MatMul"))
_FARTHEST: Final = 6


@dataclass(frozen=True)
class Found:
    """An aggregation in standard operators.

    Attributes:
        features: the features of each token.
        aggregate: what is done with them.
    """

    features: Features
    aggregate: Aggregate


@dataclass
class Findings:
    """What was found in a graph.

    Attributes:
        found: the aggregations, in order.
        left: what is almost one: reasons by the name of a node.
    """

    found: list[Found] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)


def find_aggregations(graph: ir.Graph) -> Findings:
    """Return the aggregations that are written in standard operators, and what is almost one, with the reason."""
    findings, tried = Findings(), set()
    evaluator = Evaluator(graph)
    used: set[ir.Value] = set()
    for node in graph:
        if node.op_type not in _CLAMPS | _GELUS or is_aggregation(node):
            continue
        for x in _projected(evaluator, node):
            if (x, node.op_type in _GELUS) in tried:
                continue
            tried.add((x, node.op_type in _GELUS))
            try:
                found = _power(evaluator, x, used) if node.op_type in _CLAMPS else _product(evaluator, x, node, used)
            except NotFusedError as error:
                findings.left.setdefault(node.name or node.outputs[0].name or node.op_type, str(error))
                continue
            if found is not None:
                findings.found.append(found)
    _add_near(evaluator, findings, used)
    return findings


def _power(evaluator: Evaluator, x: ir.Value, used: set[ir.Value]) -> Found | None:
    """Return the aggregation of form "power" of a value, unless its features are in use already."""
    features = match_power(evaluator, x)
    if features is None or features.value in used:
        return None
    used.add(features.value)
    separate = match_separate_powers(evaluator, features) if are_a_part(features) else None
    if separate is not None:
        return Found(*separate)
    return _aggregated(evaluator, features)


def _aggregated(evaluator: Evaluator, features: Features) -> Found:
    """Return features with their mean, taken of any of the values that hold them.

    Raises:
        NotFusedError: none has a mean that the op computes.
    """
    first: NotFusedError | None = None
    for value in (features.value, *features.others):
        rotation = None if features.degree else match_rotation(evaluator, value)
        each = replace(features, value=value, rotation=rotation)
        try:
            return Found(each, match_aggregate(evaluator, each.last))
        except NotFusedError as error:
            first = first or error
    assert first is not None
    raise first


def _product(evaluator: Evaluator, x: ir.Value, node: ir.Node, used: set[ir.Value]) -> Found | None:
    """Return the aggregation of form "product" of a value, unless its features are in use already."""
    features = match_product(evaluator, x, node)
    if features is not None and features.value in used:
        return None
    if features is None or features.degree == 1:
        separate = match_separate_products(evaluator, x, node.name or "")
        if separate is not None:
            return Found(*separate)
        if features is None or not _is_gated(features):
            return None
    used.add(features.value)
    try:
        return _aggregated(evaluator, features)
    except NotFusedError:
        if features.degree == 1:
            return None  # a GELU like many
        raise


def _projected(evaluator: Evaluator, node: ir.Node) -> list[ir.Value]:
    """Return the values that an activation may be applied to, the nearest first."""
    return evaluator.sources(node.outputs[0], _FARTHEST, _PROJECTIONS)[1:]


def _is_gated(features: Features) -> bool:
    """Return whether a product follows features: a GELU that is only averaged is no mixer."""
    waiting = [features.value]
    for _ in range(_FARTHEST):
        waiting = [output for value in waiting for node, _ in value.uses() for output in node.outputs]
        if any((node := value.producer()) is not None and node.op_type == "Mul" for value in waiting):
            return True
    return False


def _add_near(evaluator: Evaluator, findings: Findings, used: set[ir.Value]) -> None:
    """Add polynomials of other activations that are averaged."""
    for node in evaluator.graph:
        if node.op_type not in _CLAMPS or not evaluator.depends_on_data(node.outputs[0]):
            continue
        inputs = _projected(evaluator, node)
        near = next((found for x in reversed(inputs) if (found := near_power(evaluator, node.outputs[0], x))), None)
        if near is None or near[0] in used:
            continue
        used.add(near[0])
        findings.left.setdefault(node.name or node.outputs[0].name or node.op_type, near[1])
