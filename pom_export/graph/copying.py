"""Copies of a module whose weights are of another type, or the same tensors where the type is right already."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from pom_export.graph.uncopyable import owners, shared_by_copies, uncopyable
from pom_export.graph.wrappers import copy_without_wrappers

_Module = TypeVar("_Module", bound=nn.Module)
# Where a module keeps what is asked for by other names.
_MODULE_FIELDS = ("_parameters", "_buffers", "_modules")


def copy_module(module: _Module, dtype: torch.dtype | None = None) -> _Module:
    """Return a copy of a module, in evaluation mode, that shares every parameter whose type need not change.

    Wrappers inside it are left out, and the copy is on the CPU. The module itself is left as it is, by its copy's calls
    too: buffers and other tensors are copied. What can't be copied, such as a lock or an open file, is shared.

    Args:
        module: what to copy.
        dtype: floating-point type of the copy; None: weights keep their types.

    Raises:
        InputError: a part of it, or what an attribute holds, can't be copied.
    """
    memo: dict[int, object] = {}
    for tensor in plain_tensors(module):
        memo[id(tensor)] = tensor.detach().cpu().clone()  # one with a history can't be deep-copied
    for part in _parts(module):
        memo |= {id(value): value for value in owners(_own_leaves(part))}
        for buffer in part.buffers(recurse=False):
            memo[id(buffer)] = _converted(buffer, dtype).clone()
        for parameter in part.parameters(recurse=False):
            memo[id(parameter)] = _converted(parameter, dtype)
    with warnings.catch_warnings():
        # Traced modules hold classes that torch itself has deprecated.
        warnings.simplefilter("ignore", FutureWarning)
        try:
            return copy_without_wrappers(module, dict(memo)).eval()
        except Exception:  # noqa: BLE001 (whatever copy.deepcopy meets)
            memo |= shared_by_copies(module, memo)
        try:
            return copy_without_wrappers(module, memo).eval()
        except Exception as error:
            raise uncopyable(module, memo, error) from error


def _converted(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    wanted = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
    if tensor.dtype == wanted and tensor.device.type == "cpu":
        return tensor
    converted = tensor.detach().to("cpu", wanted)
    return nn.Parameter(converted, requires_grad=False) if isinstance(tensor, nn.Parameter) else converted


def plain_tensors(module: nn.Module) -> Iterator[Tensor]:
    """Yield the tensors that are neither parameters nor buffers, such as what a call has kept; in containers too."""
    for part in _parts(module):
        yield from (leaf for leaf in _own_leaves(part) if isinstance(leaf, Tensor))


def _parts(module: nn.Module) -> Iterator[nn.Module]:
    """Yield a module and all in it, those in plain containers, which torch does not know of, too."""
    seen, waiting = set(), [module]
    while waiting:
        for part in waiting.pop().modules():
            if part not in seen:
                seen.add(part)
                yield part
                waiting.extend(leaf for leaf in _own_leaves(part) if isinstance(leaf, nn.Module))


def _own_leaves(part: nn.Module) -> list[Any]:
    return tree_leaves({name: value for name, value in vars(part).items() if name not in _MODULE_FIELDS})
