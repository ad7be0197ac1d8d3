"""How torch.onnx turns our torch op into the custom node."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from onnxscript.values import Opset

from pom_export import contract
from pom_export.graph.schema import attributes, register_schema

_POM = Opset(contract.DOMAIN, contract.OP_VERSION)


def _polynomial_aggregation(
    x: Any, coefficients: Any, mask: Any, mode: str, epsilon: float = contract.DEFAULT_EPSILON
) -> Any:
    inputs = (x, coefficients) if mask is None else (x, coefficients, mask)
    return getattr(_POM, contract.OP_NAME)(*inputs, **attributes(mode, epsilon))


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return `custom_translation_table` for torch.onnx.export; the schema is registered on the way."""
    register_schema()
    return {torch.ops.pom.polynomial_aggregation.default: _polynomial_aggregation}
