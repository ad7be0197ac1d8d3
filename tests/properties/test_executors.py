"""One op, four executors: whatever the configuration, each computes what float64 does."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pom_export import contract
from pom_export.graph.passes import AttachFunctionsPass
from pom_export.graph.schema import register_schema
from pom_export.mixer import polynomial_aggregation
from pom_export.parity.comparison import difference
from pom_export.parity.tolerances import OPS
from pom_export.runtime.session import inference_session
from tests import op_calls
from tests.op_calls import Array, Arrays, Call, Case, tokens_of

EXAMPLES = settings(max_examples=60, deadline=None, derandomize=True)


@st.composite
def cases(draw: st.DrawFn, **fixed: Any) -> Case:
    """Draw a valid call without a state, which has separate tests; `fixed` pins some of its fields."""
    form = draw(st.sampled_from(contract.FORMS))
    mode = fixed.get("mode") or draw(st.sampled_from(contract.MODES))
    rotated = form == contract.POWER and draw(st.booleans())
    case = Case(
        mode,
        form=form,
        degree=draw(st.integers(1, 6)),
        mask="none" if mode == "features" else draw(st.sampled_from(op_calls.MASKS)),
        rotation="float32" if rotated else "none",
        rotation_rows=draw(st.sampled_from([None, 1])),
        rotary_blocks=draw(st.sampled_from([1, 2])) if rotated else 1,
        dtype=draw(st.sampled_from(["float32", "float16"])),
        epsilon=draw(st.sampled_from([0.0, 1e-7, 0.25])),
        seed=draw(st.integers(0, 10_000)),
    )
    case = replace(case, **{name: fixed[name] for name in fixed if name != "shape"})
    batch, tokens, units = fixed.get("shape") or (
        draw(st.integers(1, 4)),
        draw(st.one_of(st.integers(1, 9), st.sampled_from([64, 129, 1025]))),
        draw(st.one_of(st.integers(1, 9), st.sampled_from([16, 70]))),
    )
    return replace(case, coefficients=case.dtype, shape=(batch, tokens, units * case.unit))


class Executors:
    """The op in torch and in ONNX Runtime, by our kernels and by the function in the file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def torch(self, feeds: Mapping[str, Array], attributes: dict[str, Any]) -> Array:
        real = {name: torch.from_numpy(array) for name, array in feeds.items() if array.ndim > 1}
        x, coefficients, mask = (real.get(name) for name in ("x", "coefficients", "mask"))
        options = {name: attributes[name] for name in ("degree", "rotary_blocks")}
        options |= {"cos": real.get("cos"), "sin": real.get("sin")}
        y: Array = polynomial_aggregation(
            x, coefficients, mask, attributes["mode"], attributes["epsilon"], **options
        ).numpy()
        return y

    def kernel(self, feeds: Arrays, attributes: dict[str, Any]) -> Array:
        return self._run(feeds, attributes, kernels=True)

    def function(self, feeds: Arrays, attributes: dict[str, Any]) -> Array:
        return self._run(feeds, attributes, kernels=False)

    def _run(self, feeds: Arrays, attributes: dict[str, Any], kernels: bool) -> Array:
        (y,) = _session(self._file(feeds, attributes), kernels).run(None, feeds)
        result: Array = y
        return result

    def _file(self, feeds: Arrays, attributes: dict[str, Any]) -> Path:
        """Write the model if it does not exist yet: calls of other sizes use the same one."""
        degree = feeds["coefficients"].shape[-1]
        kinds = [(name, array.dtype, array.ndim) for name, array in feeds.items()]
        path = self.folder / f"{hashlib.sha256(repr((kinds, degree, attributes)).encode()).hexdigest()}.onnx"
        if not path.is_file():
            model = op_calls.model(feeds, attributes)
            coefficients = next(value for value in model.graph.input if value.name == "coefficients")
            # A function serves one degree.
            coefficients.type.tensor_type.shape.dim[-1].dim_value = degree
            register_schema()
            ir.save(AttachFunctionsPass()(ir.from_proto(model)).model, path)
        return path


@functools.cache
def _session(path: Path, kernels: bool) -> Any:
    return inference_session(path, kernels=kernels)


@pytest.fixture(scope="module")
def executors(tmp_path_factory: pytest.TempPathFactory) -> Executors:
    return Executors(tmp_path_factory.mktemp("executors"))


@EXAMPLES
@given(case=cases())
def test_every_executor_computes_what_float64_does(executors: Executors, case: Case) -> None:
    call = Call(case)
    for run in (executors.torch, executors.function, executors.kernel):
        y = run(call.feeds(), case.attributes())
        assert y.dtype == case.dtype, run
        call.check([y])


@pytest.mark.slow
@EXAMPLES
@given(case=cases(mode="causal", dtype="float32"), data=st.data())
def test_a_causal_output_is_that_of_its_prefix(executors: Executors, case: Case, data: st.DataObject) -> None:
    feeds, attributes = Call(case).feeds(), case.attributes()
    kept = data.draw(st.integers(1, case.shape[1]))
    prefix = tokens_of(feeds, 0, kept)
    for run in (executors.torch, executors.kernel):
        whole, part = run(feeds, attributes), run(prefix, attributes)
        assert difference(part, whole[:, :kept].astype(np.float64), OPS["float32"])


@pytest.mark.slow
@EXAMPLES
@given(case=cases(mode="mean", dtype="float32"), data=st.data())
def test_a_mean_does_not_depend_on_the_order_of_tokens(executors: Executors, case: Case, data: st.DataObject) -> None:
    feeds, attributes = Call(case).feeds(), case.attributes()
    order = np.random.default_rng(data.draw(st.integers(0, 10_000))).permutation(case.shape[1])
    permuted = {
        name: np.take(array, order, axis=op_calls.TOKEN_AXES[name])
        if name in op_calls.TOKEN_AXES and array.ndim > 1
        else array
        for name, array in feeds.items()
    }
    for run in (executors.kernel, executors.function):
        y, expected = (run(each, attributes) for each in (permuted, feeds))
        assert difference(y, expected.astype(np.float64), OPS["float32"])


@pytest.mark.slow
@EXAMPLES
@given(
    case=cases(mask="none", epsilon=0.0, mode="mean") | cases(mask="none", epsilon=0.0, mode="causal"),
    kind=st.sampled_from(["bool", "x"]),
)
def test_a_mask_of_ones_is_no_mask(executors: Executors, case: Case, kind: str) -> None:
    feeds, attributes = Call(case).feeds(), case.attributes()
    ones = np.ones(case.shape[:2], np.bool_ if kind == "bool" else case.dtype)
    for run in (executors.kernel, executors.function):
        y, expected = (run(each, attributes) for each in (feeds | {"mask": ones}, feeds))
        assert difference(y, expected.astype(np.float64), OPS[case.dtype])


@pytest.mark.slow
@settings(EXAMPLES, max_examples=25)
@given(case=cases(dtype="float32", shape=(2, 5, 2)))
def test_gradients_are_those_of_finite_differences(case: Case) -> None:
    feeds = {name: torch.from_numpy(array) for name, array in Call(case).feeds().items() if array.ndim > 1}
    # Away from the kinks of leaky_relu and of the clamp.
    x = feeds["x"].double().clamp(-3, 3)
    x = torch.where(x.abs() < 0.05, 0.2, x).requires_grad_()
    coefficients = feeds.get("coefficients")
    variables = [x] if coefficients is None else [x, coefficients.double().requires_grad_()]
    mask = feeds.get("mask")
    weights = mask if mask is None or mask.dtype == torch.bool else mask.double()
    tables = [None if (table := feeds.get(name)) is None else table.double() for name in ("cos", "sin")]
    attributes = case.attributes()

    def op(tokens: torch.Tensor, coefficient: torch.Tensor | None = None) -> torch.Tensor:
        mode, epsilon, degree = (attributes[name] for name in ("mode", "epsilon", "degree"))
        return polynomial_aggregation(tokens, coefficient, weights, mode, epsilon, degree, *tables, case.rotary_blocks)

    assert torch.autograd.gradcheck(op, variables)
