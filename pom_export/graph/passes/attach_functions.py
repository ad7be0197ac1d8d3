"""Attach our ops' definitions to the model, so that it runs where no kernel of ours is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import onnx_ir as ir

from pom_export import contract
from pom_export.errors import InputError
from pom_export.graph.function import FunctionVariant, build_function
from pom_export.graph.gated_function import GatedVariant, build_gated_function
from pom_export.graph.nodes import aggregation_nodes, gated_nodes, module_of

_Variant = TypeVar("_Variant", FunctionVariant, GatedVariant)


def variant_of(node: ir.Node, inputs: Sequence[str] = contract.INPUTS) -> FunctionVariant:
    """Return the function variant that an aggregation needs.

    Args:
        node: of the plain op, or of the gated one.
        inputs: names of the node's inputs.

    Raises:
        InputError: an input of the node has no known type, or the coefficients no known shape.
    """
    types: dict[str, ir.DataType] = {}
    degree: int | object = node.attributes["degree"].as_int()
    for name, value in zip(inputs, node.inputs, strict=False):
        if value is None or value.dtype is None or value.shape is None:
            raise _unknown(node)
        if len(value.shape) > 1:  # what is of rank 1 is a placeholder, or of one type always
            types[name] = value.dtype
            degree = value.shape[1] if name == "coefficients" else degree
    if not isinstance(degree, int):
        raise _unknown(node)
    return FunctionVariant(
        mode=node.attributes["mode"].as_string(),
        epsilon=node.attributes["epsilon"].as_float(),
        degree=degree,
        x_type=types["x"],
        coefficient_type=types.get("coefficients"),
        mask_type=types.get("mask"),
        rotation_type=types.get("cos"),
        rotary_blocks=node.attributes["rotary_blocks"].as_int(),
        stateful=bool(node.attributes["stateful"].as_int()),
    )


def gated_variant_of(node: ir.Node) -> GatedVariant:
    """Return the function variant that a gated aggregation needs.

    Raises:
        InputError: as `variant_of`.
    """
    _, gate, bias, *_ = node.inputs
    channels = (node.outputs[0].shape or (None,))[-1]
    if gate is None or gate.shape is None or bias is None or bias.dtype is None or channels is None:
        raise _unknown(node)
    gates = gate.shape[-1]
    if not isinstance(gates, int):
        raise _unknown(node)
    return GatedVariant(
        aggregation=variant_of(node, contract.GATED_INPUTS),
        activation=node.attributes["gate_activation"].as_string(),
        bias_type=bias.dtype,
        heads=None if gates == channels else gates,
    )


def _unknown(node: ir.Node) -> InputError:
    return InputError(
        f"node {node.name}: the types and shapes of its inputs must be known",
        "Export coefficients of a fixed degree",
    )


class AttachFunctionsPass(ir.passes.InPlacePass):
    """Give every node of our ops a model-local function of standard ops.

    Nodes of a further variant get the op's next name, and so a function of that name. Functions of one name that only
    their overloads tell apart are one and the same to ONNX Runtime up to 1.26, TensorRT's parser and many tools.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Attach one function a variant and point each node at its own.

        Raises:
            InputError: an input of a node has no known type or shape, or there are more variants than names.
        """
        plain = {node: variant_of(node) for node in aggregation_nodes(model)}
        gated = {node: gated_variant_of(node) for node in gated_nodes(model)}
        opset = model.opset_imports[""]
        functions = [build_function(variant, opset, name) for variant, name in _named(plain, contract.OP_NAMES).items()]
        gated_names = _named(gated, contract.GATED_OP_NAMES)
        functions += [build_gated_function(variant, opset, name) for variant, name in gated_names.items()]
        for function in functions:
            model.functions[function.identifier()] = function
        if functions:
            model.opset_imports[contract.DOMAIN] = contract.OP_VERSION
        return ir.passes.PassResult(model, modified=bool(functions))


def _named(variants: Mapping[ir.Node, _Variant], names: Sequence[str]) -> dict[_Variant, str]:
    """Give each node the name of its variant, and return the names by variant."""
    distinct = list(dict.fromkeys(variants.values()))
    if len(distinct) > len(names):
        node = next(node for node, variant in variants.items() if variant == distinct[len(names)])
        raise InputError(
            f"the model has {len(distinct)} kinds of aggregation, which differ in their degree, mode, mask, rotation, "
            f"epsilon or gate, and one file takes {len(names)}: {module_of(node)} is the first that is too many",
            "Export parts of the model as files of their own, or give its mixers fewer different settings",
        )
    named = dict(zip(distinct, names, strict=False))
    for node, variant in variants.items():
        node.op_type = named[variant]
    return named
