"""Programs of our models that are called repeatedly, each call continuing from a state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from pom_export.errors import InputError
from pom_export.graph.exported_model import (
    BATCH,
    BLOCK_CAUSAL,
    CAUSAL,
    PAST_CONVOLUTION,
    PAST_KEY_VALUES,
    PAST_LENGTH,
    PAST_STATE,
    PAST_TOKENS,
    STATEFUL,
    TOKENS,
    InputLimits,
    present_name,
)
from pom_export.graph.options import GraphOptions
from pom_export.graph.program import Axes, Program, build_program
from pom_export.graph.programs.common import mixer_limits, rotary_of
from pom_export.mixer import MixerState, PolynomialMixer, ProductMixer
from pom_export.models import GPT, LanguageModel, StreamState


class _MixerProgram(nn.Module):
    def __init__(self, mixer: nn.Module, causal: bool) -> None:
        super().__init__()
        self.model = mixer
        self.causal = causal

    def forward(
        self,
        x: Tensor,
        past_state: Tensor,
        past_length: Tensor,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        state = MixerState(past_state[:, 0], past_length)
        given = {} if positions is None else {"positions": positions}
        y, present = self.model(x, mask=mask, causal=self.causal, state=state, **given)
        return y, present.sums[:, None], present.length


class _LanguageModelProgram(nn.Module):
    def __init__(self, language_model: LanguageModel | GPT) -> None:
        super().__init__()
        self.model: LanguageModel | GPT = language_model

    def forward(
        self,
        input_ids: Tensor,
        past_length: Tensor,
        past_state: Tensor | None = None,
        mask: Tensor | None = None,
        past_conv: Mapping[str, Tensor] | None = None,
        past_key_values: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        caches = past_key_values or {}
        keys, values = (
            {name.removesuffix(end): cache for name, cache in caches.items() if name.endswith(end)}
            for end in (".key", ".value")
        )
        past = StreamState(past_length, past_state, past_conv or {}, keys, values)
        logits, present = self.model.stream(input_ids, past, mask)
        return {"logits": logits, **{present_name(name): value for name, value in _named(present).items()}}


def _named(state: StreamState) -> dict[str, Tensor]:
    """Return the parts of a state by the names of the corresponding inputs."""
    named = {PAST_LENGTH: state.length}
    if state.sums is not None:
        named[PAST_STATE] = state.sums
    named |= {f"{PAST_CONVOLUTION}.{layer}": tokens for layer, tokens in state.convolution.items()}
    for layer, keys in state.keys.items():
        named |= {f"{PAST_KEY_VALUES}.{layer}.key": keys, f"{PAST_KEY_VALUES}.{layer}.value": state.values[layer]}
    return named


def _past_axes(state: StreamState) -> Axes:
    """Return the axes of a state's inputs, given the state of one row of the batch without tokens."""
    axes: Axes = {}
    for name, value in _named(state).items():
        sizes = (PAST_TOKENS if size == 0 else size for size in value.shape[1:])
        axes[name] = ((BATCH, *sizes), torch.float32 if value.is_floating_point() else value.dtype)
    return axes


def stateful_mixer_program(mixer: PolynomialMixer | ProductMixer, options: GraphOptions) -> Program:
    """Return the program of a single mixer: inputs x, mask, positions and the past; outputs y and the present.

    Raises:
        InputError: an option does not fit.
    """
    mask = options.mask or options.default_mask
    rotary = rotary_of(mixer, options)
    axes: Axes = {"x": ((BATCH, TOKENS, mixer.config.dim), mixer.ag_proj.weight.dtype)}
    if mask == "padding":
        axes["mask"] = ((BATCH, TOKENS), torch.bool)
    limits = mixer_limits(mixer, rotary, options, axes)
    axes[PAST_STATE] = ((BATCH, 1, 2, mixer.config.channels), torch.float32)
    axes[PAST_LENGTH] = ((BATCH,), torch.int64)
    wrapper = _MixerProgram(mixer, causal=not options.block_causal)
    outputs = ("y", present_name(PAST_STATE), present_name(PAST_LENGTH))
    program = build_program(wrapper, axes, outputs, replace(options, mask=mask), limits)
    return _stateful(program, BLOCK_CAUSAL if options.block_causal else CAUSAL)


def stateful_language_model_program(model: LanguageModel | GPT, options: GraphOptions) -> Program:
    """Return the program of a language model: inputs input_ids, mask and the past; outputs logits and the present.

    Raises:
        InputError: an option does not fit.
    """
    mask = options.mask or "causal"
    axes: Axes = {"input_ids": ((BATCH, TOKENS), torch.int64)}
    if mask == "padding":
        axes["mask"] = ((BATCH, TOKENS), torch.bool)
    past = _past_axes(model.empty_state(1))
    if options.static is not None and any(PAST_TOKENS in shape for shape, _ in past.values()):
        raise InputError("the keys of self-attention grow with every call; `static` does not apply", "Leave it out")
    limits = InputLimits({"input_ids": (model.config.vocab_size,)})
    outputs = ("logits", *(present_name(name) for name in past))
    program = build_program(
        _LanguageModelProgram(model), {**axes, **past}, outputs, replace(options, mask=mask), limits
    )
    return _stateful(program, CAUSAL)


def _stateful(program: Program, kind: str) -> Program:
    return replace(program, properties={**program.properties, STATEFUL: kind})
