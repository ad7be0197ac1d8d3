"""What a checkpoint was recognised as."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Final

from torch import nn

from pom_export.mixer import MixerConfig, PolynomialMixer
from pom_export.models import LanguageModel, LanguageModelConfig

FAMILY_V2: Final = "pom-v2"
MIXER: Final = "mixer"
LANGUAGE_MODEL: Final = "language-model"


@dataclass(frozen=True)
class ModelSpec:
    """A model's architecture, PoM family and hyper-parameters: enough to build it."""

    architecture: str
    family: str
    config: MixerConfig | LanguageModelConfig

    def to_json(self) -> str:
        """Return the spec as one line of JSON, as it is written into exported files."""
        return json.dumps(asdict(self), separators=(",", ":"))

    def summary(self) -> str:
        """Return one line for a person."""
        mixer = self.config if isinstance(self.config, MixerConfig) else self.config.mixer
        layers = "" if isinstance(self.config, MixerConfig) else f"{self.config.n_layers} layers, "
        gate = f"{mixer.n_sel_heads} heads" if mixer.n_sel_heads > 1 else "a gate a channel"
        return (
            f"{self.architecture} ({self.family}): {layers}dim {mixer.dim}, degree {mixer.degree}, "
            f"expand {mixer.expand}, {mixer.n_groups} group{'s' if mixer.n_groups > 1 else ''}, {gate}"
        )


def spec_of(module: nn.Module) -> ModelSpec | None:
    """Return the spec of one of our models, or None for another class."""
    if isinstance(module, PolynomialMixer):
        return ModelSpec(MIXER, FAMILY_V2, module.config)
    if isinstance(module, LanguageModel):
        return ModelSpec(LANGUAGE_MODEL, FAMILY_V2, module.config)
    return None
