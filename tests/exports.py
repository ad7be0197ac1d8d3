"""Exports that tests change as other tools and people do, or spoil."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import nn

import pom_export
from pom_export.parity.report import ParityReport

Edit = Callable[[onnx.ModelProto], Any]


class Exported:
    """A checkpoint and its export, which tests spoil."""

    def __init__(self, folder: Path, module: nn.Module, **options: Any) -> None:
        self.folder = folder
        random = torch.Generator().manual_seed(5)
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter, std=0.2, generator=random)
        self.checkpoint = folder / "c.pt"
        torch.save(module.state_dict(), self.checkpoint)
        pom_export.export(self.checkpoint, folder / "m.onnx", **options)

    def verify(self, *edits: Edit, file: str = "spoiled.onnx", **options: Any) -> ParityReport:
        """Return what verify says of the export after some edits."""
        model = onnx.load(self.folder / "m.onnx")
        for edit in edits:
            edit(model)
        onnx.save(model, self.folder / file)
        return pom_export.verify(self.folder / file, checkpoint=self.checkpoint, **options)


def weight(name: str, change: Callable[[np.ndarray], Any]) -> Edit:
    """Return an edit of the first initializer whose name holds this one."""

    def edit(model: onnx.ModelProto) -> None:
        tensor = next(tensor for tensor in model.graph.initializer if name in tensor.name)
        array = numpy_helper.to_array(tensor).copy()
        changed = change(array)
        tensor.CopyFrom(numpy_helper.from_array(array if changed is None else changed.astype(array.dtype), tensor.name))

    return edit


def claim(name: str, text: str | None) -> Edit:
    """Return an edit of a property; None removes it."""

    def edit(model: onnx.ModelProto) -> None:
        kept = [prop for prop in model.metadata_props if prop.key != f"pom_export.{name}"]
        assert len(kept) < len(model.metadata_props)
        texts = {prop.key: prop.value for prop in kept}
        if text is not None:
            texts[f"pom_export.{name}"] = text
        helper.set_model_props(model, texts)

    return edit
