"""Find the cause when an exported file differs from PyTorch, by running what was traced in PyTorch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pom_export.errors import reason_of
from pom_export.graph.exported_model import PRECISIONS
from pom_export.parity.case import Array
from pom_export.parity.comparison import Difference, difference
from pom_export.parity.tolerances import MODELS, Tolerance
from pom_export.runtime.runners import Arrays, run_module

if TYPE_CHECKING:
    from torch import nn

    from pom_export.api.source import Source, SubstitutedCopy

_NOT_WRITTEN = "No file was written"
_NOT_FINITE = (
    "One output holds NaN or infinity where the other has none: half precision ends at 65504, and the official code "
    "gives NaN for a row that is masked out, where this toolkit gives 0"
)
_NOTHING = "PyTorch itself gives no finite number there: give example inputs for which it does"


def fault_hint(source: Source, feed: Arrays, found: Difference) -> str:
    """Explain why a file's outputs differ from PyTorch's, and what to do.

    A user's mixer is blamed only if the model gives the same outputs every time and what was traced in place of the
    mixer gives others.

    Args:
        source: the source of the export.
        feed: inputs by name on which outputs differ.
        found: the difference.
    """
    tolerance = MODELS[PRECISIONS[0]]  # everything here runs in float64, whatever the file's type
    reference = source.reference()
    expected = run_module(reference, feed)
    if not _agree(run_module(reference, feed), expected, tolerance):
        return (
            f"{_NOT_WRITTEN}. PyTorch itself gives different outputs each time the model runs: look for random "
            "numbers in evaluation mode, or for state kept between calls"
        )
    if not all(np.isfinite(output).any() for output in expected):
        return f"{_NOT_WRITTEN}. {_NOTHING}"
    copied = source.substituted_copy()
    if copied.replaced:
        if (wrong := next(_wrong_mixers(source, copied, feed, tolerance), None)) is not None:
            return f"{_NOT_WRITTEN}. {wrong}"
        if not _agree(run_module(source.traced_reference(), feed), expected, tolerance):
            return (
                f"{_NOT_WRITTEN}. In PyTorch, too, what was traced differs from the model, although each mixer by "
                "itself does not: something depends on the class or the attributes of a mixer"
            )
    if not math.isfinite(found.max_abs) and "shape" not in found.reason:
        return f"{_NOT_WRITTEN}. {_NOT_FINITE}"
    if copied.replaced:
        return (
            f"{_NOT_WRITTEN}. In PyTorch, what was traced gives the model's outputs: the fault is in the export or "
            "the runtime, not in your mixers. Please report it"
        )
    return _NOT_WRITTEN


def _agree(outputs: list[Array], expected: list[Array], tolerance: Tolerance) -> bool:
    return len(outputs) == len(expected) and all(
        difference(one, other, tolerance) or np.array_equal(one, other, equal_nan=True)
        for one, other in zip(outputs, expected, strict=True)
    )


def _wrong_mixers(source: Source, copied: SubstitutedCopy, feed: Arrays, tolerance: Tolerance) -> Iterator[str]:
    """Yield an explanation for each replaced mixer whose replacement gives other outputs on the same inputs."""
    import torch

    from pom_export.graph.reference import Float64Module

    calls = _recorded_calls(source, copied.replaced, feed)
    for name, (original, args, kwargs, result) in calls.items():
        kind = type(original).__name__
        replacement = Float64Module(copied.module.get_submodule(name) if name else copied.module)
        try:
            with torch.no_grad():
                outputs = _arrays(replacement(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 (any failure is the answer)
            yield f"The replacement of {name or kind} fails on the same inputs: {reason_of(error)}"
            continue
        expected = _arrays(result)
        if not _agree(outputs, expected, tolerance):
            yield (
                f"{name or kind} was replaced by what the official class computes, whose outputs on the same inputs "
                f"differ{_by(outputs, expected)}: {_cause(copied, name or kind)}. Or declare what it computes with "
                f"mixers={{{kind}: adapter}}"
            )


def _cause(copied: SubstitutedCopy, name: str) -> str:
    from pom_export.graph.effective_weights import FOLD

    if folded := copied.folded.get(name):
        return f"it uses {', '.join(folded)} without calling the layer. {FOLD}"
    return "its forward or a method was changed"


def _arrays(result: Any) -> list[Array]:
    import torch
    from torch.utils._pytree import tree_leaves

    return [leaf.numpy() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]


def _by(outputs: list[Array], expected: list[Array]) -> str:
    if len(outputs) != len(expected) or any(a.shape != b.shape for a, b in zip(outputs, expected, strict=True)):
        return " in shape"
    most = max((float(np.abs(a - b).max()) for a, b in zip(outputs, expected, strict=True) if a.size), default=0.0)
    return f" by {most:.3g}" if math.isfinite(most) else ""


def _recorded_calls(
    source: Source, replaced: Sequence[str], feed: Arrays
) -> dict[str, tuple[nn.Module, Any, Any, Any]]:
    """Return the first call of each replaced mixer in the user's model: the module, its arguments and its result."""
    from pom_export.graph.copying import copy_module
    from pom_export.graph.reference import Float64Module

    calls: dict[str, tuple[nn.Module, Any, Any, Any]] = {}
    model = copy_module(source.module)
    modules = dict(model.named_modules(remove_duplicate=False))
    for name in replaced:
        # The model itself is listed under its class's name.
        key = name if name in modules else ""

        def record(module: nn.Module, args: Any, kwargs: Any, result: Any, key: str = key) -> None:
            calls.setdefault(key, (module, args, kwargs, result))

        modules[key].register_forward_hook(record, with_kwargs=True)
    run_module(Float64Module(source.reference_program(model).module), feed)
    return calls
