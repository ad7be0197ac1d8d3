"""Small inputs that expose any difference between two functions of an aggregation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from pom_export import contract
from pom_export.graph.nodes import input_names

Array = npt.NDArray[Any]

# All tokens of the last row are masked.
_BATCH, _TOKENS, _GATE_TOKENS, _CHANNELS = 3, 5, 3, 16
# Scales of the tokens: most are within the clamp, and some beyond either end.
_SPREAD, _FAR = 3, 10


@dataclass(frozen=True)
class _Kind:
    """A kind of inputs.

    Attributes:
        weight: scale of floating-point masks.
        negative: whether all tokens are negative. Next to positive ones, the contribution of negative tokens would be
            too small to notice.
        past: scale of the past's sums. If they are large, a call is lost in the rounding of their first float.
    """

    weight: float = 1.0
    negative: bool = False
    past: float = 1.0


def feeds(node: ir.Node) -> Iterator[dict[str, Array]]:
    """Yield inputs for a node by the contract's names, with the node's channels but few rows and tokens.

    Args:
        node: a node whose attributes are complete, and whose inputs have known types and shapes.
    """
    values = {name: value for name, value in zip(input_names(node), node.inputs, strict=False) if value is not None}
    mask = values.get("mask")
    floating = mask is not None and mask.dtype != ir.DataType.BOOL
    for kind in (_Kind(), _Kind(negative=True, past=1e6), *([_Kind(weight=1e-6)] if floating else [])):
        yield _draw(values, node, kind)


def _draw(values: Mapping[str, ir.Value], node: ir.Node, kind: _Kind) -> dict[str, Array]:
    random = np.random.default_rng(0)
    sizes, clamped = _sizes(values, node), node.attributes["form"].as_string() == contract.POWER
    drawn: dict[str, Array] = {}
    for name, value in values.items():
        assert value.dtype is not None
        shape = (1,) if _is_placeholder(name, value) else sizes[name]
        numbers: Array = random.standard_normal(shape) * (_SPREAD if name in {"x", "gate"} else 1)
        if name == "x":
            numbers *= random.choice([1, _FAR], shape) if clamped else 1
            numbers = -np.abs(numbers) if kind.negative else numbers
        elif name == "mask":
            numbers = np.where(random.random(shape) < 0.6, random.random(shape) * kind.weight, 0)
            numbers[-1:] *= len(shape) == 1
        elif name == "past_length":
            numbers = random.integers(0, 9, shape)
            numbers[-1] = 0
        elif name == "past_state":
            numbers[:, 0] *= kind.past
            numbers[:, 1] /= kind.past
        drawn[name] = numbers.astype(value.dtype.numpy())
    mask = drawn.get("mask")
    if mask is not None and mask.ndim > 1:
        # The values of masked tokens must not affect anything.
        drawn["x"][~mask.astype(bool)] = np.nan
    return drawn


def _sizes(values: Mapping[str, ir.Value], node: ir.Node) -> dict[str, tuple[int, ...]]:
    causal = node.attributes["mode"].as_string() == "causal"
    channels = _channels(values, node)
    gates = last(values.get("gate_bias"), channels)
    return {
        "x": (_BATCH, _TOKENS, channels),
        "gate": (_BATCH, _TOKENS if causal else _GATE_TOKENS, gates),
        "gate_bias": (gates,),
        "coefficients": (channels, last(values.get("coefficients"), 1)),
        "mask": (_BATCH, _TOKENS),
        "cos": (_TOKENS, channels // 2),
        "sin": (_TOKENS, channels // 2),
        "past_state": (_BATCH, 2, channels),
        "past_length": (_BATCH,),
    }


def _is_placeholder(name: str, value: ir.Value) -> bool:
    return len(value.shape or ()) == 1 and name not in {"gate_bias", "past_length"}


def _channels(values: Mapping[str, ir.Value], node: ir.Node) -> int:
    """Return a number of channels: the node's own, or one that suits its form and rotation."""
    known = [last(values["x"], 0), first(values.get("coefficients"))]
    fitting = _CHANNELS * max(1, node.attributes["degree"].as_int()) * last(values.get("gate_bias"), 1)
    return next((size for size in known if size > 1), fitting)


def last(value: ir.Value | None, default: int) -> int:
    """Return the last dimension of a value, or a default if it is unknown."""
    size = default if value is None or not value.shape else value.shape[-1]
    return size if isinstance(size, int) else default


def first(value: ir.Value | None) -> int:
    """Return the first dimension of a value, or 0 if it is unknown."""
    size = value.shape[0] if value is not None and value.shape else 0
    return size if isinstance(size, int) else 0
