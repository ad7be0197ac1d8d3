"""Turn a graph with functions into one of standard operators."""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir
from onnx_ir.passes.common import NameFixPass

from pom_export.errors import InputError
from pom_export.graph.exported_model import ExportedModel
from pom_export.graph.function_check import check_functions
from pom_export.graph.loading import load_graph
from pom_export.graph.passes import ClaimLeastPass, InlineFunctionsPass, SpellOutPass


def inline_functions(model: ir.Model, kept: Collection[str] = ()) -> None:
    """Leave only standard operators in a graph, in the form that most runtimes compute correctly.

    Args:
        model: the graph.
        kept: domains whose operators may stay, because the runtime that it is for has them.

    Raises:
        InputError: a node is neither a standard operator nor a call of a function in the model.
    """
    # No two values may have one name, in branches either.
    passes = ir.passes.Sequential(InlineFunctionsPass(kept), SpellOutPass(), NameFixPass(), ClaimLeastPass())
    try:
        passes(model)
    except ir.passes.PassError as error:
        if isinstance(error.__cause__, InputError):
            raise error.__cause__ from error
        raise


def inlined_graph(exported: ExportedModel, kept: Collection[str] = ()) -> tuple[ir.Model, list[str]]:
    """Return a file's graph in standard operators, and the functions that could not be checked alone, with the reasons.

    Weights stay where they are until the graph is saved.

    Args:
        exported: the file.
        kept: as for `inline_functions`.

    Raises:
        InputError: the file has no functions, or has lost some; a function does not compute what its node asks for; or
            a node is not a standard operator.
    """
    model = load_graph(exported.path)
    if not model.functions and not exported.aggregations:
        raise InputError(f"{exported.path} has no functions: there is nothing to inline", "Use it as it is")
    unknown = check_functions(exported.path)
    try:
        inline_functions(model, kept)
    except InputError as error:
        raise InputError(f"{exported.path} cannot be inlined: {error.what}", error.hint) from error
    return model, unknown
