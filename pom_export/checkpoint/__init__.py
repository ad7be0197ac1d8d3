"""Read checkpoints safely, recognise what they hold, build the model."""

from pom_export.checkpoint.loading import LoadedModel, load_checkpoint, load_model
from pom_export.checkpoint.spec import ModelSpec

__all__ = ["LoadedModel", "ModelSpec", "load_checkpoint", "load_model"]
