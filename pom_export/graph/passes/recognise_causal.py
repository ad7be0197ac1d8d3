"""Recognise (B, T, N) masks that are causal or the same for every query, and aggregate without an N x N product."""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx_ir as ir

from pom_export import contract
from pom_export.graph.masks import CAUSAL, MaskKind, NoRowError, kind_of, last_row
from pom_export.graph.nodes import aggregation_nodes, gated_nodes, module_of, only_user, take_place

# Key of the reasons, by module, why aggregations stay quadratic. It only exists in memory, not in the file.
_QUADRATIC = "pom_export.quadratic"
# A number below this that is added to a sum keeps the sum from being 0.
_EPSILON = 1e-5
_MASK = contract.INPUTS.index("mask")
_MASK_RANK = len(("batch", "queries", "tokens"))


@dataclass
class _Quotient:
    """A masked sum of features (B, N, C), divided by the mask's sums.

    Attributes:
        features: the node of mode "features".
        mask: (1 or B, T, N).
        product: the node that multiplies them, giving (B, T, C).
        divisions: divisions of the product, possibly by the mask's sums.
    """

    features: ir.Node
    mask: ir.Value
    product: ir.Node
    divisions: list[ir.Node] = field(default_factory=list)


class RecogniseCausalPass(ir.passes.InPlacePass):
    """Turn `mask @ features / sum(mask)` into one node if the mask is causal, or the same for every query.

    The kind of mask is determined by computing it at many numbers of tokens, see `pom_export.graph.masks`, so it does
    not matter how the mask is written. If it depends on data for the keys, such as padding, that part becomes the op's
    (B, N) mask. Dead nodes are left to a later pass.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replace the quotients of each aggregation; note those that stay quadratic."""
        modified = False
        quadratic: dict[str, str] = {}
        for node in aggregation_nodes(model):
            if node.attributes["mode"].as_string() != "features":
                continue
            for found, quotient in enumerate(_quotients(node)):
                reason = _replace(model.graph, quotient, f"{node.name}_{found}" if found else node.name or "")
                modified = modified or not reason
                if reason and quotient.mask.shape is not None and quotient.mask.shape[1] != 1:
                    quadratic[module_of(node)] = reason
        model.meta[_QUADRATIC] = quadratic
        return ir.passes.PassResult(model, modified=modified)


def quadratic_notes(model: ir.Model) -> list[str]:
    """Return a note about the aggregations that take a mask with a value per pair of tokens, if there are any."""
    by_reason: dict[str, list[str]] = {}
    for module, reason in model.meta.get(_QUADRATIC, {}).items():
        by_reason.setdefault(reason, []).append(module)
    count = sum(map(len, by_reason.values()))
    if not count:
        return []
    whole = len(aggregation_nodes(model)) + len(gated_nodes(model))
    what = f"{count} of {whole} aggregation{'s' if whole > 1 else ''} {'takes' if count == 1 else 'take'}"
    why = "; ".join(f"{_some(modules)}: {reason}" for reason, modules in by_reason.items())
    return [f"{what} a (B, T, N) mask: quadratic in tokens ({why})"]


def _some(modules: list[str], limit: int = 3) -> str:
    more = f" and {len(modules) - limit} more" if len(modules) > limit else ""
    return ", ".join(modules[:limit]) + more


def _quotients(features: ir.Node) -> list[_Quotient]:
    """Return the products of masks with features."""
    found = []
    for product, index in features.outputs[0].uses():
        mask = product.inputs[0]
        if product.op_type == "MatMul" and index == 1 and mask is not None and _rank(mask) == _MASK_RANK:
            divisions = [user for user, index in product.outputs[0].uses() if user.op_type == "Div" and index == 0]
            found.append(_Quotient(features, mask, product, divisions))
    return found


def _rank(value: ir.Value) -> int:
    return len(value.shape or ())


def _replace(graph: ir.Graph, quotient: _Quotient, name: str) -> str:
    """Replace a quotient with an aggregation; if that is impossible, return the reason."""
    x, mask = quotient.features.inputs[0], quotient.mask
    divisor = quotient.divisions[0].inputs[1] if len(quotient.divisions) == 1 else None
    if x is None or x.shape is None or mask.shape is None or divisor is None:
        return "the product with the mask is not divided by the mask's sums"
    if mask.shape[0] not in {1, x.shape[0]}:
        return "the mask and the tokens differ in batch size"
    kind = kind_of(mask, divisor, x.shape[1])
    if not kind.kind or kind.part is None:
        return kind.reason
    if (
        kind.kind != CAUSAL
        and mask.shape[1] not in {1, mask.shape[2]}
        and not _is_spread_by_its_user(quotient.divisions[0].outputs[0])
    ):
        return "the mask's rows are the same, but nothing takes their result as a single query"
    weights: ir.Value | None = None
    if kind.part.keys:
        try:
            weights, nodes = last_row(mask, kind.part, graph)
        except NoRowError:
            return "which tokens it keeps cannot be separated from which query sees which token"
        graph.insert_before(quotient.divisions[0], nodes)
    _put(graph, quotient, kind, weights, name)
    return ""


def _put(graph: ir.Graph, quotient: _Quotient, kind: MaskKind, weights: ir.Value | None, name: str) -> None:
    (division,) = quotient.divisions
    mode = "causal" if kind.kind == CAUSAL else "mean"
    node = _aggregation(quotient.features, mode, weights, _epsilon(division.inputs[1]), name)
    graph.insert_before(division, node)
    old, new = division.outputs[0], node.outputs[0]
    shape = old.shape
    if mode == "causal" or shape is None or shape[1] == 1:
        take_place(old, new)
        return
    one = ir.Shape([shape[0], 1, shape[2]])
    if _is_spread_by_its_user(old):
        take_place(old, new)
        new.shape = one
        return
    new.type, new.shape = old.type, one
    sizes = ir.node("Shape", [quotient.features.inputs[0]])
    spread = ir.node("Expand", [new, sizes.outputs[0]])
    graph.insert_before(division, [sizes, spread])
    take_place(old, spread.outputs[0])


def _is_spread_by_its_user(value: ir.Value) -> bool:
    """Return whether a value is only used in a product with one that has all of its queries, such as a gate."""
    user = only_user(value)
    if user is None or user.op_type != "Mul" or value.shape is None:
        return False
    return any(v is not None and v is not value and list(v.shape or ())[-2:-1] == [value.shape[1]] for v in user.inputs)


def _aggregation(features: ir.Node, mode: str, weights: ir.Value | None, epsilon: float, name: str) -> ir.Node:
    """Return a node that computes the mean of features, with weights (1 or B, N) if given."""
    changed: dict[str, ir.Attr] = {"mode": ir.AttrString("mode", mode)}
    inputs = list(features.inputs)
    if weights is not None:
        changed["epsilon"] = ir.AttrFloat32("epsilon", epsilon)
        inputs[_MASK : _MASK + 1] = [weights]
    attributes = [changed.get(attr.name, attr) for attr in features.attributes.values()]
    return ir.Node(contract.DOMAIN, contract.OP_NAME, inputs, attributes, name=name)


def _epsilon(divisor: ir.Value | None) -> float:
    """Return the number that is added to a mask's sums to keep them from being 0."""
    waiting, seen = [divisor], set()
    while waiting:
        value = waiting.pop()
        node = None if value is None else value.producer()
        if node is None or node in seen or node.op_type == "ReduceSum":
            continue
        seen.add(node)
        if node.op_type == "Add":
            for given in node.inputs:
                tensor = None if given is None else ir.convenience.get_const_tensor(given)
                if tensor is not None and tensor.size == 1 and 0 < float(tensor.numpy().ravel()[0]) < _EPSILON:
                    return float(tensor.numpy().ravel()[0])
        waiting.extend(node.inputs)
    return contract.DEFAULT_EPSILON
