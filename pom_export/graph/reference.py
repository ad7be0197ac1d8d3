"""The reference for an exported model: the same module, computed in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from pom_export.graph.control_flow import OperatorMode, without_compiler
from pom_export.graph.copying import copy_module
from pom_export.torch_modes import default_dtype

_NARROW = (torch.float32, torch.float16, torch.bfloat16)
# Ops that pick values are applied before widening, because only few values are picked.
PICKING = (torch.ops.aten.embedding.default, torch.ops.aten.index_select.default)


class Float64Module(nn.Module):
    """Computes a module in float64, leaving the module unchanged and starting each call from the same buffers.

    Parameters are shared, possibly mapped from a file, and widened one operator at a time, so that a large model is
    never in memory twice. Layers that require inputs of their weights' type (nn.LSTM) don't allow this, so the module
    is then copied.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = copy_module(module)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module on inputs in float64."""
        # Each call runs on a copy, so that writes to buffers are forgotten, as in an exported graph. The default type
        # is changed as well, since a model may fill a new tensor with the least number of the default type.
        with without_compiler(), default_dtype(torch.float64):
            try:
                with Widen():
                    return with_wide_buffers(copy_module(self.module))(*args, **kwargs)
            except (RuntimeError, ValueError):
                return copy_module(self.module, torch.float64)(*args, **kwargs)


def with_wide_buffers(module: nn.Module) -> nn.Module:
    """Widen a copy's buffers permanently, because writes to a temporary widened copy would be lost."""
    for part in module.modules():
        for name, buffer in part.named_buffers(recurse=False):
            setattr(part, name, _wide(buffer))
    return module


def _wide(value: Any) -> Any:
    if isinstance(value, Tensor) and value.dtype in _NARROW:
        return value.double()
    return torch.float64 if isinstance(value, torch.dtype) and value in _NARROW else value


class Widen(OperatorMode):
    """Computes every operator in float64, and converts every floating-point result to float64."""

    def operate(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Call an operator with widened tensors."""
        # A tensor that an operator writes to must not be replaced by a copy.
        writes = func._schema.is_mutable
        widen: Callable[[Any], Any] = (lambda value: value) if writes or func in PICKING else _wide
        result = func(*tree_map(widen, args), **tree_map(widen, dict(kwargs)))
        return result if writes else tree_map(_wide, result)
