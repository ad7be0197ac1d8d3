"""Torch's modes as they are when a program starts, whatever the caller has switched on."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import _disable_current_modes


@dataclass
class Modes:
    """What a block in `plain_modes` met.

    Attributes:
        autocast: whether code in it entered torch.autocast, which had no effect.
    """

    autocast: bool = False


@contextlib.contextmanager
def plain_modes() -> Iterator[Modes]:
    """Run a block on the CPU, in float32 unless told otherwise, without gradients, autocast, inference or fake mode.

    What is traced under any of them would be another model. Autocast has no effect inside the block either: how
    precise each operator is, the type of a file decides.
    """
    default, deterministic = torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    modes = Modes()
    with contextlib.ExitStack() as stack:
        stack.enter_context(_disable_current_modes())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.autograd.set_detect_anomaly(False))
        for kind in ("cpu", "cuda"):
            stack.enter_context(torch.autocast(kind, dtype=torch.bfloat16, enabled=False))
        stack.enter_context(_AUTOCAST_OFF.here(modes))
        stack.enter_context(torch.device("cpu"))
        try:
            torch.set_default_dtype(torch.float32)
            torch.use_deterministic_algorithms(False)
            yield modes
        finally:
            torch.set_default_dtype(default)
            torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)


@contextlib.contextmanager
def no_transforms_left() -> Iterator[None]:
    """Leave torch.vmap and torch.func as they were: a trace that fails inside one would leave it on for good."""
    depth = torch._C._functorch.get_dynamic_layer_stack_depth()
    try:
        yield
    finally:
        torch._C._functorch.pop_dynamic_layer_stack_and_undo_to_depth(depth)


class _AutocastOff:
    """Threads in which autocast does nothing.

    Torch's class is changed by the first of them and put back by the last: were each to put back what it found, two
    that overlap would leave the change of one for good.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.modes: dict[int, Modes] = {}
        self.enter, self.leave = torch.autocast.__enter__, torch.autocast.__exit__

    @contextlib.contextmanager
    def here(self, modes: Modes) -> Iterator[None]:
        """Let autocast do nothing in this thread, and note where it is entered."""
        thread = threading.get_ident()
        with self.lock:
            if not self.modes:
                self._put_in_place()
            outer = self.modes.get(thread)
            self.modes[thread] = modes
        try:
            yield
        finally:
            with self.lock:
                del self.modes[thread]
                if outer is not None:
                    self.modes[thread] = outer
                if not self.modes:
                    torch.autocast.__enter__, torch.autocast.__exit__ = self.enter, self.leave  # type: ignore[method-assign]

    def _put_in_place(self) -> None:
        self.enter, self.leave = torch.autocast.__enter__, torch.autocast.__exit__

        def entered(autocast: Any) -> Any:
            modes = self.modes.get(threading.get_ident())
            if modes is None:
                return self.enter(autocast)
            modes.autocast |= autocast._enabled
            return autocast

        def left(autocast: Any, *error: Any) -> Any:
            return False if threading.get_ident() in self.modes else self.leave(autocast, *error)

        torch.autocast.__enter__, torch.autocast.__exit__ = entered, left  # type: ignore[method-assign]


_AUTOCAST_OFF = _AutocastOff()


@contextlib.contextmanager
def same_generators() -> Iterator[None]:
    """Leave the generators of random numbers, torch's and others that a model may draw from, as they were."""
    state, of_numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(state)
        np.random.set_state(of_numpy)
