"""Measure the largest magnitude of each value in a float32 graph on given inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx_ir as ir

from pom_export.files import scratch_folder
from pom_export.graph.nodes import add_constant
from pom_export.graph.passes import AttachFunctionsPass
from pom_export.graph.saving import save_graph
from pom_export.parity.case import Array
from pom_export.runtime.library import has_custom_ops_library
from pom_export.runtime.session import inference_session


def observe_peaks(model: ir.Model, feeds: Iterable[Mapping[str, Array]]) -> dict[str, float]:
    """Run a graph in ONNX Runtime, and return the largest finite magnitude of every float32 value.

    Args:
        model: the exporter's float32 graph, before functions are attached; it is not changed.
        feeds: inputs by name.
    """
    observed = model.clone()
    AttachFunctionsPass()(observed)
    peaks = _add_peaks(observed.graph)
    highest = np.zeros(len(peaks))
    with scratch_folder() as folder:
        path = folder / "observed.onnx"
        save_graph(observed, path)
        session = inference_session(path, kernels=has_custom_ops_library())
        names = {given.name for given in session.get_inputs()}
        for feed in feeds:
            given = {name: array for name, array in feed.items() if name in names}
            highest = np.fmax(highest, session.run(list(peaks.values()), given))
    return dict(zip(peaks, map(float, highest), strict=True))


def _add_peaks(graph: ir.Graph) -> dict[str, str]:
    """Add the peak of every float32 value to the graph's outputs; return the outputs' names by the values' names."""
    zero = add_constant(graph, "observed_zero", np.zeros(1, np.float32))
    flat = add_constant(graph, "observed_shape", np.array([-1]))
    made = (value for node in graph for value in node.outputs)
    values = [value for value in (*graph.inputs, *made) if value.dtype == ir.DataType.FLOAT]
    peaks = {}
    for number, value in enumerate(values):
        magnitude = ir.node("Abs", [value])
        infinite = ir.node("IsInf", [value])
        finite = ir.node("Where", [infinite.outputs[0], zero, magnitude.outputs[0]])
        line = ir.node("Reshape", [finite.outputs[0], flat])
        # A value may be empty.
        with_zero = ir.node("Concat", [line.outputs[0], zero], {"axis": ir.AttrInt64("axis", 0)})
        peak = ir.node("ReduceMax", [with_zero.outputs[0]], {"keepdims": ir.AttrInt64("keepdims", 0)})
        graph.extend((magnitude, infinite, finite, line, with_zero, peak))
        output = peak.outputs[0]
        output.name, output.shape, output.type = f"peak_{number}", ir.Shape(()), ir.TensorType(ir.DataType.FLOAT)
        graph.outputs.append(output)
        assert value.name is not None
        peaks[value.name] = output.name
    return peaks
