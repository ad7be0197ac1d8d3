"""Find inputs that no output depends on."""

from __future__ import annotations

import onnx_ir as ir


def idle_notes(model: ir.Model) -> list[str]:
    """Note outputs that depend on no input, and inputs that no output depends on.

    Args:
        model: the graph. Nodes in its branches may use outer values.
    """
    graph = model.graph
    reaching = {value: {value.name} for value in graph.inputs}
    for node in graph:
        found = set().union(*(reaching.get(value, ()) for value in _read(node)))
        if found:
            reaching.update((output, found) for output in node.outputs)
    notes = [
        f"output {value.name} depends on no input: it is the same whatever is given"
        for value in graph.outputs
        if not reaching.get(value)
    ]
    used = set().union(*(reaching.get(value, ()) for value in graph.outputs))
    return notes + [f"no output depends on input {value.name}" for value in graph.inputs if value.name not in used]


def _read(node: ir.Node) -> set[ir.Value]:
    """Return the values that a node reads, including those that its branches read."""
    found = {value for value in node.inputs if value is not None}
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            inner = attribute.as_graph()
            found.update(inner.outputs, *map(_read, inner))
    return found
