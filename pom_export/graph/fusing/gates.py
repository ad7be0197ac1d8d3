"""Write what is around an aggregation as the passes that optimise exports expect it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from pom_export.graph.fusing.evaluation import constant_of
from pom_export.graph.nodes import add_constant, aggregation_nodes, only_user


class PlainReshapesPass(ir.passes.InPlacePass):
    """Remove a Reshape that changes nothing, and give others constant sizes where these say the same.

    Exporters compute the sizes from the shapes of values, which are then not only used by the gate that is to be fused.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Change each such node."""
        modified = False
        for node in list(model.graph):
            if node.op_type != "Reshape" or node.domain or len(node.inputs) < 2 or node.inputs[0] is None:
                continue
            before, after = node.inputs[0].shape, node.outputs[0].shape
            if before is None or after is None or not _is_known(before) or not _is_known(after):
                continue
            if list(before) == list(after):
                modified |= _bypass(node)
            elif constant_of(node.inputs[1]) is None:
                modified |= self._fix(model.graph, node, before, after)
        return ir.passes.PassResult(model, modified=modified)

    @staticmethod
    def _fix(graph: ir.Graph, node: ir.Node, before: ir.Shape, after: ir.Shape) -> bool:
        sizes: list[int] = []
        for axis, size in enumerate(after):
            if isinstance(size, int):
                sizes.append(size)
            elif axis < len(before) and before[axis] == size:
                sizes.append(0)  # keeps it
            else:
                return False
        if 0 in [size for size in after if isinstance(size, int)]:
            return False
        node.replace_input_with(1, add_constant(graph, f"{node.name}/sizes", np.array(sizes, np.int64)))
        node.attributes.pop("allowzero", None)
        return True


class SlicesToSplitPass(ir.passes.InPlacePass):
    """Turn slices of an aggregation's projection that together are all of its channels into one Split."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replace the slices of each such projection."""
        modified = False
        for node in aggregation_nodes(model):
            cut = node.inputs[0].producer() if node.inputs[0] is not None else None
            if cut is not None and cut.op_type == "Slice" and cut.inputs[0] is not None:
                modified |= _split(model.graph, cut.inputs[0])
        return ir.passes.PassResult(model, modified=modified)


def _split(graph: ir.Graph, projected: ir.Value) -> bool:
    shape, users = projected.shape, [node for node, _ in projected.uses()]
    if shape is None or projected.is_graph_output() or not isinstance(shape[-1], int):
        return False
    parts = sorted(
        (part for part in (_part(node, shape) for node in users) if part is not None), key=lambda each: each[:2]
    )
    ends = [part[1] for part in parts]
    if len(parts) != len(users) or [part[0] for part in parts] != [0, *ends[:-1]] or ends[-1] != shape[-1]:
        return False
    first = next(node for node in graph if node in users)
    sizes = np.array([end - start for start, end, _ in parts], np.int64)
    split = ir.node(
        "Split",
        [projected, add_constant(graph, f"{first.name}/sizes", sizes)],
        {"axis": -1},
        num_outputs=len(parts),
        name=f"{first.name}/Split",
    )
    graph.insert_before(first, split)
    for (_, _, node), output in zip(parts, split.outputs, strict=True):
        old = node.outputs[0]
        output.shape, output.type, name = old.shape, old.type, old.name
        ir.convenience.replace_all_uses_with(old, output, replace_graph_outputs=True)
        old.name, output.name = None, name
    graph.remove([node for _, _, node in parts], safe=True)
    return True


def _part(node: ir.Node, shape: ir.Shape) -> tuple[int, int, ir.Node] | None:
    """Return the channels that a Slice of the last axis takes."""
    if node.op_type != "Slice" or not isinstance(shape[-1], int):
        return None
    given = [constant_of(each) for each in node.inputs[1:]]
    if len(given) < 3 or any(each is None or each.size != 1 for each in given):
        return None
    start, end, axis, *step = (int(each.numpy().ravel()[0]) for each in given if each is not None)
    if axis % len(shape) != len(shape) - 1 or step not in ([], [1]):
        return None
    width = shape[-1]
    start, end = (min(max(each + width if each < 0 else each, 0), width) for each in (start, end))
    return start, end, node


def _bypass(node: ir.Node) -> bool:
    """Let users of a node's output use its input."""
    output, source = node.outputs[0], node.inputs[0]
    assert source is not None
    if output.is_graph_output() or (only_user(source) is None and not list(source.uses())):
        return False
    ir.convenience.replace_all_uses_with(output, source)
    return True


def _is_known(shape: ir.Shape) -> bool:
    return all(isinstance(size, int) or size.value is not None for size in shape)
