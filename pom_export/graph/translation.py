"""How torch.onnx turns our torch op into the custom node."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnxscript import opset18
from onnxscript.values import Opset

from pom_export import contract
from pom_export.graph.schema import attributes, register_schema

_POM = Opset(contract.DOMAIN, contract.OP_VERSION)


def _placeholder(dtype: type) -> Any:
    """Return what holds the place of an absent input in front of a present one, see `pom_export.contract`."""
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
    inputs = [x, _placeholder(np.float32) if coefficients is None else coefficients]
    if mask is not None:
        inputs.append(mask)
    elif cos is not None:
        inputs.append(_placeholder(np.bool_))
    if cos is not None:
        inputs += [cos, sin]
    # Without a mask no weights are summed, and nothing is added to them.
    used_epsilon = contract.DEFAULT_EPSILON if mask is None else epsilon
    values = attributes(mode, used_epsilon, degree=degree, rotary_blocks=rotary_blocks)
    return getattr(_POM, contract.OP_NAME)(*inputs, **values)


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return `custom_translation_table` for torch.onnx.export; the schema is registered on the way."""
    register_schema()
    return {torch.ops.pom.polynomial_aggregation.default: _polynomial_aggregation}
