"""Attach our ops' definitions to the model, so that it runs without our kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import onnx_ir as ir

from pom_export import contract
from pom_export.errors import InputError
from pom_export.graph.function import FunctionVariant, build_function
from pom_export.graph.gated_function import GatedVariant, build_gated_function
from pom_export.graph.nodes import module_of, op_of
from pom_export.graph.variants import gated_variant_of, variant_of

_Variant = TypeVar("_Variant", FunctionVariant, GatedVariant)


class AttachFunctionsPass(ir.passes.InPlacePass):
    """Give every node of our ops a model-local function of standard ops.

    Nodes of each further variant get the op's next name, and with it a function of that name. ONNX Runtime up to 1.26,
    TensorRT's parser and many tools do not distinguish functions that have the same name and differ only in their
    overloads.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Attach one function per variant, and point each node at its own.

        Raises:
            InputError: the type or shape of a node's input is unknown, or there are more variants than names.
        """
        nodes = list(model.graph.all_nodes())  # including those in branches and loops
        plain = {node: variant_of(node) for node in nodes if op_of(node) == contract.OP_NAME}
        gated = {node: gated_variant_of(node) for node in nodes if op_of(node) == contract.GATED_OP_NAME}
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
            f"the model has {len(distinct)} kinds of aggregation, which differ in degree, mode, mask, rotation, "
            f"epsilon or gate, and one file can hold {len(names)}: {module_of(node)} is the first one too many",
            "Export parts of the model as separate files, or give its mixers fewer different settings",
        )
    named = dict(zip(distinct, names, strict=False))
    for node, variant in variants.items():
        node.op_type = named[variant]
    return named
