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
# What only moves values is widened after it has picked the few that it needs.
PICKING = (torch.ops.aten.embedding.default, torch.ops.aten.index_select.default)


class Float64Module(nn.Module):
    """Computes in float64 what a module computes; the module itself is left as it is, and so is every call's start.

    Parameters are shared, mapped from a file perhaps, and widened one operator at a time: a large model is never held
    twice. Layers that insist on inputs of their weights' type (nn.LSTM) don't bear that; for those it is copied.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = copy_module(module)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module on inputs in float64."""
        # A copy a call: what the module writes to its buffers is forgotten, as it is by an exported graph.
        # What a model fills a new tensor with may be the least number of its inputs' type.
        with without_compiler(), default_dtype(torch.float64):
            try:
                with Widen():
                    return with_wide_buffers(copy_module(self.module))(*args, **kwargs)
            except (RuntimeError, ValueError):
                return copy_module(self.module, torch.float64)(*args, **kwargs)


def with_wide_buffers(module: nn.Module) -> nn.Module:
    """Widen a copy's buffers for good: what is written to a widened copy of one would be lost."""
    for part in module.modules():
        for name, buffer in part.named_buffers(recurse=False):
            setattr(part, name, _wide(buffer))
    return module


def _wide(value: Any) -> Any:
    if isinstance(value, Tensor) and value.dtype in _NARROW:
        return value.double()
    return torch.float64 if isinstance(value, torch.dtype) and value in _NARROW else value


class Widen(OperatorMode):
    """Computes every operator in float64, and makes every floating-point result one."""

    def operate(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Call an operator on widened tensors."""
        # What an operator writes to must stay the tensor that it is.
        writes = func._schema.is_mutable
        widen: Callable[[Any], Any] = (lambda value: value) if writes or func in PICKING else _wide
        result = func(*tree_map(widen, args), **tree_map(widen, dict(kwargs)))
        return result if writes else tree_map(_wide, result)
