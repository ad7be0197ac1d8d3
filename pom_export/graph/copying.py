"""Copies of a module whose weights are of another type, or the same tensors where the type is right already."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn

_Module = TypeVar("_Module", bound=nn.Module)
_SMALL_TYPES = (torch.float16, torch.bfloat16)


def copy_module(module: _Module, dtype: torch.dtype | None = None) -> _Module:
    """Return a copy of a module, in evaluation mode, that shares every weight whose type need not change.

    The module itself is left as it is. Buffers that a class lists in `full_precision_buffers` (tables of angles)
    are never smaller than float32.

    Args:
        module: what to copy.
        dtype: floating-point type of the copy; None: weights keep their types.
    """
    memo: dict[int, object] = {}
    full_precision = set(_full_precision_buffers(module))
    for tensor in [*module.parameters(), *module.buffers()]:
        memo[id(tensor)] = _converted(tensor, dtype, id(tensor) in full_precision)
    with warnings.catch_warnings():
        # Traced modules hold classes that torch itself has deprecated.
        warnings.simplefilter("ignore", FutureWarning)
        return copy.deepcopy(module, memo).eval()


def _converted(tensor: Tensor, dtype: torch.dtype | None, full_precision: bool) -> Tensor:
    if dtype is None or not tensor.is_floating_point():
        return tensor
    if full_precision and dtype in _SMALL_TYPES:
        dtype = torch.float32
    if tensor.dtype == dtype:
        return tensor
    converted = tensor.detach().to(dtype)
    return nn.Parameter(converted, requires_grad=False) if isinstance(tensor, nn.Parameter) else converted


def _full_precision_buffers(module: nn.Module) -> Iterator[int]:
    for part in module.modules():
        names = getattr(part, "full_precision_buffers", ())
        yield from (id(buffer) for name, buffer in part.named_buffers(recurse=False) if name in names)
