"""Attach the op's definition to the model, so that it runs where no kernel of ours is."""

from __future__ import annotations

import onnx_ir as ir

from pom_export import contract
from pom_export.errors import InputError
from pom_export.graph.function import FunctionVariant, build_function


def aggregation_nodes(model: ir.Model) -> list[ir.Node]:
    """Return the model's aggregation nodes, in order."""
    return [node for node in model.graph if (node.domain, node.op_type) == (contract.DOMAIN, contract.OP_NAME)]


def variant_of(node: ir.Node) -> FunctionVariant:
    """Return the function variant that a node needs.

    Raises:
        InputError: an input of the node has no known type, or the coefficients no known shape.
    """
    inputs = [value for value in node.inputs if value is not None]
    types = [value.dtype for value in inputs if value.dtype is not None]
    shape = inputs[1].shape
    if len(types) < len(inputs) or shape is None or not isinstance(shape[1], int):
        raise InputError(
            f"node {node.name}: the types of its inputs and the shape of its coefficients must be known",
            "Export coefficients of a fixed degree",
        )
    x_type, coefficient_type, *rest = types
    attributes = node.attributes
    return FunctionVariant(
        mode=attributes["mode"].as_string(),
        epsilon=attributes["epsilon"].as_float(),
        degree=shape[1],
        x_type=x_type,
        coefficient_type=coefficient_type,
        mask_type=rest[0] if rest else None,
    )


class AttachFunctionsPass(ir.passes.InPlacePass):
    """Give every aggregation node a model-local function of standard ops.

    The first variant is the function proper; further ones are overloads, which ONNX Runtime tells apart
    and TensorRT's parser does not (it goes by name alone): there such a model needs the plugin.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Attach one function a variant and point each node at its own."""
        overloads: dict[FunctionVariant, str] = {}
        for node in aggregation_nodes(model):
            variant = variant_of(node)
            if variant not in overloads:
                overloads[variant] = variant.overload if overloads else ""
                function = build_function(variant, model.opset_imports[""], overloads[variant])
                model.functions[function.identifier()] = function
            node.overload = overloads[variant]
        if overloads:
            model.opset_imports[contract.DOMAIN] = contract.OP_VERSION
        return ir.passes.PassResult(model, modified=bool(overloads))
