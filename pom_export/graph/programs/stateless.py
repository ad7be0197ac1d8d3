"""Programs of our models that are called once for all tokens."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from pom_export.graph.exported_model import BATCH, CONTEXT_TOKENS, TOKENS, InputLimits
from pom_export.graph.options import GraphOptions
from pom_export.graph.program import Axes, Program, build_program
from pom_export.graph.programs.common import mixer_limits, rotary_of
from pom_export.mixer import PolynomialMixer, ProductMixer
from pom_export.models import GPT, LanguageModel


class _MixerProgram(nn.Module):
    """A mixer whose mask is an input or fixed to causal."""

    def __init__(self, mixer: nn.Module, causal: bool) -> None:
        super().__init__()
        self.model = mixer
        self.causal = causal

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        return self.model(x, context, mask, causal=self.causal)


class _RotaryMixerProgram(_MixerProgram):
    """A rotary mixer, whose positions may be inputs too."""

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


def mixer_program(mixer: PolynomialMixer | ProductMixer, options: GraphOptions) -> Program:
    """Return the program of a single mixer: inputs x, context (cross), mask and positions; output y."""
    mask = options.mask or options.default_mask
    rotary = rotary_of(mixer, options)
    dim, dtype = mixer.config.dim, mixer.ag_proj.weight.dtype
    source = CONTEXT_TOKENS if options.cross else TOKENS
    axes: Axes = {"x": ((BATCH, TOKENS, dim), dtype)}
    if options.cross:
        axes["context"] = ((BATCH, source, dim), dtype)
    if mask == "padding":
        axes["mask"] = ((BATCH, source), torch.bool)
    elif mask == "full":
        axes["mask"] = ((BATCH, TOKENS, source), torch.bool)
    limits = mixer_limits(mixer, rotary, options, axes, source)
    wrapper = _MixerProgram if rotary is None else _RotaryMixerProgram
    return build_program(wrapper(mixer, causal=mask == "causal"), axes, ("y",), replace(options, mask=mask), limits)


def language_model_program(model: LanguageModel | GPT, options: GraphOptions) -> Program:
    """Return the program of a language model: input input_ids; output logits."""
    limits = InputLimits({"input_ids": (model.config.vocab_size,)})
    axes: Axes = {"input_ids": ((BATCH, TOKENS), torch.int64)}
    return build_program(_LanguageModelProgram(model), axes, ("logits",), replace(options, mask="causal"), limits)
