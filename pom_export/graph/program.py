"""What is traced: a model with named inputs, outputs and dynamic dimensions."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pom_export.errors import InputError
from pom_export.mixer import PolynomialMixer
from pom_export.models import LanguageModel

MASKS = ("none", "causal", "padding", "full")
# Names of dynamic dimensions, in the file and in every shape that a user gives.
BATCH, TOKENS, CONTEXT_TOKENS = "batch", "tokens", "context_tokens"
# What tracing sees; no two equal and none 1, so that no dimension is taken for another or for a constant.
_EXAMPLE_SIZES = {BATCH: 2, TOKENS: 7, CONTEXT_TOKENS: 5}


@dataclass(frozen=True)
class GraphOptions:
    """How a model becomes a graph.

    Attributes:
        mask: "none", "causal", "padding" ((B, N) input) or "full" ((B, T, N) input); None: the architecture's own.
        cross: whether the mixer gets a separate context input (B, M, d).
        static: (batch, tokens) to pin, or None for dynamic dimensions. Context tokens are pinned to `tokens`.
    """

    mask: str | None = None
    cross: bool = False
    static: tuple[int, int] | None = None


@dataclass(frozen=True)
class Program:
    """A traceable module, the example inputs to trace it with, and the names in the file.

    Attributes:
        module: takes the inputs by name.
        inputs: example inputs, by name.
        dynamic_shapes: as torch.export takes them, by input; None pins every dimension.
        outputs: names of the outputs.
        properties: metadata for the file.
        prefix: where the model sits in `module`; taken off names in the file.
    """

    module: nn.Module
    inputs: Mapping[str, Tensor]
    dynamic_shapes: Mapping[str, Any] | None
    outputs: tuple[str, ...]
    properties: Mapping[str, str] = field(default_factory=dict)
    prefix: str = "model"


class _MixerProgram(nn.Module):
    """A mixer whose mask is an input or fixed to causal."""

    def __init__(self, mixer: PolynomialMixer, causal: bool) -> None:
        super().__init__()
        self.model = mixer
        self.causal = causal

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        return self.model(x, context, "causal" if self.causal else mask)


class _LanguageModelProgram(nn.Module):
    def __init__(self, language_model: LanguageModel) -> None:
        super().__init__()
        self.model = language_model

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.model(input_ids)


def _dimension_sizes(static: tuple[int, int] | None) -> dict[str, int]:
    if static is None:
        return _EXAMPLE_SIZES
    if min(static) < 1:
        raise InputError(f"static sizes must be at least 1, got {static[0]}x{static[1]}")
    return {BATCH: static[0], TOKENS: static[1], CONTEXT_TOKENS: static[1]}


def _program(
    module: nn.Module, axes: Mapping[str, tuple[tuple[str | int, ...], torch.dtype]], output: str, options: GraphOptions
) -> Program:
    """Build the program of a wrapper from the axes (dimension names or sizes) and dtype of each input."""
    sizes = _dimension_sizes(options.static)
    inputs = {
        name: torch.ones([sizes[axis] if isinstance(axis, str) else axis for axis in shape], dtype=dtype)
        for name, (shape, dtype) in axes.items()
    }
    dynamic = None
    if options.static is None:
        used = {axis for shape, _ in axes.values() for axis in shape if isinstance(axis, str)}
        dimensions = {name: torch.export.Dim(name, min=1) for name in used}
        dynamic = {
            name: {i: dimensions[axis] for i, axis in enumerate(shape) if isinstance(axis, str)}
            for name, (shape, _) in axes.items()
        }
    return Program(module, inputs, dynamic, (output,), {"mask": options.mask or ""})


def mixer_program(mixer: PolynomialMixer, options: GraphOptions) -> Program:
    """Return the program of a bare mixer: inputs x, context (cross) and mask; output y."""
    mask = options.mask or "none"
    if mask == "causal" and options.cross:
        raise InputError("mask causal does not go with --cross", "Use --mask none, padding or full")
    dim, dtype = mixer.config.dim, mixer.po_coeff.dtype
    source = CONTEXT_TOKENS if options.cross else TOKENS
    axes: dict[str, tuple[tuple[str | int, ...], torch.dtype]] = {"x": ((BATCH, TOKENS, dim), dtype)}
    if options.cross:
        axes["context"] = ((BATCH, source, dim), dtype)
    if mask == "padding":
        axes["mask"] = ((BATCH, source), torch.bool)
    elif mask == "full":
        axes["mask"] = ((BATCH, TOKENS, source), torch.bool)
    resolved = GraphOptions(mask, options.cross, options.static)
    return _program(_MixerProgram(mixer, causal=mask == "causal"), axes, "y", resolved)


def language_model_program(model: LanguageModel, options: GraphOptions) -> Program:
    """Return the program of a language model: input input_ids; output logits."""
    if options.mask not in {None, "causal"} or options.cross:
        asked = "--cross" if options.cross else f"--mask {options.mask}"
        raise InputError(f"a language model is causal; {asked} does not apply", "Leave the option out")
    resolved = GraphOptions("causal", static=options.static)
    return _program(_LanguageModelProgram(model), {"input_ids": ((BATCH, TOKENS), torch.int64)}, "logits", resolved)


def program_of(model: nn.Module, options: GraphOptions) -> Program:
    """Return the program of one of our models.

    Raises:
        InputError: an option does not fit the model, or the model is of no known class.
    """
    if options.mask is not None and options.mask not in MASKS:
        raise InputError(f"unknown mask {options.mask!r}", f"Choose one of {', '.join(MASKS)}")
    if isinstance(model, PolynomialMixer):
        return mixer_program(model, options)
    if isinstance(model, LanguageModel):
        return language_model_program(model, options)
    raise InputError(f"{type(model).__name__} is not one of our models", "Give example_inputs to export it")


def module_program(
    module: nn.Module, example_inputs: tuple[Tensor, ...], dynamic_shapes: Mapping[str, Any] | None = None
) -> Program:
    """Return the program of a user's module that contains our mixers.

    Inputs are named after the parameters of its `forward`. Unless `dynamic_shapes` says otherwise, the first two
    dimensions of each input are dynamic where the model allows it.

    Raises:
        InputError: it contains no mixer, or takes fewer inputs than given.
    """
    if not any(isinstance(part, PolynomialMixer) for part in module.modules()):
        raise InputError(f"{type(module).__name__} contains no PolynomialMixer", "Nothing of it would use the op")
    names = list(inspect.signature(module.forward).parameters)[: len(example_inputs)]
    if len(names) < len(example_inputs):
        raise InputError(f"forward takes {len(names)} inputs, got {len(example_inputs)} examples", "Give one each")
    inputs = dict(zip(names, example_inputs, strict=True))
    automatic = {name: dict.fromkeys(range(min(2, t.dim())), torch.export.Dim.AUTO) for name, t in inputs.items()}
    with torch.no_grad():
        result = module(**inputs)
    outputs = ("y",) if isinstance(result, Tensor) else tuple(f"y_{i}" for i in range(len(result)))
    return Program(module, inputs, automatic if dynamic_shapes is None else dynamic_shapes, outputs, prefix="")
