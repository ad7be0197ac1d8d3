"""Torch's modes as they are when a program starts, whatever the caller has switched on."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch
from torch.utils._python_dispatch import _disable_current_modes


@contextlib.contextmanager
def plain_modes() -> Iterator[None]:
    """Run a block on the CPU, in float32 unless told otherwise, without gradients, autocast, inference or fake mode.

    What is traced under any of them would be another model.
    """
    default, deterministic = torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    with contextlib.ExitStack() as stack:
        stack.enter_context(_disable_current_modes())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.autograd.set_detect_anomaly(False))
        for kind in ("cpu", "cuda"):
            stack.enter_context(torch.autocast(kind, dtype=torch.bfloat16, enabled=False))
        stack.enter_context(torch.device("cpu"))
        try:
            torch.set_default_dtype(torch.float32)
            torch.use_deterministic_algorithms(False)
            yield
        finally:
            torch.set_default_dtype(default)
            torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)


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
