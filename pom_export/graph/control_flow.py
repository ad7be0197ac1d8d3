"""Operators that call functions, such as that of torch.cond: run as Python would, with a dispatch mode on inside."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch._ops import HigherOrderOperator
from torch.utils._python_dispatch import TorchDispatchMode


def is_control_flow(func: Any) -> bool:
    """Return whether what a dispatch mode is given is an operator that calls functions."""
    return isinstance(func, HigherOrderOperator)


def called_under(mode: TorchDispatchMode, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None) -> Any:
    """Return what such an operator gives, with a mode on in the functions that it calls."""

    def under(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function, updated=())
        def called(*inner: Any, **given: Any) -> Any:
            with mode:
                return function(*inner, **given)

        return called

    def wrapped(value: Any) -> Any:
        return under(value) if callable(value) and not isinstance(value, torch.Tensor) else value

    return func(*map(wrapped, args), **{name: wrapped(value) for name, value in (kwargs or {}).items()})


def without_compiler() -> Any:
    """Return a context in which torch runs what it would compile: torch.cond outside a trace, and compiled modules."""
    return torch.compiler.set_stance("force_eager")
