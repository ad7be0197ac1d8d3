"""Copy a module with weights of another type, sharing the tensors that already have it."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from pom_export.errors import InputError
from pom_export.graph.uncopyable import owners, shared_by_copies, uncopyable
from pom_export.graph.wrappers import copy_without_wrappers, inner_module
from pom_export.quiet import quiet_warnings

_Module = TypeVar("_Module", bound=nn.Module)
# Attributes of a module whose contents are accessed in other ways.
_MODULE_FIELDS = ("_parameters", "_buffers", "_modules")
_PLAIN = (int, float, complex, str, bytes)
# Modules, each with the values that its attributes hold.
_Parts = dict[nn.Module, list[Any]]


def copy_module(module: _Module, dtype: torch.dtype | None = None) -> _Module:
    """Return a copy of a module, in evaluation mode and on the CPU, that shares every parameter that need not change.

    The copy is without the wrappers inside the module. Buffers and other tensors are copied, so that calls of the copy
    do not change the original. What can't be copied, such as a lock or an open file, is shared.

    Args:
        module: the module.
        dtype: floating-point type of the copy; None: weights keep their types.

    Raises:
        InputError: a part of the module or the value of an attribute can't be copied, or its copy has other values.
    """
    memo: dict[int, Any] = {}
    parts = _parts(module)
    for tensor in _tensors(parts):
        memo[id(tensor)] = tensor.detach().cpu().clone()  # a tensor with a gradient history can't be deep-copied
    changing = _changed_by_eval(parts)
    for part, leaves in parts.items():
        memo |= {id(value): value for value in owners(leaves)}
        for buffer in part.buffers(recurse=False):
            memo[id(buffer)] = _converted(buffer, dtype).clone()
        for parameter in part.parameters(recurse=False):
            converted = _converted(parameter, dtype)
            memo[id(parameter)] = copy.deepcopy(converted) if parameter in changing else converted
    # Traced modules contain classes that torch itself has deprecated.
    with quiet_warnings(FutureWarning):
        try:
            return _copied(module, memo)
        except InputError:
            raise
        except Exception:  # noqa: BLE001 (whatever copy.deepcopy meets)
            memo |= shared_by_copies(module, memo)
        try:
            return _copied(module, memo)
        except InputError:
            raise
        except Exception as error:
            raise uncopyable(module, memo, error) from error


def _copied(module: _Module, memo: Mapping[int, Any]) -> _Module:
    copies = dict(memo)
    copied = copy_without_wrappers(module, copies)
    _check_values(module, copies)
    return copied.eval()


def _changed_by_eval(parts: Iterable[nn.Module]) -> set[Tensor]:
    """Return the parameters that `eval` may change, like that of adapters that are merged then."""
    changing = (part for part in parts if part.training and type(part).train is not nn.Module.train)
    return {parameter for part in changing for parameter in part.parameters()}


def _check_values(module: nn.Module, copies: Mapping[int, Any]) -> None:
    """Raise InputError if the copy of a part has other values, which a class with its own way of copying may cause.

    Values that a copy lacks, such as a cache, do not count: the model computes them again, or fails.

    Args:
        module: the module that was copied.
        copies: the copies of everything in it, by id.
    """
    for part in _parts(module):
        copied = copies.get(id(part))
        if inner_module(part) is not None or type(copied) is not type(part) or isinstance(part, torch.jit.ScriptModule):
            continue
        others = _values(copied)
        for name, value in _values(part).items():
            wanted, other = copies.get(id(value), value) if isinstance(value, Tensor) else value, others.get(name)
            if other is not None and not _same_value(wanted, other):
                path = next((path for path, one in module.named_modules() if one is part), "")
                raise InputError(
                    f"a copy of {path or 'the model'} ({type(part).__name__}) has a different {name} from the "
                    "original, and an export works on copies",
                    "Copy it too in the class's __deepcopy__ or __reduce__",
                )


def _values(part: nn.Module) -> dict[str, Any]:
    """Return a part's own parameters, buffers, and attributes that are tensors or plain values.

    Whether it is training is not among them: a copy never is.
    """
    own = {**vars(part), **part._parameters, **part._buffers}
    own.pop("training", None)
    return {name: value for name, value in own.items() if isinstance(value, (Tensor, *_PLAIN))}


def _same_value(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one is other or (one.shape == other.shape and bool((one == other).all()))
    return repr(one) == repr(other)  # NaN differs from itself


def _converted(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    wanted = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
    if tensor.dtype == wanted and tensor.device.type == "cpu":
        return tensor
    converted = tensor.detach().to("cpu", wanted)
    return nn.Parameter(converted, requires_grad=False) if isinstance(tensor, nn.Parameter) else converted


def plain_tensors(module: nn.Module) -> Iterator[Tensor]:
    """Yield tensors that are neither parameters nor buffers, such as those kept by a call, also those in containers."""
    return _tensors(_parts(module))


def _tensors(parts: _Parts) -> Iterator[Tensor]:
    return (leaf for leaves in parts.values() for leaf in leaves if isinstance(leaf, Tensor))


def _parts(module: nn.Module) -> _Parts:
    """Return a module and all modules in it, including those in plain containers, which torch does not know about."""
    parts: _Parts = {}
    waiting = [module]
    while waiting:
        for part in waiting.pop().modules():
            if part not in parts:
                parts[part] = _own_leaves(part)
                waiting.extend(leaf for leaf in parts[part] if isinstance(leaf, nn.Module))
    return parts


def _is_empty(value: object) -> bool:
    return type(value) in {dict, OrderedDict} and not value


def _own_leaves(part: nn.Module) -> list[Any]:
    # Most of a module's attributes are empty dicts of hooks.
    own = [value for name, value in vars(part).items() if name not in _MODULE_FIELDS and not _is_empty(value)]
    return tree_leaves(own)
