"""Read checkpoints safely, recognise their contents, and build the model."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pom_export.checkpoint.loading import LoadedModel, load_checkpoint, load_model
    from pom_export.checkpoint.spec import ModelSpec

# Imported on first use: the command line needs the families' names, but not torch.
_HOMES = {"LoadedModel": "loading", "ModelSpec": "spec", "load_checkpoint": "loading", "load_model": "loading"}

__all__ = ["LoadedModel", "ModelSpec", "load_checkpoint", "load_model"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
