"""Unwrap modules that compute the same as the one inside, such as those of torch.compile and data parallelism."""

from __future__ import annotations

import copy
import inspect
from typing import Any, TypeVar

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

_Module = TypeVar("_Module", bound=nn.Module)
# Attributes in which wrappers keep the inner module: torch.compile, activation checkpointing, FSDP, Lightning Fabric.
_INNER_NAMES = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module", "_forward_module")
_KEEPS_MODULE = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)


def inner_module(module: nn.Module) -> nn.Module | None:
    """Return the module inside a wrapper; None if the module is not a wrapper."""
    if isinstance(module, torch.jit.ScriptModule):
        return None
    # Many wrappers forward getattr to the module inside.
    children = module._modules
    if isinstance(module, _KEEPS_MODULE):
        return children.get("module")
    return next((children[name] for name in _INNER_NAMES if children.get(name) is not None), None)


def unwrapped(module: nn.Module) -> nn.Module:
    """Return the module inside all of its wrappers."""
    while (inner := inner_module(module)) is not None:
        module = inner
    return module


def plain_name(name: str) -> str:
    """Return the name of a part without the components that wrappers add."""
    return ".".join(step for step in name.split(".") if step not in _INNER_NAMES)


def has_forward(module: nn.Module) -> bool:
    """Return whether a module can be called, unlike a container such as nn.ModuleList."""
    return getattr(type(module), "forward", None) is not nn.Module.forward or "forward" in vars(module)


def forward_signature(module: nn.Module) -> inspect.Signature:
    """Return the signature of a module's forward; if it just forwards all arguments, that of the only module inside.

    The models of peft are such modules.
    """
    signature = inspect.signature(module.forward)
    kinds = {parameter.kind for parameter in signature.parameters.values()}
    inner = [child for child in module._modules.values() if child is not None and has_forward(child)]
    if kinds == {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD} and len(inner) == 1:
        return forward_signature(inner[0])
    return signature


def copy_without_wrappers(module: _Module, memo: dict[int, Any]) -> _Module:
    """Return a deep copy of a module in which every wrapper, however deep, is replaced by the module inside.

    Args:
        module: the module to copy.
        memo: the memo for `copy.deepcopy`.
    """
    # From the inside out, so that wrappers inside a wrapper are already replaced.
    for part in reversed(list(module.modules())):
        if inner_module(part) is not None:
            memo[id(part)] = copy.deepcopy(unwrapped(part), memo)
    return copy.deepcopy(module, memo)
