"""The operators of activations, and what they are applied to."""

from __future__ import annotations

from typing import Final

import onnx_ir as ir

from pom_export.graph.fusing.evaluation import Evaluator

# Operators of which activations consist, as exporters and optimizers write them.
CLAMPS: Final = frozenset(("Clip", "LeakyRelu", "Max", "Min", "PRelu", "Relu", "Where"))
GELUS: Final = frozenset(("BiasGelu", "Erf", "FastGelu", "Gelu", "QuickGelu", "Sigmoid", "Silu", "Swish", "Tanh"))
# How far back a projection is looked for.
FARTHEST: Final = 6
# Where a projection ends: what is before is not part of an activation.
_PROJECTIONS: Final = frozenset(("Conv", "Einsum", "FusedMatMul", "Gemm", "MatMul"))


def projected(evaluator: Evaluator, node: ir.Node) -> list[ir.Value]:
    """Return the values that an activation may be applied to, the nearest first."""
    return evaluator.sources(node.outputs[0], FARTHEST, _PROJECTIONS)[1:]
