"""Find the aggregations in a graph of standard operators, and what is almost one."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final

import onnx_ir as ir

from pom_export.graph.fusing.activations import CLAMPS, FARTHEST, GELUS, projected
from pom_export.graph.fusing.aggregates import Aggregate, match_aggregate
from pom_export.graph.fusing.evaluation import USUAL_AXES, Axes, Evaluator
from pom_export.graph.fusing.features import Features, NotFusedError
from pom_export.graph.fusing.power import match_power, near_power
from pom_export.graph.fusing.product import match_product
from pom_export.graph.fusing.rotation import match_rotation
from pom_export.graph.fusing.separate import are_a_part, match_separate_powers, match_separate_products
from pom_export.graph.fusing.tokens import Layout, layout_of
from pom_export.graph.nodes import is_aggregation

# Operators that take one chunk of several.
_PARTS: Final = frozenset(("Gather", "Slice", "Split"))
_BATCH: Final = "batch"
# Where rows and tokens may be, the usual place first.
_AXES: Final = (USUAL_AXES, Axes(tokens=2), Axes(tokens=3), Axes(batch=1, tokens=0))


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


def find_aggregations(graph: ir.Graph, root: ir.Graph | None = None, *, named: bool = True) -> Findings:
    """Return the aggregations that are written in standard operators, and what is almost one, with the reason.

    Args:
        graph: the graph.
        root: the model's graph, if that is another one, in whose nodes this one is.
        named: whether the names of its dimensions are its maker's: what is called a batch is not taken for tokens.
    """
    search = _Search(Evaluator(graph, root), named=named)
    for axes in _AXES:
        search.over(axes)
    search.evaluator.axes = _AXES[0]
    _add_near(search.evaluator, search.findings, search.used)
    return search.findings


class _Search:
    """Looks at every activation in a graph.

    Args:
        evaluator: of the graph.
        named: whether the names of its dimensions tell what they are.
    """

    def __init__(self, evaluator: Evaluator, *, named: bool) -> None:
        self.evaluator, self.findings = evaluator, Findings()
        self._named = named
        self.used: set[ir.Value] = set()
        self._settled: set[tuple[ir.Value, bool]] = set()
        # Which values have no features, over which axes.
        self._plain: set[tuple[ir.Value, bool, frozenset[int]]] = set()

    def over(self, axes: Axes) -> None:
        """Add the aggregations over some axes that were not found over others."""
        self.evaluator.axes = axes
        used = {found.features.value for found in self.findings.found}
        tried: set[tuple[ir.Value, bool]] = set()
        for node in self.evaluator.graph:
            if node.op_type not in CLAMPS | GELUS or is_aggregation(node):
                continue
            inputs, is_gelu = projected(self.evaluator, node), node.op_type in GELUS
            if any((x, is_gelu) in self._settled for x in inputs):
                continue
            for x in sorted(inputs, key=_is_part):
                layout, key = layout_of(x, axes), (x, is_gelu)
                if layout is None or key in tried or (self._named and _is_called_batch(layout)):
                    continue
                tried.add(key)
                if self._has_found(node, x, layout, used):
                    self._settled |= {(each, is_gelu) for each in inputs[: inputs.index(x) + 1]}
                    break
        self.used |= used

    def _has_found(self, node: ir.Node, x: ir.Value, layout: Layout, used: set[ir.Value]) -> bool:
        """Add the aggregation of a value, if it has one; otherwise the reason, if it almost has."""
        is_gelu, name = node.op_type in GELUS, node.name or node.outputs[0].name or node.op_type
        key = (x, is_gelu, frozenset((layout.rows, layout.axis)))
        if key in self._plain:
            return False
        try:
            found = _product(self.evaluator, x, node, used) if is_gelu else _power(self.evaluator, x, used)
        except NotFusedError as error:
            self.findings.left.setdefault(name, str(error))
            return False
        if found is None:
            self._plain.add(key)
            return False
        self.findings.found.append(found)
        self.findings.left.pop(name, None)
        return True


def _is_part(value: ir.Value) -> bool:
    """Return whether a value is a chunk of another one, of which a product may have several."""
    node = value.producer()
    return node is not None and node.op_type in _PARTS


def _is_called_batch(layout: Layout) -> bool:
    """Return whether what would be tokens is named as rows are."""
    return layout.rows > layout.axis and _BATCH in (layout.names[1] or "").lower()


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


def _is_gated(features: Features) -> bool:
    """Return whether a product follows features: a GELU that is only averaged is no mixer."""
    waiting = [features.value]
    for _ in range(FARTHEST):
        waiting = [output for value in waiting for node, _ in value.uses() for output in node.outputs]
        if any((node := value.producer()) is not None and node.op_type == "Mul" for value in waiting):
            return True
    return False


def _add_near(evaluator: Evaluator, findings: Findings, used: set[ir.Value]) -> None:
    """Add polynomials of other activations that are averaged."""
    for node in evaluator.graph:
        if node.op_type not in CLAMPS or not evaluator.depends_on_data(node.outputs[0]):
            continue
        inputs = projected(evaluator, node)
        near = next((found for x in reversed(inputs) if (found := near_power(evaluator, node.outputs[0], x))), None)
        if near is None or near[0] in used:
            continue
        used.add(near[0])
        findings.left.setdefault(node.name or node.outputs[0].name or node.op_type, near[1])
