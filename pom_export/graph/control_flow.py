"""Run operators that call functions, such as torch.cond's, like Python, with a dispatch mode active inside."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch._ops import HigherOrderOperator
from torch.utils._python_dispatch import TorchDispatchMode


class OperatorMode(TorchDispatchMode):
    """A dispatch mode that sees every operator, including those in functions that other operators call."""

    supports_higher_order_operators = True

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call an operator through `operate`."""
        if isinstance(func, HigherOrderOperator):
            return self._called_under(func, args, kwargs or {})
        return self.operate(func, args, kwargs or {})

    def operate(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Return the result of an operator that calls no functions."""
        return func(*args, **kwargs)

    def _called_under(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Return the result of an operator that calls functions, with this mode active inside them."""

        def under(function: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(function, updated=())
            def called(*inner: Any, **given: Any) -> Any:
                with self:
                    return function(*inner, **given)

            return called

        def wrapped(value: Any) -> Any:
            return under(value) if callable(value) and not isinstance(value, torch.Tensor) else value

        return func(*map(wrapped, args), **{name: wrapped(value) for name, value in kwargs.items()})


def without_compiler() -> Any:
    """Return a context in which torch runs eagerly what it would otherwise compile: torch.cond and compiled modules."""
    return torch.compiler.set_stance("force_eager")
