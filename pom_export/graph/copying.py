"""Copies of a module whose weights are of another type, or the same tensors where the type is right already."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

_Module = TypeVar("_Module", bound=nn.Module)
# Where a module keeps what is asked for by other names.
_MODULE_FIELDS = ("_parameters", "_buffers", "_modules")


def copy_module(module: _Module, dtype: torch.dtype | None = None) -> _Module:
    """Return a copy of a module, in evaluation mode, that shares every parameter whose type need not change.

    The module itself is left as it is, by its copy's calls too: buffers and other tensors are copied.

    Args:
        module: what to copy.
        dtype: floating-point type of the copy; None: weights keep their types.
    """
    memo: dict[int, object] = {}
    for tensor in plain_tensors(module):
        memo[id(tensor)] = tensor.detach().clone()  # one with a history can't be deep-copied
    for buffer in module.buffers():
        memo[id(buffer)] = _converted(buffer, dtype).clone()
    for parameter in module.parameters():
        memo[id(parameter)] = _converted(parameter, dtype)
    with warnings.catch_warnings():
        # Traced modules hold classes that torch itself has deprecated.
        warnings.simplefilter("ignore", FutureWarning)
        return copy.deepcopy(module, memo).eval()


def _converted(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    if dtype is None or not tensor.is_floating_point():
        return tensor
    if tensor.dtype == dtype:
        return tensor
    converted = tensor.detach().to(dtype)
    return nn.Parameter(converted, requires_grad=False) if isinstance(tensor, nn.Parameter) else converted


def plain_tensors(module: nn.Module) -> Iterator[Tensor]:
    """Yield the tensors that are neither parameters nor buffers, such as what a call has kept; in containers too."""
    for part in module.modules():
        own = {name: value for name, value in vars(part).items() if name not in _MODULE_FIELDS}
        yield from (value for value in tree_leaves(own) if isinstance(value, Tensor))
