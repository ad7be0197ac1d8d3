"""Exports, and edits with which tests spoil them or change them as other tools do."""

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

    def spoil(self, *edits: Edit, file: str = "spoiled.onnx") -> Path:
        """Return the export after some edits."""
        model = onnx.load(self.folder / "m.onnx")
        for edit in edits:
            edit(model)
        onnx.save(model, self.folder / file)
        return self.folder / file

    def verify(self, *edits: Edit, file: str = "spoiled.onnx", **options: Any) -> ParityReport:
        """Return what verify says of the export after some edits."""
        return pom_export.verify(self.spoil(*edits, file=file), checkpoint=self.checkpoint, **options)

    def recorded(self) -> dict[str, np.ndarray]:
        """Return the inputs of the first case of its parity data: any case reveals faults of weights."""
        prefix = "0/in/"
        with np.load(self.folder / "m.parity.npz") as arrays:
            return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def weight(name: str, change: Callable[[np.ndarray], Any]) -> Edit:
    """Return an edit of the first initializer whose name contains `name`."""

    def edit(model: onnx.ModelProto) -> None:
        tensor = next(tensor for tensor in model.graph.initializer if name in tensor.name)
        array = numpy_helper.to_array(tensor).copy()
        changed = change(array)
        tensor.CopyFrom(numpy_helper.from_array(array if changed is None else changed.astype(array.dtype), tensor.name))

    return edit


def claim(name: str, text: str | None) -> Edit:
    """Return an edit of a metadata property; None removes it."""

    def edit(model: onnx.ModelProto) -> None:
        kept = [prop for prop in model.metadata_props if prop.key != f"pom_export.{name}"]
        assert len(kept) < len(model.metadata_props)
        texts = {prop.key: prop.value for prop in kept}
        if text is not None:
            texts[f"pom_export.{name}"] = text
        helper.set_model_props(model, texts)

    return edit


def into_function(domain: str, name: str) -> Edit:
    """Return an edit that makes the whole graph a function, in a foreign domain, that is called once."""

    def edit(model: onnx.ModelProto) -> None:
        graph = model.graph
        inputs = [value.name for value in (*graph.input, *graph.initializer)]
        outputs = [value.name for value in graph.output]
        function = helper.make_function(domain, name, inputs, outputs, list(graph.node), list(model.opset_import))
        graph.ClearField("node")
        graph.ClearField("value_info")
        graph.node.append(helper.make_node(name, inputs, outputs, domain=domain))
        model.functions.append(function)
        model.opset_import.append(helper.make_opsetid(domain, 1))

    return edit


def into_loop(model: onnx.ModelProto) -> None:
    """Make the whole graph, which has one output, the body of a loop that runs once."""
    graph = model.graph
    output = onnx.ValueInfoProto()
    output.CopyFrom(graph.output[0])
    rounds, again, still = (
        helper.make_tensor_value_info(name, kind, [])
        for name, kind in (
            ("i", onnx.TensorProto.INT64),
            ("again", onnx.TensorProto.BOOL),
            ("st", onnx.TensorProto.BOOL),
        )
    )
    nodes = [*graph.node, helper.make_node("Identity", ["again"], ["st"])]
    body = helper.make_graph(nodes, "body", [rounds, again], [still, output])
    graph.ClearField("node")
    graph.ClearField("value_info")
    for name, array in (("one", np.array(1)), ("true", np.array(True)), ("first", np.array([0]))):
        graph.initializer.append(numpy_helper.from_array(array, name))
    graph.node.append(helper.make_node("Loop", ["one", "true"], ["rounds"], body=body))
    graph.node.append(helper.make_node("Squeeze", ["rounds", "first"], ["whole"]))
    graph.output[0].name = "whole"


def copied(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def prefixed(model: onnx.ModelProto) -> None:
    model.CopyFrom(onnx.compose.add_prefix(model, "net/"))


def without_types(model: onnx.ModelProto) -> None:
    """Leave a branch's values without types and shapes, as most tools do."""
    whole = copied(model)
    whole.graph.ClearField("value_info")
    names = [output.name for output in model.graph.output]
    branch = onnx.helper.make_graph(list(whole.graph.node), "branch", [], list(whole.graph.output))
    model.graph.ClearField("node")
    model.graph.ClearField("value_info")
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "always"))
    model.graph.node.append(onnx.helper.make_node("If", ["always"], names, then_branch=branch, else_branch=branch))
