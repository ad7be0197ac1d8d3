"""Check that a user's model gives the same outputs every time, as an exported file does."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pom_export.contract import DOMAIN
from pom_export.errors import InputError
from pom_export.graph.control_flow import OperatorMode
from pom_export.graph.copying import copy_module
from pom_export.graph.outputs import named_outputs
from pom_export.graph.own_program import Examples, run_on_examples
from pom_export.graph.refusals import line_of

# Threads may add in a different order from run to run, which changes a sum of many numbers by a few units in the last
# place.
_UNITS = 32
# Operators with this in their name are tagged as random, but are only so with dropout.
_ATTENTION = "attention"


def check_repeats(module: nn.Module, examples: Examples) -> bool:
    """Run copies of a model three times on its examples, and return whether it called our op by itself.

    Raises:
        InputError: it fails on the examples, draws random numbers, or gives other outputs when called again.
    """
    once, again = copy_module(module), copy_module(module)
    before = _kept(once)
    with _Watch() as watch:
        first = named_outputs(run_on_examples(once, examples))
    changed = [name for name, value in _kept(once).items() if not _same_value(before.get(name), value)]
    second = named_outputs(run_on_examples(once, examples))
    third = named_outputs(run_on_examples(again, examples))
    if all(_same(first, other) for other in (second, third)):
        return watch.aggregates
    if watch.random:
        raise InputError(f"the model draws random numbers: {watch.random}", "An exported file cannot: switch that off")
    if _same(first, third):
        kept = f": it keeps {', '.join(changed[:3])} between them" if changed else ""
        raise InputError(
            f"the model gives different outputs when it is called a second time{kept}",
            "Make what it keeps an input and an output: a file keeps nothing between calls",
        )
    raise InputError(
        "PyTorch itself gives different outputs each time the model is called on the same inputs",
        "Switch off whatever in it is random, or depends on the time or on earlier calls",
    )


class _Watch(OperatorMode):
    """Notes the first operator that draws random numbers, and whether our op is called."""

    def __init__(self) -> None:
        super().__init__()
        self.random = ""
        self.aggregates = False

    def operate(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        self.aggregates |= func.namespace == DOMAIN
        if not self.random and torch.Tag.nondeterministic_seeded in func.tags and _ATTENTION not in str(func):
            self.random = f"{func.overloadpacket}{_line_of_caller()}"
        return func(*args, **kwargs)


def _line_of_caller() -> str:
    """Return the line of the user's code that is currently running."""
    lines = (line_of(frame.f_code.co_filename, number) for frame, number in traceback.walk_stack(sys._getframe(1)))
    return next((line for line in lines if line), "")


def _same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return list(one) == list(other) and all(_equal(tensor, other[name]) for name, tensor in one.items())


def _equal(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if not one.is_floating_point():
        return torch.equal(one, other)
    finite = one.isfinite()
    largest = float(one[finite].abs().max()) if bool(finite.any()) else 0.0
    bound = _UNITS * torch.finfo(one.dtype).eps * largest
    return torch.allclose(one.double(), other.double(), rtol=0, atol=bound, equal_nan=True)


def _kept(module: nn.Module) -> dict[str, Any]:
    """Return a module's values that a call may change: buffers, and attributes with plain values."""
    kept: dict[str, Any] = {name: buffer.clone() for name, buffer in module.named_buffers()}
    for path, part in module.named_modules():
        values = {name: value for name, value in vars(part).items() if isinstance(value, (int, float, str))}
        kept |= {f"{path}.{name}".lstrip("."): value for name, value in values.items()}
    return kept


def _same_value(one: Any, other: Any) -> bool:
    return torch.equal(one, other) if isinstance(one, Tensor) and isinstance(other, Tensor) else bool(one == other)
