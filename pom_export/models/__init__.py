"""Complete architectures built from mixers."""

from pom_export.models.gpt import GPT, GPTConfig
from pom_export.models.jit import JiT, JiTConfig
from pom_export.models.language_model import LanguageModel, LanguageModelConfig
from pom_export.models.streaming import StreamState

__all__ = ["GPT", "GPTConfig", "JiT", "JiTConfig", "LanguageModel", "LanguageModelConfig", "StreamState"]
