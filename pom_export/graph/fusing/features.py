"""What the rules find: the features of tokens, with what the op needs to compute them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import onnx_ir as ir

from pom_export.graph.fusing.evaluation import USUAL_AXES, Array, Axes
from pom_export.graph.fusing.rotation import Rotation

# Constants in half precision, such as 0.01, are off by as much.
_CONSTANTS: Final = {ir.DataType.FLOAT16: 1e-3, ir.DataType.BFLOAT16: 5e-3}
_FLOAT32: Final = 1e-6


class NotFusedError(Exception):
    """A part of a graph is almost an aggregation; the text says what it lacks."""


@dataclass(frozen=True)
class Coefficients:
    """The coefficients of a polynomial.

    Attributes:
        array: (C, K), with the numbers of the graph's own weights.
        value: the weight, if it has that shape; None: it is new.
        name: the name of the weight that the numbers come from; empty if they come from several.
    """

    array: Array
    value: ir.Value | None
    name: str


@dataclass(frozen=True)
class Features:
    """Features of each token.

    Attributes:
        x: the projected tokens, (B, N, C).
        value: the features.
        node: the name of the node that they are found by.
        coefficients: of form "power"; None: form "product".
        degree: of form "product"; 0: form "power".
        rotation: how they are rotated afterwards, or None.
        others: other values that hold the features, for example in another shape.
        activated: of form "power": the activation of x that they are a polynomial of.
        axes: which axes of the values are those of tokens.
    """

    x: ir.Value
    value: ir.Value
    node: str
    coefficients: Coefficients | None = None
    degree: int = 0
    rotation: Rotation | None = None
    others: tuple[ir.Value, ...] = ()
    activated: ir.Value | None = None
    axes: Axes = USUAL_AXES

    @property
    def last(self) -> ir.Value:
        """The features as they are aggregated."""
        return self.value if self.rotation is None else self.rotation.value


def tolerance_of(value: ir.Value) -> float:
    """Return how far the constants near a value may be off, relative to themselves."""
    return _FLOAT32 if value.dtype is None else _CONSTANTS.get(value.dtype, _FLOAT32)
