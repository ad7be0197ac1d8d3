"""The specification of a recognised model."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import init

from pom_export.checkpoint.families import JIT, LANGUAGE_MODEL, MIXER, NANOGPT, V1, V1_GROUPED, V2
from pom_export.function_mode import FunctionMode
from pom_export.mixer import MixerConfig, PolynomialMixer, ProductMixer, ProductMixerConfig, RotaryPolynomialMixer
from pom_export.models import GPT, GPTConfig, JiT, JiTConfig, LanguageModel, LanguageModelConfig

Config = MixerConfig | ProductMixerConfig | LanguageModelConfig | GPTConfig | JiTConfig


@dataclass(frozen=True)
class ModelSpec:
    """A model's architecture, PoM family and hyper-parameters: enough to build it."""

    architecture: str
    family: str
    config: Config

    def to_json(self) -> str:
        """Return the spec as a line of JSON for exported files."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @property
    def degree(self) -> int:
        """Polynomial degree of the model's mixers."""
        config = self.config
        return config.degree if isinstance(config, (MixerConfig, ProductMixerConfig)) else config.mixer.degree

    def summary(self) -> str:
        """Return a description in one line."""
        return f"{self.architecture} ({self.family}): {', '.join(_traits(self.config))}"


def _traits(config: Config) -> list[str]:
    if isinstance(config, LanguageModelConfig):
        return [f"vocabulary {config.vocab_size}", _layers(config.n_layers), *_traits(config.mixer)]
    if isinstance(config, GPTConfig):
        attention = config.attention_layers
        hybrid = f" ({_layers(len(attention))} of full self-attention, {_heads(config.attention_heads)})"
        layers = _layers(config.n_layer) + (hybrid if attention else "")
        return [f"vocabulary {config.vocab_size}", layers, f"rotary of {_heads(config.n_head)}", *_traits(config.mixer)]
    if isinstance(config, JiTConfig):
        return [*_image_traits(config), *_traits(config.mixer)]
    traits = [f"dim {config.dim}", f"degree {config.degree}", f"expand {config.expand}"]
    if isinstance(config, ProductMixerConfig):
        return traits if config.n_head is None else [*traits, f"n_head {config.n_head}"]
    if config.n_groups > 1:
        traits.append(f"{config.n_groups} groups")
    traits.append(f"{config.n_sel_heads} heads" if config.n_sel_heads > 1 else "one gate per channel")
    if config.rotary is not None:
        traits.append("rotary, positions below " + "x".join(map(str, config.rotary.limits)))
    return traits


def _image_traits(config: JiTConfig) -> list[str]:
    traits = [
        f"images {config.input_size}x{config.input_size}",
        f"patches {config.patch_size}x{config.patch_size}",
        _layers(config.depth),
        f"{config.num_classes} classes",
    ]
    if config.in_context_len:
        traits.append(f"{config.in_context_len} in-context tokens from layer {config.in_context_start} on")
    return traits


def _heads(count: int) -> str:
    return f"{count} head{'s' if count != 1 else ''}"


def _layers(count: int) -> str:
    return f"{count} layer{'s' if count != 1 else ''}"


def build_model(spec: ModelSpec) -> nn.Module:
    """Return the model of a spec, in evaluation mode, with newly initialised weights."""
    config = spec.config
    if isinstance(config, LanguageModelConfig):
        return LanguageModel(config).eval()
    if isinstance(config, GPTConfig):
        return GPT(config).eval()
    if isinstance(config, JiTConfig):
        return JiT(config).eval()
    if isinstance(config, ProductMixerConfig):
        return ProductMixer(config.dim, config.degree, config.expand, config.n_head, config.bias).eval()
    arguments = (config.dim, config.degree, config.expand, config.n_groups, config.n_sel_heads, config.bias)
    if config.rotary is None:
        return PolynomialMixer(*arguments).eval()
    rotary = config.rotary
    if rotary.max_seq_len:
        return RotaryPolynomialMixer(*arguments, max_seq_len=rotary.max_seq_len).eval()
    return RotaryPolynomialMixer(*arguments, max_h=rotary.max_h, max_w=rotary.max_w, rope_2d=True).eval()


class _NoInitialization(FunctionMode):
    """Skip the initialisation of parameters: for those without memory, torch would import its compiler."""

    def call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a torch function, or return the tensor that it would fill."""
        if getattr(func, "__module__", None) == init.__name__:
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def empty_model(spec: ModelSpec) -> nn.Module:
    """Return the model of a spec, in evaluation mode, with parameters that only have shapes (torch's meta device)."""
    with torch.device("meta"), _NoInitialization():
        return build_model(spec)


def spec_of(module: nn.Module) -> ModelSpec | None:
    """Return the spec of one of our models; None for other classes."""
    if isinstance(module, PolynomialMixer):
        return ModelSpec(MIXER, V2, module.config)
    if isinstance(module, ProductMixer):
        return ModelSpec(MIXER, V1 if module.config.n_head is None else V1_GROUPED, module.config)
    if isinstance(module, LanguageModel):
        return ModelSpec(LANGUAGE_MODEL, V2, module.config)
    if isinstance(module, GPT):
        return ModelSpec(NANOGPT, V1_GROUPED, module.config)
    if isinstance(module, JiT) and module.is_polynomial:
        return ModelSpec(JIT, V2, module.config)
    return None
