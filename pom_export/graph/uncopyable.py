"""Handle what copy.deepcopy refuses inside a module: share it where that is harmless, else name it in an error."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterable, Iterator, Mapping
from types import FunctionType, ModuleType
from typing import Any

from torch import Tensor, nn

from pom_export.errors import InputError, kind_of, reason_of

_MODULE_FIELDS = ("_parameters", "_buffers", "_modules")
_DEEPEST = 6
_PLAIN = (str, bytes, int, float, complex, bool, type, FunctionType, ModuleType, Tensor)


def owners(values: Iterable[Any]) -> Iterator[Any]:
    """Yield objects in `values` that must be shared with a copy because they release something when they are destroyed.

    For example, the copy of a connection would close the caller's when it is collected.
    """
    seen: set[int] = set()
    waiting = [(value, _DEEPEST) for value in values]
    while waiting:
        value, depth = waiting.pop()
        if id(value) in seen or isinstance(value, (*_PLAIN, nn.Module)):
            continue
        seen.add(id(value))
        # Generators have a finaliser written in C, and are reported by `shared_by_copies`.
        if isinstance(getattr(type(value), "__del__", None), FunctionType):
            yield value
        elif depth:
            waiting.extend((part, depth - 1) for _, part in _inside(value))


def shared_by_copies(module: nn.Module, memo: Mapping[int, Any]) -> dict[int, Any]:
    """Return the objects in a module that can't be copied but may be shared, in the form of `copy.deepcopy`'s memo.

    Args:
        module: the module to copy.
        memo: the copies that exist already.

    Raises:
        InputError: an attribute is an iterator, which running the copy would use up.
    """
    shared: dict[int, Any] = {}
    for path, part in module.named_modules():
        for name, value in vars(part).items():
            if name not in _MODULE_FIELDS:
                _share(value, f"{path}.{name}".lstrip("."), {**memo}, shared, _DEEPEST)
    return shared


def _share(value: Any, name: str, memo: dict[int, Any], shared: dict[int, Any], depth: int) -> None:
    """Add to `shared` the smallest parts of a value that can't be copied."""
    if isinstance(value, nn.Module) or _copies(value, memo | shared):
        return
    if isinstance(value, ModuleType):
        shared[id(value)] = value
        return
    for key, part in _inside(value) if depth else ():
        _share(part, f"{name}{key}", memo, shared, depth - 1)
    if _copies(value, memo | shared):
        return
    if hasattr(type(value), "__next__") and not isinstance(value, io.IOBase):
        raise InputError(
            f"the model's {name} is {kind_of(value)}, which cannot be copied, and which a run uses up",
            "Remove it from the model before the export",
        )
    shared[id(value)] = value


def _copies(value: Any, memo: dict[int, Any]) -> bool:
    try:
        copy.deepcopy(value, dict(memo))
    except Exception:  # noqa: BLE001 (whatever the object raises)
        return False
    return True


def _inside(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the parts of a value, each with its suffix for the value's name."""
    if isinstance(value, Mapping):
        yield from ((f"[{key!r}]", part) for key, part in value.items())
    elif isinstance(value, (list, tuple)):
        yield from ((f"[{index}]", part) for index, part in enumerate(value))
    else:
        yield from ((f".{key}", part) for key, part in getattr(value, "__dict__", {}).items())


def uncopyable(module: nn.Module, memo: Mapping[int, Any], error: Exception) -> InputError:
    """Return an error that names the innermost part of a module that can't be copied."""
    for name, part in reversed(list(module.named_modules())):
        if not _copies(part, {**memo}):
            where = f"{name} ({type(part).__name__})" if name else f"the model ({type(part).__name__})"
            return InputError(
                f"{where} can't be copied: {reason_of(error)}", "Give something that can be copied, or leave it out"
            )
    return InputError(f"the model can't be copied: {reason_of(error)}", "Give a copy that can be")
