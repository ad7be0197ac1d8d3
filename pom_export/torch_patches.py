"""Patch torch functions while a model is traced, after checking that each is the one that is expected.

A function is replaced only for threads inside a block; other threads get torch's own. A flag applies to all threads.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn.modules import transformer
from torch.onnx import _flags

from pom_export.errors import InputError
from pom_export.process_wide import Shared

_LOG = logging.getLogger(__name__)
OLDEST: Final = (2, 11)
NEWEST: Final = (2, 13)
"""The range of torch releases in which the replaced parts were checked."""


class FunctionPatch:
    """A replacement for a function of torch's.

    Args:
        owner: the module or class that has the function.
        name: the function's name.
        parameters: the function's expected parameters.
        replacement: the function to call instead, with the same arguments.
    """

    def __init__(self, owner: Any, name: str, parameters: Sequence[str], replacement: Callable[..., Any]) -> None:
        self._owner, self._name = owner, name
        self._parameters = tuple(parameters)
        self._replacement = replacement
        self._shared = Shared(self._in_place)

    @contextmanager
    def block(self) -> Iterator[None]:
        """Replace the function in this thread.

        Raises:
            InputError: this version of torch does not have it, or with other parameters.
        """
        with self._shared.block():
            yield

    @contextmanager
    def _in_place(self) -> Iterator[None]:
        original = getattr(self._owner, self._name, None)
        if not inspect.isfunction(original) or tuple(inspect.signature(original).parameters) != self._parameters:
            raise _unknown(f"function {self._owner.__name__}.{self._name}({', '.join(self._parameters)})")
        _look_at_version()

        def called(*args: Any, **kwargs: Any) -> Any:
            return (self._replacement if self._shared.here else original)(*args, **kwargs)

        setattr(self._owner, self._name, called)
        try:
            yield
        finally:
            if getattr(self._owner, self._name) is called:
                setattr(self._owner, self._name, original)


class FlagPatch:
    """Another value for a flag of torch's, in all threads while any of them is in a block.

    Args:
        owner: the module that has the flag.
        name: the flag's name.
        value: its value during a block.
    """

    def __init__(self, owner: Any, name: str, value: bool) -> None:
        self._owner, self._name, self._value = owner, name, value
        self._shared = Shared(self._in_place)

    @contextmanager
    def block(self) -> Iterator[None]:
        """Set the flag.

        Raises:
            InputError: this version of torch does not have it.
        """
        with self._shared.block():
            yield

    @contextmanager
    def _in_place(self) -> Iterator[None]:
        before = getattr(self._owner, self._name, None)
        if not isinstance(before, bool):
            raise _unknown(f"flag {self._owner.__name__}.{self._name}")
        _look_at_version()
        setattr(self._owner, self._name, self._value)
        try:
            yield
        finally:
            setattr(self._owner, self._name, before)


def _unknown(part: str) -> InputError:
    oldest, newest = (".".join(map(str, version)) for version in (OLDEST, NEWEST))
    return InputError(f"torch {torch.__version__} has no {part}", f"Use torch {oldest} to {newest}")


@cache
def _look_at_version() -> None:
    """Refuse a torch that is too old, and log a warning if it is newer than the known ones."""
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < OLDEST:
        raise InputError(f"torch {torch.__version__} is too old", f"Use {'.'.join(map(str, OLDEST))} or newer")
    if version > NEWEST:
        _LOG.warning("torch %s is newer than those that were tried, up to %s.%s", torch.__version__, *NEWEST)


def _trust_is_causal(mask: Tensor | None, is_causal: bool | None = None, size: int | None = None) -> bool:  # noqa: ARG001
    return bool(is_causal)


traceable_transformers: Final = FunctionPatch(
    transformer, "_detect_is_causal_mask", ("mask", "is_causal", "size"), _trust_is_causal
)
"""Allows tracing torch's Transformer layers with a mask, whose values they read to find out whether it is causal.

While tracing, there are no values. The answer "no" is always correct, since the mask is applied in any case.
"""
fixed_sizes: Final = FlagPatch(_flags, "PREFER_DEFERRED_RUNTIME_ASSERTS_OVER_GUARDS", False)
"""Makes torch fix sizes that a model uses as numbers.

Otherwise torch leaves them dynamic in the graph, and just notes that they must have those values.
"""
