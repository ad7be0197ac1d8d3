"""What is traced: a model with named inputs, outputs and dynamic dimensions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from pom_export.errors import InputError
from pom_export.graph.exported import BATCH, CONTEXT_TOKENS, TOKENS, InputLimits
from pom_export.mixer import PolynomialMixer, ProductMixer, RotaryConfig, RotaryPolynomialMixer
from pom_export.models import GPT, LanguageModel

MASKS = ("none", "causal", "padding", "full")
_TOKEN_AXES = (TOKENS, CONTEXT_TOKENS)
# What tracing sees; no two equal and none 1, so that no dimension is taken for another or for a constant.
_EXAMPLE_SIZES = {BATCH: 2, TOKENS: 7, CONTEXT_TOKENS: 5}
# No clamp bounds the product form: its products of K factors leave float16's range where its inputs are large.
_PRODUCT_SCALE = 4.0


@dataclass(frozen=True)
class GraphOptions:
    """How a model becomes a graph.

    Attributes:
        mask: "none", "causal", "padding" ((B, N) input) or "full" ((B, T, N) input); None: the architecture's own.
        cross: whether the mixer gets a separate context input (B, M, d).
        positions: whether the tokens' positions are an input, (N) or (N, 2) int64; for rotary mixers.
        static: (batch, tokens) to pin, or None for dynamic dimensions. Context tokens are pinned to `tokens`.
    """

    mask: str | None = None
    cross: bool = False
    positions: bool = False
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
        limits: what the inputs may hold.
        prefix: where the model sits in `module`; taken off names in the file.
    """

    module: nn.Module
    inputs: Mapping[str, Tensor]
    dynamic_shapes: Mapping[str, Any] | None
    outputs: tuple[str, ...]
    properties: Mapping[str, str] = field(default_factory=dict)
    limits: InputLimits = field(default_factory=InputLimits)
    prefix: str = "model"


Axes = dict[str, tuple[tuple[str | int, ...], torch.dtype]]


class _MixerProgram(nn.Module):
    """A mixer whose mask is an input or fixed to causal."""

    def __init__(self, mixer: nn.Module, causal: bool) -> None:
        super().__init__()
        self.model = mixer
        self.causal = causal

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        return self.model(x, context, mask, causal=self.causal)


class _RotaryMixerProgram(_MixerProgram):
    """The same with positions, which may be inputs too."""

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
        context_positions: Tensor | None = None,
    ) -> Tensor:
        return self.model(x, context, mask, positions, context_positions, causal=self.causal)


class _LanguageModelProgram(nn.Module):
    def __init__(self, language_model: nn.Module) -> None:
        super().__init__()
        self.model = language_model

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.model(input_ids)


def _dimension_sizes(options: GraphOptions, limits: InputLimits) -> dict[str, int]:
    if options.static is None:
        most = limits.tokens or max(_EXAMPLE_SIZES.values())
        return {name: size if name == BATCH else min(size, most) for name, size in _EXAMPLE_SIZES.items()}
    batch, tokens = options.static
    if min(batch, tokens) < 1:
        raise InputError(f"static sizes must be at least 1, got {batch}x{tokens}")
    if limits.tokens is not None and tokens > limits.tokens:
        raise InputError(
            f"static sizes {batch}x{tokens} have more tokens than the mixer has positions for, {limits.tokens}",
            "Pin fewer tokens, or give --positions",
        )
    return {BATCH: batch, TOKENS: tokens, CONTEXT_TOKENS: tokens}


def _program(module: nn.Module, axes: Axes, output: str, options: GraphOptions, limits: InputLimits) -> Program:
    """Build the program of a wrapper from the axes (dimension names or sizes) and dtype of each input."""
    if limits.tokens == 1:  # one token is no dynamic dimension
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
            name: torch.export.Dim(name, min=1, max=None if name == BATCH else limits.tokens) for name in used
        }
        dynamic = {
            name: {i: dimensions[axis] for i, axis in enumerate(shape) if isinstance(axis, str)}
            for name, (shape, _) in axes.items()
        }
    properties = {"mask": options.mask or ""}
    if limits != InputLimits():
        properties["limits"] = limits.to_json()
    return Program(module, inputs, dynamic, (output,), properties, limits)


def _add_positions(axes: Axes, rotary: RotaryConfig, source: str) -> InputLimits:
    """Add the inputs of positions, and return what they may hold."""
    columns = () if rotary.blocks == 1 else (rotary.blocks,)
    axes["positions"] = ((TOKENS, *columns), torch.int64)
    names = ["positions"]
    if source != TOKENS:
        axes["context_positions"] = ((source, *columns), torch.int64)
        names.append("context_positions")
    return InputLimits(dict.fromkeys(names, rotary.limits))


def mixer_program(mixer: PolynomialMixer | ProductMixer, options: GraphOptions) -> Program:
    """Return the program of a bare mixer: inputs x, context (cross), mask and positions; output y."""
    mask = options.mask or "none"
    if mask == "causal" and options.cross:
        raise InputError("mask causal does not go with --cross", "Use --mask none, padding or full")
    rotary = mixer.rotary if isinstance(mixer, RotaryPolynomialMixer) else None
    if options.positions and rotary is None:
        raise InputError("the mixer has no rotary positions; --positions does not apply", "Leave the option out")
    if rotary is not None and rotary.blocks > 1 and not options.positions:
        raise InputError("the mixer's positions are rows and columns, which only the caller knows", "Give --positions")
    dim, dtype = mixer.config.dim, mixer.ag_proj.weight.dtype
    source = CONTEXT_TOKENS if options.cross else TOKENS
    axes: Axes = {"x": ((BATCH, TOKENS, dim), dtype)}
    if options.cross:
        axes["context"] = ((BATCH, source, dim), dtype)
    if mask == "padding":
        axes["mask"] = ((BATCH, source), torch.bool)
    elif mask == "full":
        axes["mask"] = ((BATCH, TOKENS, source), torch.bool)
    limits = InputLimits(
        tokens=rotary.max_seq_len if rotary is not None else None,
        scale=_PRODUCT_SCALE if isinstance(mixer, ProductMixer) else None,
    )
    if rotary is not None and options.positions:
        limits = _add_positions(axes, rotary, source)
    wrapper = _MixerProgram if rotary is None else _RotaryMixerProgram
    return _program(wrapper(mixer, causal=mask == "causal"), axes, "y", replace(options, mask=mask), limits)


def language_model_program(model: LanguageModel | GPT, options: GraphOptions) -> Program:
    """Return the program of a language model: input input_ids; output logits."""
    asked = {"--cross": options.cross, "--positions": options.positions}
    asked[f"--mask {options.mask}"] = options.mask not in {None, "causal"}
    if refused := [name for name, given in asked.items() if given]:
        raise InputError(f"a language model is causal; {refused[0]} does not apply", "Leave the option out")
    limits = InputLimits({"input_ids": (model.config.vocab_size,)})
    axes: Axes = {"input_ids": ((BATCH, TOKENS), torch.int64)}
    return _program(_LanguageModelProgram(model), axes, "logits", replace(options, mask="causal"), limits)


def program_of(model: nn.Module, options: GraphOptions) -> Program:
    """Return the program of one of our models.

    Raises:
        InputError: an option does not fit the model, or the model is of no known class.
    """
    if options.mask is not None and options.mask not in MASKS:
        raise InputError(f"unknown mask {options.mask!r}", f"Choose one of {', '.join(MASKS)}")
    if isinstance(model, (PolynomialMixer, ProductMixer)):
        return mixer_program(model, options)
    if isinstance(model, (LanguageModel, GPT)):
        return language_model_program(model, options)
    raise InputError(f"{type(model).__name__} is not one of our models", "Give example_inputs to export it")
