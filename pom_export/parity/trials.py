"""Inputs on which to compare a file with another one, whatever the names of its dimensions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Final

import numpy as np

from pom_export.errors import InputError
from pom_export.graph.dimensions import BATCH, CONTEXT_TOKENS, PAST_TOKENS, TOKENS
from pom_export.graph.exported_model import ExportedModel, TensorSpec
from pom_export.graph.size_expressions import names_in, size_of
from pom_export.parity.case import Case
from pom_export.parity.inputs import ComparisonPlan, draw, make_cases

_OURS: Final = (BATCH, TOKENS, CONTEXT_TOKENS, PAST_TOKENS)
# Two neighbouring sizes, the smallest, and larger ones: for the first dimension of each input, and for the others.
_SIZES: Final = ((2, 16), (3, 17), (1, 1), (2, 67))


def trial_cases(model: ExportedModel, seed: int = 0) -> list[Case]:
    """Return inputs at several sizes that a file takes by its own account.

    For the dimensions of our own models these are the cases of `make_cases`, and otherwise random values at a few
    sizes within the file's limits.

    Raises:
        InputError: an input has a dimension whose size cannot be chosen.
    """
    axes = [axis for spec in model.inputs for axis in spec.axes]
    if all(isinstance(axis, int) or axis in _OURS for axis in axes):
        return list(make_cases(model.inputs, model.limits, seed))
    return list(_cases_of_any(model, seed))


def _cases_of_any(model: ExportedModel, seed: int) -> Iterator[Case]:
    random = np.random.default_rng(seed)
    first = {name for spec in model.inputs if spec.axes for name in _names(spec.axes[0])}
    names = sorted({name for spec in model.inputs for axis in spec.axes for name in _names(axis)})
    tried = []
    for rows, others in _SIZES:
        sizes = {name: _within(rows if name in first else others, model, name) for name in names}
        if sizes in tried:
            continue
        tried.append(sizes)
        specs = [_sized(spec, sizes) for spec in model.inputs]
        text = ", ".join(f"{name} {size}" for name, size in sizes.items())
        yield Case(text, draw(specs, ComparisonPlan(text, rows, others, others), model.limits, random))


def _names(axis: int | str) -> list[str]:
    return [] if isinstance(axis, int) else names_in(axis)


def _within(size: int, model: ExportedModel, name: str) -> int:
    low, high = model.limits.bounds(name)
    return max(low, size if high is None else min(size, high))


def _sized(spec: TensorSpec, sizes: Mapping[str, int]) -> TensorSpec:
    axes = []
    for axis in spec.axes:
        size = size_of(axis, sizes)
        if size is None or size < 0:
            raise InputError(
                f"no size is known for the dimension {axis} of input {spec.name}", "Give `inputs` to compare on"
            )
        axes.append(size)
    return replace(spec, axes=tuple(axes))
