"""Replace every call of a function by the function's nodes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Final

import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from pom_export.errors import InputError, printable, reason_of
from pom_export.graph.claims import INLINED, METADATA_PREFIX
from pom_export.graph.nodes import is_aggregation
from pom_export.graph.opsets import STANDARD_DOMAINS
from pom_export.graph.quantized.products import BLOCK_PRODUCT

# Inlining copies a call's metadata to the nodes that take its place; this entry tells them where they come from.
_CALL: Final = "pom_export.call"
_LONGEST_NAME: Final = 80
_QUANTIZE_AFTER: Final = (
    "Inline the original, and quantize the inlined file: only its products are no standard operators"
)


class InlineFunctionsPass(ir.passes.InPlacePass):
    """Inline all functions, so that only standard operators are left, and record how many aggregations there were.

    The new nodes are named after the call that they replace: "blocks.0.mixer/GatedPolynomialAggregation/CumSum".

    Args:
        kept: domains whose operators may stay although they are not standard.
    """

    def __init__(self, kept: Collection[str] = ()) -> None:
        super().__init__()
        self._kept = kept

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Inline the functions.

        Raises:
            InputError: a node is neither a standard operator nor a call of a function in the model, or a function
                cannot be inlined.
        """
        aggregations = sum(map(is_aggregation, model.graph.all_nodes()))
        called = [node for node in model.graph.all_nodes() if node.op_identifier() in model.functions]
        for node in called:
            node.metadata_props[_CALL] = node.name or node.op_type
        try:
            common.InlinePass()(model)
        except Exception as error:
            reason = reason_of(error.__cause__ or error)
            raise InputError(f"the functions cannot be inlined: {reason}", "Export the model again") from error
        model.functions.clear()  # those that nothing called
        _check_standard(model, self._kept)
        _name_by_call(model)
        common.RemoveUnusedNodesPass()(model)
        common.RemoveUnusedOpsetsPass()(model)
        _infer_shapes(model)
        if aggregations:
            model.metadata_props[METADATA_PREFIX + INLINED] = str(aggregations)
        return ir.passes.PassResult(model, modified=bool(called))


def _infer_shapes(model: ir.Model) -> None:
    """Infer the shapes of the new values; those of inputs and outputs stay as the file declares them."""
    declared = {value.name: (value.shape, value.type) for value in (*model.graph.inputs, *model.graph.outputs)}
    common.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=False)(model)
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.shape, value.type = declared[value.name]


def _check_standard(model: ir.Model, kept: Collection[str]) -> None:
    """Raise InputError for the first node that is neither a standard operator nor of a domain that may stay."""
    for node in model.graph.all_nodes():
        if is_aggregation(node):
            raise InputError(f"the file has lost the function of {node.op_type}", "Export the model again")
        if node.domain in kept:
            continue
        if node.domain not in STANDARD_DOMAINS or not onnx.defs.has(node.op_type):
            quantized = node.op_type == BLOCK_PRODUCT
            domain = f" of the domain {printable(node.domain, _LONGEST_NAME)}" if node.domain else ""
            raise InputError(
                f"{printable(node.op_type, _LONGEST_NAME)}{domain} is not a standard operator, and the file has no "
                "function for it",
                _QUANTIZE_AFTER if quantized else "Inline the file as it was exported, before another tool rewrites it",
            )


def _name_by_call(model: ir.Model) -> None:
    """Name the nodes that took the place of calls after them."""
    counts: Counter[str] = Counter()
    for node in model.graph.all_nodes():
        call = node.metadata_props.pop(_CALL, None)
        if call is not None:
            name = f"{call}/{node.op_type}"
            node.name = f"{name}_{counts[name]}" if counts[name] else name
            counts[name] += 1
