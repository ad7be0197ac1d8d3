"""The versions of the standard ops that an export may use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pom_export.errors import InputError

if TYPE_CHECKING:
    import onnx_ir as ir

STANDARD_DOMAINS = ("", "ai.onnx")
"""Both of ONNX's names for the domain of the standard ops, the usual one first."""

OPSETS = range(18, 25)
_DEFAULT_OPSET = 20
# HardSigmoid and Conv support bfloat16 since opset 22.
_BFLOAT16_OPSET = 22


def default_opset(dtype: str) -> int:
    """Return the default opset for exporting a type."""
    return _BFLOAT16_OPSET if dtype == "bfloat16" else _DEFAULT_OPSET


def check_opset(opset: int) -> None:
    """Raise InputError for an opset that the function body or torch.onnx does not support."""
    if opset not in OPSETS:
        raise InputError(f"opset {opset!r} is not supported", f"Choose {OPSETS.start} to {OPSETS.stop - 1}")


# The operators of opsets 18 to 23 whose meaning, and not only the types that they take, another opset changed: by the
# first opset of the new meaning. Source: ONNX's change log, docs/Changelog.md.
_CHANGED: Final = {"DFT": 20, "GridSample": 20, "GroupNormalization": 21}


def raise_opset(model: ir.Model, least: int) -> None:
    """Make a model and its functions ones of an opset, if theirs are older.

    Functions are raised too, because runtimes only inline functions of the graph's own opset.

    Raises:
        InputError: the model has an operator that means something else in the newer opset.
    """
    found = model.opset_imports.get("", least)
    if found >= least:
        return
    nodes = [*model.graph.all_nodes(), *(node for body in model.functions.values() for node in body.all_nodes())]
    for node in nodes:
        if node.domain in STANDARD_DOMAINS and found < _CHANGED.get(node.op_type, 0) <= least:
            raise InputError(
                f"{node.op_type} {node.name!r} of opset {found} means something else in opset {least}, which is needed",
                f"Export the model with `opset={least}`",
            )
    for imports in (model.opset_imports, *(body.opset_imports for body in model.functions.values())):
        if imports.get("", least) < least:
            imports[""] = least
