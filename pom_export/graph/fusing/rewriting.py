"""Put the op in place of an aggregation in standard operators."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import onnx_ir as ir

from pom_export import contract
from pom_export.graph.fusing.aggregates import FEATURES, MEAN, Aggregate
from pom_export.graph.fusing.evaluation import SHAPES, Array, Axes
from pom_export.graph.fusing.features import Features
from pom_export.graph.fusing.finding import Found
from pom_export.graph.fusing.sources import Source
from pom_export.graph.fusing.tokens import layout_of
from pom_export.graph.nodes import add_constant, cast_node, take_place
from pom_export.graph.schema import attributes

# Where torch's exporter writes the modules that a node comes from, the innermost last but one.
_SCOPES: Final = "pkg.torch.onnx.name_scopes"


def put_aggregation(root: ir.Graph, found: Found) -> ir.Node:
    """Replace an aggregation by a node of the op, and return it.

    Args:
        root: the model's graph, which gets new constants.
        found: the aggregation, in that graph or in a branch.
    """
    old = found.aggregate.value
    place = old.producer()
    assert place is not None
    builder = _Builder(root, place, _scope(found.features.x, place))
    node, made = builder.aggregation(found.features, found.aggregate)
    take_place(old, builder.shaped(made, old, found))
    _free_shapes(found.features.x, place)
    return node


def _scope(x: ir.Value, place: ir.Node) -> str:
    """Return the path of the module that a node comes from, as far as its exporter tells."""
    scopes = ast.literal_eval(place.metadata_props.get(_SCOPES, "[]"))
    if len(scopes) > 1:
        return str(scopes[-2])
    users = [node for node, _ in x.uses()]
    name = (place.name or (users[0].name if users else "")) or ""
    return name.rpartition("/")[0].strip("/").replace("/", ".")


class _Builder:
    """Adds nodes before another node of a graph, and constants to the model's graph."""

    def __init__(self, root: ir.Graph, place: ir.Node, scope: str) -> None:
        assert isinstance(place.graph, ir.Graph)
        self.root, self.graph, self.place, self.scope = root, place.graph, place, scope
        self.taken = {node.name for node in root.all_nodes()}

    def aggregation(self, features: Features, aggregate: Aggregate) -> tuple[ir.Node, ir.Value]:
        """Add the node; return it and its result, (B, 1 or N, C)."""
        dtype = aggregate.value.dtype
        x = self._tokens(features.x, features.axes, dtype)
        degree, epsilon = features.degree, aggregate.epsilon
        blocks = 1 if features.rotation is None else features.rotation.blocks
        epsilon = epsilon if aggregate.mask is not None else contract.DEFAULT_EPSILON
        values = attributes(aggregate.mode, epsilon, degree=degree, rotary_blocks=blocks)
        inputs = [x, self._coefficients(features)]
        if aggregate.mask is not None and aggregate.mode != FEATURES:
            inputs.append(self._mask(aggregate.mask, dtype))
        elif features.rotation is not None:
            inputs.append(self._constant("placeholder", np.ones(1, np.bool_)))
        if features.rotation is not None:
            twice = features.rotation.twice
            inputs += [self._table(tables, dtype, twice) for tables in (features.rotation.cos, features.rotation.sin)]
        node = ir.Node(
            contract.DOMAIN,
            contract.OP_NAME,
            inputs,
            [ir.convenience.convert_attribute(name, value) for name, value in values.items()],
            name=self._name(contract.OP_NAME),
        )
        result, shape = node.outputs[0], list(x.shape or ())
        result.shape = ir.Shape([shape[0], 1 if aggregate.mode == MEAN else shape[1], shape[2]])
        result.type, result.name = aggregate.value.type, f"{node.name}/y"
        self.graph.insert_before(self.place, node)
        return node, result

    def shaped(self, made: ir.Value, old: ir.Value, found: Found) -> ir.Value:
        """Return the result, (B, 1 or N, C), in the shape of the value that it replaces."""
        layout = layout_of(found.features.last, found.features.axes)
        assert layout is not None
        batch, tokens, _ = list(made.shape or ())
        if len(layout.channels) > 1:
            whole = ir.Shape([batch, tokens, *layout.channels])
            made = self._add("Reshape", [made, self._integers([0, 0, *layout.channels])], whole, made.dtype)
        if old.shape is not None and len(old.shape) == len(layout.channels) + 1:
            return self._add("Squeeze", [made, self._integers([1])], old.shape, old.dtype)
        if not layout.is_ordered:
            sizes = list(made.shape or ())
            shape = ir.Shape([sizes[axis] for axis in layout.back])
            made = self._add("Transpose", [made], shape, made.dtype, perm=layout.back)
        if found.aggregate.spread:
            whole_shape = self._add("Shape", [found.features.last], None, ir.DataType.INT64)
            made = self._add("Expand", [made, whole_shape], old.shape, old.dtype)
        return made

    def _tokens(self, x: ir.Value, axes: Axes, dtype: ir.DataType | None) -> ir.Value:
        """Return the tokens as (B, N, C)."""
        layout, shape = layout_of(x, axes), list(x.shape or ())
        assert layout is not None
        if not layout.is_ordered:
            shape = [shape[axis] for axis in layout.order]
            x = self._add("Transpose", [x], ir.Shape(shape), x.dtype, perm=layout.order)
        if len(layout.channels) > 1:
            flat = ir.Shape([*shape[:2], layout.width])
            x = self._add("Reshape", [x, self._integers([0, 0, layout.width])], flat, x.dtype)
        return x if dtype is None or x.dtype == dtype else self._cast(x, dtype)

    def _coefficients(self, features: Features) -> ir.Value:
        known = features.coefficients
        if known is None:
            return self._constant("placeholder", np.ones(1, np.float32))
        if known.value is not None and known.value.is_initializer():
            return known.value
        return self._constant(known.name or "coefficients", known.array)

    def _mask(self, source: Source, dtype: ir.DataType | None) -> ir.Value:
        """Return a mask as the op takes it, (B or 1, N), bool or of the tokens' type."""
        mask, shape = source.value, list(source.value.shape or ())
        if source.inverted:
            mask = self._add("Not", [mask], source.value.shape, mask.dtype)
        if len(shape) != len(source.axes) or len(shape) == 1:
            kept = [shape[axis] for axis in sorted(source.axes)]
            if source.batched:
                axes = [axis for axis in range(len(shape)) if axis not in source.axes]
                mask = self._add("Squeeze", [mask, self._integers(axes)], ir.Shape(kept), mask.dtype)
            elif len(shape) != 2 or shape[0] != 1:
                mask = self._add("Reshape", [mask, self._integers([1, -1])], ir.Shape([1, kept[-1]]), mask.dtype)
        if list(source.axes) != sorted(source.axes):
            turned = ir.Shape(list(mask.shape or ())[::-1])
            mask = self._add("Transpose", [mask], turned, mask.dtype, perm=[1, 0])
        if mask.dtype == ir.DataType.BOOL or dtype is None or mask.dtype == dtype:
            return mask
        return self._cast(mask, dtype)

    def _table(self, tables: Sequence[ir.Value], dtype: ir.DataType | None, twice: bool) -> ir.Value:
        """Return tables (N, columns) side by side, without columns that they hold twice."""
        flat = []
        for table in tables:
            shape = list(table.shape or ())
            axes = list(range(len(shape) - 2))
            flat.append(
                self._add("Squeeze", [table, self._integers(axes)], ir.Shape(shape[-2:]), table.dtype)
                if axes
                else table
            )
        first, *others = flat
        if others:
            tokens, columns = list(first.shape or ())
            whole = ir.Shape([tokens, len(flat) * int(str(columns))])
            first = self._add("Concat", flat, whole, first.dtype, axis=-1)
        if twice:
            tokens, columns = list(first.shape or ())
            half = int(str(columns)) // 2
            ends = [self._integers([end]) for end in (0, half, -1)]
            first = self._add("Slice", [first, *ends], ir.Shape([tokens, half]), first.dtype)
        return first if first.dtype in {ir.DataType.FLOAT, dtype} or dtype is None else self._cast(first, dtype)

    def _cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        node = cast_node(value, dtype)
        node.name = self._name("Cast")
        node.outputs[0].name = f"{node.name}/y"
        self.graph.insert_before(self.place, node)
        return node.outputs[0]

    def _add(
        self,
        op: str,
        inputs: Sequence[ir.Value],
        shape: ir.Shape | None,
        dtype: ir.DataType | None,
        **attributes: int | list[int],
    ) -> ir.Value:
        node = ir.node(op, inputs, attributes, name=self._name(op))
        output = node.outputs[0]
        output.shape, output.name = shape, f"{node.name}/y"
        output.type = None if dtype is None else ir.TensorType(dtype)
        self.graph.insert_before(self.place, node)
        return output

    def _integers(self, numbers: Sequence[int]) -> ir.Value:
        return self._constant("axes", np.array(numbers, np.int64))

    def _constant(self, name: str, array: Array) -> ir.Value:
        return add_constant(self.root, f"{self.scope}.{name}".lstrip("."), array)

    def _name(self, op: str) -> str:
        base = f"{self.scope}/{op}".lstrip("/")
        name = next(text for text in self._numbered(base) if text not in self.taken)
        self.taken.add(name)
        return name

    @staticmethod
    def _numbered(base: str) -> Iterator[str]:
        yield base
        number = 1
        while True:
            yield f"{base}_{number}"
            number += 1


def _free_shapes(x: ir.Value, last: ir.Node) -> None:
    """Let nodes that ask for the shape of a replaced value ask for that of the tokens, if it is the same."""
    if x.shape is None or not all(isinstance(size, int) or size.value is not None for size in x.shape):
        return
    places = {node: place for place, node in enumerate(last.graph or ())}
    first = x.producer()
    start = -1 if first is None else places.get(first, -1)
    waiting, seen = [value for value in last.inputs if value is not None], {x}
    while waiting:
        value = waiting.pop()
        node = value.producer()
        if value in seen or node is None:
            continue
        seen.add(value)
        if value.shape is not None and list(value.shape) == list(x.shape):
            for user, index in list(value.uses()):
                if user.op_type in SHAPES and places.get(user, -1) > start:
                    user.replace_input_with(index, x)
        waiting.extend(each for each in node.inputs if each is not None)
