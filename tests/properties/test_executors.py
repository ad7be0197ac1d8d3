"""One op, four executors: whatever the configuration, each computes what float64 does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pom_export import contract
from pom_export.graph.passes import AttachFunctionsPass
from pom_export.graph.schema import attributes, register_schema
from pom_export.mixer import polynomial_aggregation, reference
from pom_export.parity.comparison import difference
from pom_export.parity.tolerances import OPS
from pom_export.runtime.session import inference_session

Array = np.ndarray[Any, Any]
# Calls with a state have tests of their own: of splits, which this one has none of.
INPUTS = tuple(name for name in contract.INPUTS if name not in contract.STATE_INPUTS)
EXAMPLES = settings(max_examples=60, deadline=None, derandomize=True)


@dataclass(frozen=True)
class Call:
    """One call of the op: sizes, attributes, and which optional inputs it has."""

    form: str
    degree: int
    mode: str
    mask: str | None
    rotary_blocks: int | None
    batched_tables: bool
    batch: int
    tokens: int
    units: int  # channels are a multiple of what the form and the rotation ask for
    dtype: str
    epsilon: float
    seed: int

    @property
    def channels(self) -> int:
        if self.form == contract.PRODUCT:
            return self.units * self.degree
        return self.units * (2 * self.rotary_blocks if self.rotary_blocks else 1)

    def inputs(self) -> dict[str, Array | None]:
        """Draw the inputs by name; None where one is absent."""
        generator = np.random.default_rng(self.seed)
        x_shape = (self.batch, self.tokens, self.channels)
        table = x_shape[:-1] if self.batched_tables else x_shape[1:-1]
        angles = 6 * generator.random((*table, self.channels // 2))
        weights = np.where(generator.random(x_shape[:2]) < 0.3, 0, generator.random(x_shape[:2]))
        rotated = self.rotary_blocks is not None
        return {
            "x": generator.standard_normal(x_shape).astype(self.dtype),
            "coefficients": None
            if self.form == contract.PRODUCT
            else generator.standard_normal((self.channels, self.degree)).astype(self.dtype),
            "mask": {None: None, "bool": weights > 0.5, "float": weights.astype(self.dtype)}[self.mask],
            "cos": np.cos(angles).astype(np.float32) if rotated else None,
            "sin": np.sin(angles).astype(np.float32) if rotated else None,
        }


@st.composite
def calls(draw: st.DrawFn, **fixed: Any) -> Call:
    """Draw a valid call; `fixed` pins some of its fields."""
    form = fixed.get("form", draw(st.sampled_from(contract.FORMS)))
    mode = fixed.get("mode", draw(st.sampled_from(contract.MODES)))
    values: dict[str, Any] = {
        "form": form,
        "degree": draw(st.integers(1, 6)),
        "mode": mode,
        "mask": None if mode == "features" else draw(st.sampled_from([None, "bool", "float"])),
        "rotary_blocks": draw(st.sampled_from([None, 1, 2])) if form == contract.POWER else None,
        "batched_tables": draw(st.booleans()),
        "batch": draw(st.integers(1, 4)),
        "tokens": draw(st.one_of(st.integers(1, 9), st.sampled_from([64, 129, 1025]))),
        "units": draw(st.one_of(st.integers(1, 9), st.sampled_from([16, 70]))),
        "dtype": draw(st.sampled_from(["float32", "float16"])),
        "epsilon": draw(st.sampled_from([0.0, 1e-7, 0.25])),
        "seed": draw(st.integers(0, 10_000)),
    }
    return Call(**{**values, **fixed})


# Where the tokens are among an input's axes.
TOKEN_AXES = {"x": 1, "mask": 1, "cos": -2, "sin": -2}


def take_tokens(inputs: dict[str, Array | None], order: Array) -> dict[str, Array | None]:
    """Return the inputs with some of the tokens, in some order."""
    return {
        name: array if array is None or name not in TOKEN_AXES else np.take(array, order, axis=TOKEN_AXES[name])
        for name, array in inputs.items()
    }


def run_torch(call: Call, inputs: dict[str, Array | None], dtype: torch.dtype | None) -> Array:
    """Run the torch op, or with a dtype its definition in that type."""

    def tensor(name: str) -> torch.Tensor | None:
        array = inputs[name]
        if array is None:
            return None
        value = torch.from_numpy(array)
        return value.to(dtype) if dtype is not None and value.is_floating_point() else value

    function = polynomial_aggregation if dtype is None else reference.polynomial_aggregation
    x, coefficients, mask, cos, sin = (tensor(name) for name in INPUTS)
    degree = call.degree if coefficients is None else 0
    blocks = call.rotary_blocks or contract.DEFAULT_ROTARY_BLOCKS
    options = {"degree": degree, "cos": cos, "sin": sin, "rotary_blocks": blocks}
    return function(x, coefficients, mask, call.mode, call.epsilon, **options).numpy()


def write_model(call: Call, inputs: dict[str, Array | None], path: Path) -> dict[str, Array]:
    """Write a model of one node, with its function attached, and return what to feed it."""
    last = max(i for i, name in enumerate(INPUTS) if inputs[name] is not None)
    names = INPUTS[: max(last + 1, contract.REQUIRED_INPUTS)]
    placeholders = {"coefficients": np.ones(1, np.float32), "mask": np.ones(1, np.bool_)}
    feed = {name: placeholders[name] if (array := inputs[name]) is None else array for name in names}
    degree = call.degree if call.form == contract.PRODUCT else 0
    values = attributes(call.mode, call.epsilon, degree=degree, rotary_blocks=call.rotary_blocks or 1)
    node = onnx.helper.make_node(contract.OP_NAME, list(names), ["y"], name="n", domain=contract.DOMAIN, **values)
    kinds = {name: onnx.helper.np_dtype_to_tensor_dtype(array.dtype) for name, array in feed.items()}
    graph = onnx.helper.make_graph(
        [node],
        "g",
        [onnx.helper.make_tensor_value_info(name, kinds[name], feed[name].shape) for name in names],
        [onnx.helper.make_tensor_value_info("y", kinds["x"], None)],
    )
    opsets = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid(contract.DOMAIN, contract.OP_VERSION)]
    register_schema()
    model = ir.from_proto(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10))
    ir.save(AttachFunctionsPass()(model).model, path)
    return feed


def run_onnxruntime(call: Call, inputs: dict[str, Array | None], path: Path, kernels: bool) -> Array:
    feed = write_model(call, inputs, path)
    (y,) = inference_session(path, kernels=kernels).run(None, feed)
    return y


@EXAMPLES
@given(call=calls())
def test_every_executor_computes_what_float64_does(tmp_path_factory: Any, call: Call) -> None:
    path = tmp_path_factory.getbasetemp() / "property.onnx"
    inputs = call.inputs()
    expected = run_torch(call, inputs, torch.float64)
    found = {
        "torch": run_torch(call, inputs, None),
        "function": run_onnxruntime(call, inputs, path, kernels=False),
        "kernel": run_onnxruntime(call, inputs, path, kernels=True),
    }
    for name, y in found.items():
        assert y.shape == expected.shape, name
        assert y.dtype == call.dtype, name
        result = difference(y, expected, OPS[call.dtype])
        assert result, (name, result)


@EXAMPLES
@given(call=calls(mode="causal", dtype="float32"), data=st.data())
def test_a_causal_output_is_that_of_its_prefix(tmp_path_factory: Any, call: Call, data: st.DataObject) -> None:
    path = tmp_path_factory.getbasetemp() / "property.onnx"
    inputs = call.inputs()
    kept = data.draw(st.integers(1, call.tokens))
    prefix = take_tokens(inputs, np.arange(kept))
    for run in (
        lambda given_inputs: run_torch(call, given_inputs, None),
        lambda given_inputs: run_onnxruntime(call, given_inputs, path, kernels=True),
    ):
        whole, part = run(inputs), run(prefix)
        assert difference(part, whole[:, :kept].astype(np.float64), OPS["float32"])


@EXAMPLES
@given(call=calls(mode="mean", dtype="float32"), data=st.data())
def test_a_mean_does_not_depend_on_the_order_of_tokens(tmp_path_factory: Any, call: Call, data: st.DataObject) -> None:
    path = tmp_path_factory.getbasetemp() / "property.onnx"
    inputs = call.inputs()
    order = np.random.default_rng(data.draw(st.integers(0, 10_000))).permutation(call.tokens)
    permuted = take_tokens(inputs, order)
    for kernels in (True, False):
        y, expected = (run_onnxruntime(call, given_inputs, path, kernels) for given_inputs in (permuted, inputs))
        assert difference(y, expected.astype(np.float64), OPS["float32"])


@EXAMPLES
@given(
    call=calls(mask=None, epsilon=0.0, mode="mean") | calls(mask=None, epsilon=0.0, mode="causal"),
    dtype=st.sampled_from(["bool", "x"]),
)
def test_a_mask_of_ones_is_no_mask(tmp_path_factory: Any, call: Call, dtype: str) -> None:
    path = tmp_path_factory.getbasetemp() / "property.onnx"
    inputs = call.inputs()
    masked = {**inputs, "mask": np.ones((call.batch, call.tokens), np.bool_ if dtype == "bool" else call.dtype)}
    for kernels in (True, False):
        y, expected = (run_onnxruntime(call, given_inputs, path, kernels) for given_inputs in (masked, inputs))
        assert difference(y, expected.astype(np.float64), OPS[call.dtype])


@settings(EXAMPLES, max_examples=25)
@given(call=calls(dtype="float32", tokens=5, units=2, batch=2))
def test_gradients_are_those_of_finite_differences(call: Call) -> None:
    inputs = call.inputs()
    x, coefficients, mask, cos, sin = (
        None if (array := inputs[name]) is None else torch.from_numpy(array) for name in INPUTS
    )
    assert x is not None
    # Away from the kinks of leaky_relu and of the clamp.
    x = torch.where(x.abs() < 0.05, 0.2, x).double().requires_grad_()
    variables = [x] if coefficients is None else [x, coefficients.double().requires_grad_()]
    tables = [None if table is None else table.double() for table in (cos, sin)]
    weights = mask if mask is None or mask.dtype == torch.bool else mask.double()

    def op(tokens: torch.Tensor, coefficient: torch.Tensor | None = None) -> torch.Tensor:
        degree = call.degree if coefficient is None else 0
        return polynomial_aggregation(
            tokens, coefficient, weights, call.mode, call.epsilon, degree, *tables, call.rotary_blocks or 1
        )

    assert torch.autograd.gradcheck(op, variables)
