"""Find modules that torch does not know about: in plain lists and mappings, or captured by a function."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

_MODULE_FIELDS = ("_parameters", "_buffers", "_modules")
_DEEPEST = 4


def hidden_modules(module: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Yield modules that a module's parts hold without registering them: the path, the module, and what holds it."""
    known = {id(part) for part in module.modules()}
    for name, part in module.named_modules():
        prefix = f"{name}." if name else ""
        forward = getattr(type(part), "forward", None)
        own = {key: value for key, value in vars(part).items() if key not in _MODULE_FIELDS}
        for key, value in (*own.items(), ("forward", forward)):
            for path, found, holder in _modules_in(value, f"{prefix}{key}", "", _DEEPEST):
                if id(found) not in known:
                    known.add(id(found))
                    yield path, found, holder


def _modules_in(value: Any, path: str, holder: str, depth: int) -> Iterator[tuple[str, nn.Module, str]]:
    """Yield the modules inside a value: its path, the module, and what holds it."""
    if isinstance(value, nn.Module):
        if holder:
            for name, part in value.named_modules():
                yield f"{path}.{name}" if name else path, part, holder
        return
    if not depth:
        return
    if isinstance(value, Mapping):
        for key, entry in value.items():
            yield from _modules_in(entry, f"{path}[{key!r}]", "a plain dict", depth - 1)
    elif isinstance(value, (list, tuple)):
        for index, entry in enumerate(value):
            yield from _modules_in(entry, f"{path}[{index}]", f"a plain {type(value).__name__}", depth - 1)
    else:
        code, cells = getattr(value, "__code__", None), getattr(value, "__closure__", None) or ()
        for name, cell in zip(getattr(code, "co_freevars", ()), cells, strict=False):
            yield from _modules_in(_contents(cell), f"{path}.{name}", "a function", depth - 1)


def _contents(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # an empty cell
        return None
