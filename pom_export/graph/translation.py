"""Translate our torch ops into the custom node, and torch's own ops that torch.onnx gets wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import onnx_ir as ir
import torch
from onnxscript import opset18
from onnxscript.values import Op, Opset

from pom_export import contract
from pom_export.graph.schema import attributes, register_schema, stateless_schema

_POM = Opset(contract.DOMAIN, contract.OP_VERSION)


def _placeholder(dtype: type) -> Any:
    """Return a placeholder for an absent input that precedes a present one; see `pom_export.contract`."""
    return opset18.Constant(value=ir.to_proto(ir.tensor(np.ones(1, dtype))))


def _polynomial_aggregation(
    x: Any,
    coefficients: Any,
    mask: Any,
    mode: str,
    epsilon: float = contract.DEFAULT_EPSILON,
    degree: int = contract.DEFAULT_DEGREE,
    cos: Any = None,
    sin: Any = None,
    rotary_blocks: int = contract.DEFAULT_ROTARY_BLOCKS,
) -> Any:
    optional = [mask, cos, sin]
    while optional and optional[-1] is None:
        optional.pop()
    values = attributes(mode, _used(epsilon, mask), degree=degree, rotary_blocks=rotary_blocks)
    return Op(_POM, contract.OP_NAME, stateless_schema())(x, *_filled(coefficients, *optional), **values)


def _stateful_polynomial_aggregation(
    x: Any,
    coefficients: Any,
    mask: Any,
    past_state: Any,
    past_length: Any,
    mode: str,
    epsilon: float = contract.DEFAULT_EPSILON,
    degree: int = contract.DEFAULT_DEGREE,
    cos: Any = None,
    sin: Any = None,
    rotary_blocks: int = contract.DEFAULT_ROTARY_BLOCKS,
) -> Any:
    inputs = _filled(coefficients, mask, cos, sin)
    values = attributes(mode, _used(epsilon, mask), degree=degree, rotary_blocks=rotary_blocks, stateful=True)
    return getattr(_POM, contract.OP_NAME)(x, *inputs, past_state, past_length, **values)


def _squeeze(x: Any, dim: int) -> Any:
    """Leave a dimension of a size other than 1 unchanged, as torch does; ONNX refuses it."""
    if not x.shape or (isinstance(x.shape[dim], int) and x.shape[dim] != 1):
        return opset18.Identity(x)
    return opset18.Squeeze(x, cast(Any, opset18.Constant(value_ints=[dim])))


def _filled(*inputs: Any) -> list[Any]:
    """Return the inputs from the coefficients on, with placeholders for absent ones."""
    types = (np.float32, np.bool_, np.float32, np.float32)
    return [_placeholder(kind) if value is None else value for value, kind in zip(inputs, types, strict=False)]


def _used(epsilon: float, mask: Any) -> float:
    """Return the epsilon that is added to a sum of weights; without a mask, there is no such sum."""
    return contract.DEFAULT_EPSILON if mask is None else epsilon


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return the `custom_translation_table` for torch.onnx.export, after registering the schema."""
    register_schema()
    return {
        torch.ops.aten.squeeze.dim: _squeeze,
        torch.ops.pom.polynomial_aggregation.default: _polynomial_aggregation,
        torch.ops.pom.stateful_polynomial_aggregation.default: _stateful_polynomial_aggregation,
    }
