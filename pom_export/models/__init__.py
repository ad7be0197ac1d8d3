"""Whole architectures built of mixers."""

from pom_export.models.gpt import GPT, GPTConfig
from pom_export.models.language_model import LanguageModel, LanguageModelConfig

__all__ = ["GPT", "GPTConfig", "LanguageModel", "LanguageModelConfig"]
