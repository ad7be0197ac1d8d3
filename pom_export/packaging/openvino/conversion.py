"""Turn an exported file into a model of OpenVINO, whose requests keep the state."""

from __future__ import annotations

from typing import Any

from pom_export.files import scratch_folder
from pom_export.graph.exported_model import ExportedModel
from pom_export.runtime.openvino import expanded, in_one_line
from pom_export.runtime.streaming.interface import StatefulModel


def converted(file: ExportedModel, stateful: StatefulModel | None) -> Any:
    """Return an openvino.Model.

    A request of a stateful one keeps the state of a batch of streams from call to call, until `reset_state`.

    Args:
        file: the file.
        stateful: its interface, if it has a state.

    Raises:
        InputError: it cannot be inlined, or OpenVINO cannot read it.
    """
    import openvino

    with scratch_folder() as folder, in_one_line("OpenVINO's conversion"):
        # The weights are read before the inlined copy is removed.
        model = openvino.Core().read_model(expanded(file, folder)).clone()
        if stateful is not None:
            _keep_state(model, stateful)
        return model


def _keep_state(model: Any, stateful: StatefulModel) -> None:
    """Make variables of the inputs and outputs of a state."""
    # A compiled module, which has no types.
    from openvino._offline_transformations import apply_make_stateful_transformation

    pairs = {part.spec.name: part.present for part in stateful.past}
    for past, present in pairs.items():
        _narrow(model, past, present)
        _begin_empty(model, past, stateful.tokens.name)
    model.validate_nodes_and_infer_types()
    apply_make_stateful_transformation(model, pairs)


def _narrow(model: Any, past: str, present: str) -> None:
    """Give a part of the state in int64 the type int32, since variables of OpenVINO on the CPU cannot be int64."""
    from openvino import Type, opset13

    parameter = model.input(past).get_node()
    if parameter.get_element_type() != Type.i64:
        return
    users = parameter.output(0).get_target_inputs()
    narrow = opset13.parameter(parameter.get_partial_shape(), Type.i32, name=past)
    narrow.output(0).get_tensor().set_names({past})
    wide = opset13.convert(narrow, "i64").output(0)
    for user in users:
        user.replace_source_output(wide)
    model.remove_parameter(parameter)
    model.add_parameters([narrow])
    result = model.output(present).get_node().input(0)
    source = result.get_source_output()
    source.get_tensor().set_names(source.get_tensor().get_names() - {present})
    made = opset13.convert(source, "i32").output(0)
    made.get_tensor().set_names({present})
    result.replace_source_output(made)


def _begin_empty(model: Any, past: str, tokens: str) -> None:
    """Let a part of the state that has no rows begin with zeros, as many rows as the tokens have.

    A variable has size 0 in each dynamic dimension before the first call, and a call with another number of rows than
    the state fails.
    """
    import numpy as np
    from openvino import opset13

    parameter = model.input(past).get_node()
    users = parameter.output(0).get_target_inputs()
    first = opset13.constant(np.array([0]))
    axis = opset13.constant(0)
    shape = opset13.shape_of(parameter, output_type="i64")
    rows = opset13.gather(opset13.shape_of(model.input(tokens), output_type="i64"), first, axis)
    missing = opset13.subtract(rows, opset13.gather(shape, first, axis))
    rest = opset13.slice(shape, np.array([1]), np.array([2**31 - 1]), np.array([1]))
    zero = opset13.constant(0, dtype=parameter.get_element_type().to_dtype())
    zeros = opset13.broadcast(zero, opset13.concat([missing, rest], axis=0))
    full = opset13.concat([parameter, zeros], axis=0).output(0)
    for user in users:
        user.replace_source_output(full)
