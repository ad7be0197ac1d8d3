"""Fuse the graph of a torch.export program, whose mixers may be plain operators."""

from __future__ import annotations

import onnx_ir as ir

from pom_export.errors import InputError
from pom_export.graph.fusing.files import notes_of
from pom_export.graph.fusing.model import Fusion
from pom_export.graph.nodes import aggregation_nodes


def fuse_program(model: ir.Model) -> list[str]:
    """Put the op in place of aggregations in standard operators, and return remarks about them.

    Args:
        model: the graph that torch made of a program; it is changed.

    Raises:
        InputError: it has no aggregation, neither as a node of the op nor in standard operators.
    """
    had = len(aggregation_nodes(model))
    fusion = Fusion(model, named=False)
    findings = fusion.findings
    fusion.put()
    left = [f"{node} is almost a mixer and stays as it is: {why}" for node, why in findings.left.items()]
    if not had and not findings.found:
        raise InputError(
            "the program holds no pom::polynomial_aggregation, and none of its plain operators compute one"
            + "".join(f"; {reason}" for reason in left),
            "Export the module itself with pom_export.export, or build it from our mixers before torch.export",
        )
    count = len(findings.found)
    said = [f"{count} aggregation{'s' if count > 1 else ''} of plain operators became the op"] if count else []
    return [*said, *left, *notes_of(findings)]
