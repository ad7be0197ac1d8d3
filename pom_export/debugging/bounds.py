"""The bound on each module's own error."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

import onnx_ir as ir

from pom_export.graph.precisions import PRECISIONS
from pom_export.graph.quantized.operators import activation_bits, bits_of
from pom_export.parity import tolerances

Bound = Callable[[Sequence[ir.Node]], float]
UNITS: Final = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
"""The relative rounding error of a value, by type."""


def bound_for(precision: str, *, rounds: bool, own: bool, rtol: float | None, weights_known: bool = False) -> Bound:
    """Return a function that gives the bound for the nodes that a module's outputs are computed by.

    Args:
        precision: the type that the file is judged by.
        rounds: whether values are rounded to that type, not only the weights.
        own: whether the reference is a user's own module.
        rtol: the user's bound for all modules; None: from the table.
        weights_known: whether the reference has a quantized file's weights, so that only its activations are coarser.
    """
    single = PRECISIONS[0]
    computed = precision if rounds else single
    # A user's weights may be rounded at another point than in PyTorch.
    least = tolerances.MODULES_OWN_UNROUNDED * UNITS[precision] if own and not rounds and precision != single else 0.0

    def bound(nodes: Sequence[ir.Node]) -> float:
        if rtol is not None:
            return rtol
        bits = activation_bits(nodes) if weights_known else bits_of(nodes)
        if bits is not None:
            return tolerances.MODULES_QUANTIZED[bits].relative
        grown = math.sqrt(max(1.0, len(nodes) / tolerances.MODULE_NODES))
        return max(least, min(tolerances.MODULES[computed].relative * grown, tolerances.MODELS[computed].relative))

    return bound
