"""Lower a float32 graph to float16 or bfloat16, except where it needs float32."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final

import numpy as np
import onnx_ir as ir

from pom_export.errors import InputError
from pom_export.graph.exported_model import KEEP_FLOAT32, KEPT_IN_FLOAT32, METADATA_PREFIX
from pom_export.graph.module_names import is_inside, matching
from pom_export.graph.module_values import ModuleValues
from pom_export.graph.nodes import add_constant, cast_node, module_of
from pom_export.graph.precision import PrecisionPlan, plan_precision
from pom_export.graph.precision.rules import is_constant, is_float, largest

Observe = Callable[[ir.Model], Mapping[str, float]]
# A node, the index of the input that uses a value, and the type that it requires; None: any type.
_Use = tuple[ir.Node, int, ir.DataType | None]
_ASKED: Final = "it was asked for"


class LowerPrecisionPass(ir.passes.InPlacePass):
    """Convert weights, values, inputs and outputs to half precision, with casts where half and float32 nodes meet.

    Constants are converted here once, not each time the model runs. An output that may exceed the half type's range
    stays in float32. Modules that stay in float32 for exceptional reasons are listed in the metadata, with the reasons.

    Args:
        dtype: FLOAT16 or BFLOAT16.
        observe: returns the magnitudes that a graph's values reach, by name; if empty, only the weights are known.
        keep: names of modules, or patterns of names, that are computed in float32 with all that is inside them.
        shared: the names of each module that has several.
    """

    def __init__(
        self,
        dtype: ir.DataType,
        observe: Observe,
        keep: Sequence[str] = (),
        shared: Sequence[Collection[str]] = (),
    ) -> None:
        super().__init__()
        self.dtype = dtype
        self.observe = observe
        self.keep = keep
        self.shared = shared

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Lower the graph's precision.

        Raises:
            InputError: a weight that a product multiplies by exceeds the half type's range, or becomes 0 everywhere; or
                no module has a name that is to be kept.
        """
        values = ModuleValues(model)
        kept = matching(self.keep, values.modules - {""}, self.shared)
        nodes = {node for node, scope in values.scopes.items() if is_inside(scope, kept)}
        # bfloat16 has float32's range.
        peaks = self.observe(model) if self.dtype == ir.DataType.FLOAT16 else {}
        plan = plan_precision(model, self.dtype, peaks, nodes)
        _Lowering(model.graph, plan).run()
        reasons = {name: why for name, why in plan.out_of_range.reasons.items() if not is_inside(name, kept)}
        reasons |= dict.fromkeys(kept, _ASKED)
        model.metadata_props[METADATA_PREFIX + KEPT_IN_FLOAT32] = json.dumps(reasons)
        if kept:
            model.metadata_props[METADATA_PREFIX + KEEP_FLOAT32] = json.dumps(kept)
        return ir.passes.PassResult(model, modified=True)


class _Lowering:
    """Assigns a type to every floating-point value, and converts values to the types that their users need."""

    def __init__(self, graph: ir.Graph, plan: PrecisionPlan) -> None:
        self.graph = graph
        self.plan = plan
        self.forms: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def run(self) -> None:
        """Cast constants, insert Casts, and set the types of all values."""
        # All types are decided before anything is changed.
        uses = {value: self._uses(value) for value in self._values()}
        made = {value: self._type_of(value, uses[value]) for value in uses}
        self.forms = {(value, dtype): value for value, dtype in made.items()}
        for value, users in uses.items():
            for node, index, wanted in users:
                if wanted is not None:
                    node.replace_input_with(index, self._form(value, wanted))
        for value in dict.fromkeys(filter(is_float, self.graph.outputs)):
            self._give_output(value)
        for value, dtype in made.items():
            if is_constant(value):
                value.const_value = _lowered(value, dtype, self._module_of(value))
            value.type = ir.TensorType(dtype)

    def _module_of(self, value: ir.Value) -> str:
        """Return the module that uses a constant in half precision; empty if that is the model itself."""
        users = [node for node, _ in value.uses() if "/" in (node.name or "")]
        return next((module_of(node) for node in users), "")

    def _values(self) -> list[ir.Value]:
        made = (value for node in self.graph for value in node.outputs)
        every = dict.fromkeys([*self.graph.inputs, *self.graph.initializers.values(), *made])
        return [value for value in every if is_float(value)]

    def _uses(self, value: ir.Value) -> list[_Use]:
        # A nested graph uses outer values in their original type.
        return [
            (node, index, self.plan.wanted(node, index) if node.graph is self.graph else ir.DataType.FLOAT)
            for node, index in value.uses()
        ]

    def _type_of(self, value: ir.Value, uses: list[_Use]) -> ir.DataType:
        """Return the type of a value itself. A constant is in half precision if any user needs it so."""
        if is_constant(value) and all(wanted != self.plan.dtype for _, _, wanted in uses):
            return ir.DataType.FLOAT
        return self.plan.made(value)

    def _form(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """Return a value converted to a type, creating the conversion only once."""
        if (value, dtype) not in self.forms:
            self.forms[value, dtype] = self._make_form(value, dtype)
        return self.forms[value, dtype]

    def _make_form(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        node, name = value.producer(), f"{value.name}_{dtype.name.lower()}"
        if is_constant(value):
            assert value.const_value is not None
            return add_constant(self.graph, name, value.const_value.numpy(), dtype)
        source = node.inputs[0] if node is not None else None
        if node is None or source is None or node.op_type not in {"Cast", "ConstantOfShape"}:
            made = cast_node(value, dtype)
        elif is_float(source):
            return self._form(source, dtype)  # from half to float32 and back
        elif node.op_type == "Cast":
            made = cast_node(source, dtype)
        else:
            given = node.attributes.get("value")
            fill = np.zeros(1, dtype.numpy()) if given is None else given.as_tensor().numpy().astype(dtype.numpy())
            made = ir.node("ConstantOfShape", [source], {"value": ir.tensor(fill, dtype)})
        made.name = _name_of(value, dtype)
        made.outputs[0].name, made.outputs[0].shape, made.outputs[0].type = name, value.shape, ir.TensorType(dtype)
        if node is None:
            self.graph.insert_before(self.graph[0], made)
        else:
            self.graph.insert_after(node, made)
        return made.outputs[0]

    def _give_output(self, value: ir.Value) -> None:
        form = self._form(value, ir.DataType.FLOAT if self.plan.is_single_output(value) else self.plan.dtype)
        if form is value:
            return
        name, form.name, value.name = value.name, None, f"{value.name}_float32"
        form.name = name
        for index, output in enumerate(self.graph.outputs):
            if output is value:
                self.graph.outputs[index] = form


def _name_of(value: ir.Value, dtype: ir.DataType) -> str:
    node, suffix = value.producer(), dtype.name.lower()
    if node is None:
        return f"{value.name}/{suffix}"
    return f"{node.name}/{suffix}" if len(node.outputs) == 1 else f"{node.name}/{value.index()}/{suffix}"


def _lowered(value: ir.Value, dtype: ir.DataType, module: str) -> ir.TensorProtocol:
    """Convert a constant to a type.

    Args:
        value: the constant.
        dtype: the type.
        module: the module that it belongs to, for messages.

    Raises:
        InputError: a finite number becomes infinite, or all numbers become 0.
    """
    assert value.const_value is not None
    if dtype == ir.DataType.FLOAT:
        return value.const_value
    array = value.const_value.numpy()
    with np.errstate(over="ignore"):
        lowered = array.astype(dtype.numpy())
    lost = np.isfinite(array) & ~np.isfinite(lowered.astype(np.float32))
    name = dtype.name.lower()
    hint = "Export with another dtype"
    hint += f", or keep its module in float32: `keep_float32=[{module!r}]`" if module else ""
    if lost.any():
        raise InputError(
            f"{value.name} holds {array[lost].flat[0]:.6g}, but {name} goes up to {largest(dtype):.6g}",
            hint,
        )
    if array.any() and not lowered.any():
        raise InputError(
            f"{value.name} holds nothing above {np.abs(array).max():.3g}, which is 0 in {name}",
            hint,
        )
    return ir.tensor(lowered, dtype)
