"""A program to trace: a model with named inputs, outputs and dynamic dimensions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pom_export.errors import InputError
from pom_export.graph.exported_model import BATCH, CONTEXT_TOKENS, PAST_TOKENS, TOKENS, InputLimits
from pom_export.graph.options import GraphOptions

_TOKEN_AXES = (TOKENS, CONTEXT_TOKENS)
# The sizes used in tracing. They are distinct and not 1, so that no dimension is mistaken for another or for a
# constant.
_EXAMPLE_SIZES = {BATCH: 2, TOKENS: 7, CONTEXT_TOKENS: 5, PAST_TOKENS: 3}


@dataclass(frozen=True)
class Program:
    """A traceable module, the example inputs to trace it with, and the names in the file.

    Attributes:
        module: the module, which takes the inputs by name.
        inputs: example inputs, by name.
        dynamic_shapes: dynamic dimensions by input, as torch.export takes them; None fixes every dimension.
        outputs: names of the outputs.
        properties: metadata for the file.
        limits: limits on the inputs.
        prefix: path of the model in `module`, which is removed from names in the file.
        notes: remarks about the file for the user, one line each.
        stand_ins: the user's names of replaced mixers, by their paths; None: those in the module.
    """

    module: nn.Module
    inputs: Mapping[str, Tensor]
    dynamic_shapes: Mapping[str, Any] | None
    outputs: tuple[str, ...]
    properties: Mapping[str, str] = field(default_factory=dict)
    limits: InputLimits = field(default_factory=InputLimits)
    prefix: str = "model"
    notes: tuple[str, ...] = ()
    stand_ins: Mapping[str, str] | None = None


# The dimension names or sizes and the dtype of each input.
Axes = dict[str, tuple[tuple[str | int, ...], torch.dtype]]


def _dimension_sizes(options: GraphOptions, limits: InputLimits) -> dict[str, int]:
    if options.static is None:
        most = limits.tokens or max(_EXAMPLE_SIZES.values())
        return {name: size if name == BATCH else min(size, most) for name, size in _EXAMPLE_SIZES.items()}
    batch, tokens = options.static
    if limits.tokens is not None and tokens > limits.tokens:
        raise InputError(
            f"static sizes {batch}x{tokens} have more tokens than the mixer's {limits.tokens} positions",
            "Pin fewer tokens, or give `positions=True`",
        )
    return {BATCH: batch, TOKENS: tokens, CONTEXT_TOKENS: tokens}


def build_program(
    module: nn.Module, axes: Axes, outputs: tuple[str, ...], options: GraphOptions, limits: InputLimits
) -> Program:
    """Build the program of a wrapper around a model from the axes of its inputs."""
    if limits.tokens == 1:  # a single token is not a dynamic dimension
        axes = {
            name: (tuple(1 if axis in _TOKEN_AXES else axis for axis in shape), t) for name, (shape, t) in axes.items()
        }
    sizes = _dimension_sizes(options, limits)
    inputs = {
        # Ids and positions start at 0.
        name: torch.full(
            [sizes[axis] if isinstance(axis, str) else axis for axis in shape], dtype.is_floating_point, dtype=dtype
        )
        for name, (shape, dtype) in axes.items()
    }
    dynamic = None
    if options.static is None:
        used = {axis for shape, _ in axes.values() for axis in shape if isinstance(axis, str)}
        dimensions = {
            name: torch.export.Dim(name, min=1, max=limits.tokens if name in _TOKEN_AXES else None) for name in used
        }
        dynamic = {
            name: {i: dimensions[axis] for i, axis in enumerate(shape) if isinstance(axis, str)}
            for name, (shape, _) in axes.items()
        }
    properties = {"mask": options.mask or ""}
    if limits != InputLimits():
        properties["limits"] = limits.to_json()
    return Program(module, inputs, dynamic, outputs, properties, limits)
