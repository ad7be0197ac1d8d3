"""Unwrap modules that compute the same as the one inside, such as those of torch.compile and data parallelism."""

from __future__ import annotations

import copy
import inspect
from typing import Any, TypeVar

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

_Module = TypeVar("_Module", bound=nn.Module)
# Under which name each keeps the module inside: torch.compile, activation checkpointing, FSDP, Lightning Fabric.
_INNER_NAMES = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module", "_forward_module")
_KEEPS_MODULE = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)


def inner_module(module: nn.Module) -> nn.Module | None:
    """Return the module that a wrapper holds, or None where the module is no wrapper."""
    if isinstance(module, torch.jit.ScriptModule):
        return None
    # Not getattr, which many wrappers forward to what they hold.
    children = module._modules
    if isinstance(module, _KEEPS_MODULE):
        return children.get("module")
    return next((children[name] for name in _INNER_NAMES if children.get(name) is not None), None)


def unwrapped(module: nn.Module) -> nn.Module:
    """Return the module inside all wrappers around it."""
    while (inner := inner_module(module)) is not None:
        module = inner
    return module


def plain_name(name: str) -> str:
    """Return the name of a part without what wrappers add to it."""
    return ".".join(step for step in name.split(".") if step not in _INNER_NAMES)


def has_forward(module: nn.Module) -> bool:
    """Return whether a module can be called: a container such as nn.ModuleList can't."""
    return getattr(type(module), "forward", None) is not nn.Module.forward or "forward" in vars(module)


def forward_signature(module: nn.Module) -> inspect.Signature:
    """Return the signature of a module's forward; of one that passes on all that it gets, that of the module inside.

    So do peft's models. Which module that is, is plain where there is one alone.
    """
    signature = inspect.signature(module.forward)
    kinds = {parameter.kind for parameter in signature.parameters.values()}
    inner = [child for child in module._modules.values() if child is not None and has_forward(child)]
    if kinds == {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD} and len(inner) == 1:
        return forward_signature(inner[0])
    return signature


def copy_without_wrappers(module: _Module, memo: dict[int, Any]) -> _Module:
    """Return a deep copy of a module in which every wrapper, however deep, is replaced by what it holds.

    Args:
        module: what to copy.
        memo: as `copy.deepcopy` takes it.
    """
    # From the inside out, so that what a wrapper holds finds its own wrappers replaced.
    for part in reversed(list(module.modules())):
        if inner_module(part) is not None:
            memo[id(part)] = copy.deepcopy(unwrapped(part), memo)
    return copy.deepcopy(module, memo)
