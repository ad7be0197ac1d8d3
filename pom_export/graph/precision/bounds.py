"""Bound the size of an aggregate from the weights alone."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from pom_export import contract
from pom_export.graph.nodes import input_named
from pom_export.graph.precision.rules import is_constant


def aggregate_bound(node: ir.Node) -> float | None:
    """Return a bound on an aggregate's magnitude, or None if none follows from the weights.

    In form "power", h is at most 6, so the features of channel c are at most sum_k |coefficients[c, k]| 6^k. A rotation
    adds those of two channels, and a mean is no larger than what it averages. Form "product" clamps nothing.

    Args:
        node: a node of the plain op, or of the gated one, whose gate's activation is at most 1.
    """
    coefficients = input_named(node, "coefficients")
    if node.attributes["form"].as_string() != contract.POWER or coefficients is None or not is_constant(coefficients):
        return None
    assert coefficients.const_value is not None
    values = np.abs(coefficients.const_value.numpy().astype(np.float64))
    bounds = values @ contract.CLAMP_HIGH ** np.arange(1, values.shape[1] + 1)
    if input_named(node, "cos") is not None:
        bounds = _of_pairs(bounds, node.attributes["rotary_blocks"].as_int())
    return float(bounds.max())


def _of_pairs(bounds: npt.NDArray[np.float64], blocks: int) -> npt.NDArray[np.float64]:
    """Return the bounds of rotated channels, where channel i of a block is rotated together with i + W/2."""
    return bounds.reshape(blocks, 2, -1).sum(1)
