"""Generate text with a streaming language model: tokenizers, sampling, generation, one text or many at once."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pom_export.text.batch.batch import TextBatch
    from pom_export.text.batch.pieces import Piece, Token
    from pom_export.text.batch.text import Text
    from pom_export.text.generation import Generation
    from pom_export.text.notes import Settings
    from pom_export.text.sampling import Sampling
    from pom_export.text.tokenizers import choose_tokenizer

# Imported on first use: a tokenizer needs none of what runs a model.
_HOMES = {
    "Generation": "generation",
    "Piece": "batch.pieces",
    "Sampling": "sampling",
    "Settings": "notes",
    "Text": "batch.text",
    "TextBatch": "batch.batch",
    "Token": "batch.pieces",
    "choose_tokenizer": "tokenizers",
}

__all__ = ["Generation", "Piece", "Sampling", "Settings", "Text", "TextBatch", "Token", "choose_tokenizer"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
