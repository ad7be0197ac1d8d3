"""From a checkpoint file to a model."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from torch import nn

from pom_export.checkpoint.reader import read_checkpoint
from pom_export.checkpoint.recognition import build_model, recognise
from pom_export.checkpoint.spec import ModelSpec


@dataclass(frozen=True)
class LoadedModel:
    """A model with its checkpoint's weights, in evaluation mode, what it is, and the file's SHA-256."""

    module: nn.Module
    spec: ModelSpec
    sha256: str


def load_model(path: str | os.PathLike[str]) -> LoadedModel:
    """Read, recognise and build; weights keep their floating-point type.

    Raises:
        InputError: the file cannot be read.
        CheckpointError: its content is of no known model.
    """
    checkpoint = read_checkpoint(path)
    spec = recognise(checkpoint.tensors)
    with torch.device("meta"):
        module = build_model(spec)
    module.load_state_dict(dict(checkpoint.tensors), strict=True, assign=True)
    return LoadedModel(module.eval().requires_grad_(requires_grad=False), spec, checkpoint.sha256)


def load_checkpoint(path: str | os.PathLike[str]) -> nn.Module:
    """Return the model that a checkpoint holds, in evaluation mode.

    Raises:
        InputError: the file cannot be read.
        CheckpointError: its content is of no known model.
    """
    return load_model(path).module
