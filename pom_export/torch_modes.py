"""Reset torch's modes to their defaults, whatever the caller has switched on."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch.utils._python_dispatch import _disable_current_modes

from pom_export.process_wide import OneAtATime
from pom_export.torch_patches import FunctionPatch

_ONE_AT_A_TIME: Final = OneAtATime()


@dataclass
class Modes:
    """What happened in a block of `plain_modes`.

    Attributes:
        autocast: whether code in the block entered torch.autocast, which had no effect.
    """

    autocast: bool = False


@contextlib.contextmanager
def plain_modes() -> Iterator[Modes]:
    """Run a block on the CPU, in float32 by default, without gradients, autocast, inference mode or fake tensors.

    Tracing in any of these modes would give a different model. Autocast has no effect inside the block either, since
    the file's type determines the precision of each operator.

    The default type and the use of deterministic algorithms apply to all threads. Therefore only one thread at a time
    is in such a block, and others wait to enter theirs. Settings that are already as required are not touched.
    """
    modes = Modes()
    with _ONE_AT_A_TIME.block(), contextlib.ExitStack() as stack:
        stack.enter_context(_disable_current_modes())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.autograd.set_detect_anomaly(False))
        for kind in ("cpu", "cuda"):
            stack.enter_context(torch.autocast(kind, dtype=torch.bfloat16, enabled=False))
        stack.enter_context(_autocast_off(modes))
        stack.enter_context(torch.device("cpu"))
        stack.enter_context(default_dtype(torch.float32))
        stack.enter_context(_any_algorithms())
        yield modes


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Make torch create new tensors with a type, in all threads."""
    before = torch.get_default_dtype()
    if before == dtype:
        yield
        return
    try:
        torch.set_default_dtype(dtype)
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def _any_algorithms() -> Iterator[None]:
    """Let torch use nondeterministic algorithms too, in all threads."""
    if not torch.are_deterministic_algorithms_enabled():
        yield
        return
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        torch.use_deterministic_algorithms(False)
        yield
    finally:
        torch.use_deterministic_algorithms(True, warn_only=warn_only)


@contextlib.contextmanager
def no_transforms_left() -> Iterator[None]:
    """Restore the state of torch.vmap and torch.func: a trace that fails inside one would leave it active forever."""
    depth = torch._C._functorch.get_dynamic_layer_stack_depth()
    try:
        yield
    finally:
        _leave_transforms(depth)


def _leave_transforms(depth: int) -> None:
    functorch = torch._C._functorch
    while (before := functorch.get_dynamic_layer_stack_depth()) > depth:
        try:
            functorch.pop_dynamic_layer_stack_and_undo_to_depth(depth)
        except RuntimeError:  # torch 2.11 fails after leaving torch.vmap
            if functorch.get_dynamic_layer_stack_depth() >= before:
                raise


# The modes met by the threads in `plain_modes`, by thread, with those of the innermost block last.
_MET: Final[dict[int, list[Modes]]] = {}


@contextlib.contextmanager
def _autocast_off(modes: Modes) -> Iterator[None]:
    """Disable autocast in this thread, and note if it is entered."""
    thread = threading.get_ident()
    with autocast_entered.block(), autocast_left.block():
        blocks = _MET.setdefault(thread, [])
        blocks.append(modes)
        try:
            yield
        finally:
            blocks.pop()
            if not blocks:
                del _MET[thread]


def _entered(autocast: Any) -> Any:
    _MET[threading.get_ident()][-1].autocast |= autocast._enabled
    return autocast


def _left(*_: Any) -> bool:
    return False


autocast_entered: Final = FunctionPatch(torch.autocast, "__enter__", ("self",), _entered)
autocast_left: Final = FunctionPatch(torch.autocast, "__exit__", ("self", "exc_type", "exc_val", "exc_tb"), _left)


@contextlib.contextmanager
def same_generators() -> Iterator[None]:
    """Restore the random number generators of torch, and others that a model may use, after the block.

    They are shared by all threads, so another thread repeats the numbers that it drew meanwhile.
    """
    state, of_numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(state)
        np.random.set_state(of_numpy)
