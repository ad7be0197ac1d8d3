"""Trace a tensor's `.data` as `.detach()`, since torch.export takes it for a constant and then refuses it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from torch import Tensor

from pom_export.errors import InputError
from pom_export.function_mode import FunctionMode

_READ: Final = Tensor.data.__get__  # type: ignore[attr-defined]
_REPLACE: Final = Tensor.data.__set__  # type: ignore[attr-defined]


class DetachedData(FunctionMode):
    """While active, `.data` gives the same as `.detach()`: the same values in the same memory, without gradients."""

    def call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a torch function, or detach instead of reading `.data`.

        Raises:
            InputError: a tensor's data is replaced, which a trace would miss.
        """
        if func == _REPLACE:
            raise InputError(
                "the model replaces a tensor's data (y.data = ...), which cannot be traced",
                "Assign the result to a variable, y = ..., or copy it: y.copy_(...)",
            )
        return args[0].detach() if func == _READ else func(*args, **kwargs)
