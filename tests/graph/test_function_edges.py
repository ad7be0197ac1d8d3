"""The op's function body at the limits of its number types: it cannot refuse, so it is right or NaN."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from pom_export import contract
from pom_export.graph.function import FunctionVariant, build_function
from pom_export.graph.schema import attributes
from tests.graph.test_function import run, run_variant
from tests.plugins.weights import EPSILONS, NOT_A_NUMBER, RIGHT, check_not_a_number, check_right, feeds

MODES = ("mean", "causal")
LONGEST = 2**63 - 1
FLOAT = ir.DataType.FLOAT


@pytest.mark.parametrize("mode", MODES)
def test_means_of_weights_at_the_ends_of_float32(mode: str) -> None:
    for row, epsilon in itertools.product(RIGHT.values(), EPSILONS):
        given = feeds(row)
        check_right(run(mode, "same", "float32", epsilon, given), given, mode, epsilon)
    for row, first in NOT_A_NUMBER.values():
        check_not_a_number(run(mode, "same", "float32", 0.0, feeds(row)), first, mode)
    beyond = run(mode, "same", "float32", 3e38, feeds(RIGHT["large"]))
    assert np.isnan(beyond).all()


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_tokens_of_a_mask_are_counted_beyond_what_float32_counts(mode: str) -> None:
    """Only the first token has features, so the sums are exact and only the counts matter."""
    tokens = 2**24 + 2**22
    feed = {"x": np.zeros((1, tokens, 1), np.float32), "coefficients": np.ones((1, 1), np.float32)}
    feed["x"][0, 0] = 1
    feed["mask"] = np.ones((1, tokens), bool)
    feed["mask"][0, 7] = False
    y = run(mode, "bool", "float32", 0.0, feed)
    np.testing.assert_allclose(y[0, -1], 1 / (tokens - 1), rtol=1e-6)


@pytest.mark.parametrize("mode", contract.MODES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_what_the_formula_gives(mode: str, value: float) -> None:
    """A clamp keeps a NaN; GELU(-inf) is -inf * 0."""
    feed = {"x": np.ones((1, 5, 40), np.float32), "coefficients": np.ones((40, 2), np.float32)}
    feed["x"][0, 2, 3] = value
    y = run(mode, None, "float32", 0.0, feed)[0, -3:]
    assert np.isnan(y[0, 3]) == np.isnan(value)
    assert np.isfinite(np.delete(y, 3, axis=1)).all()
    product = FunctionVariant(mode, 0.0, 1, FLOAT, None)
    y = run_variant(product, attributes(mode, degree=1), feed | {"coefficients": np.ones(1, np.float32)})[0, -3:]
    assert not np.isfinite(y[0, 3])
    assert np.isfinite(np.delete(y, 3, axis=1)).all()


def stream(mode: str, masked: bool, lengths: list[int], state: float = 2.0) -> list[Any]:
    """Return the outputs of 5 tokens with features of 2, one of them masked, after a past."""
    mask = np.array([[True, False, True, True, True]]) if masked else np.ones(1, bool)
    one, past = np.ones(1, np.float32), np.zeros((len(lengths), 2, 4), np.float32)
    past[:, 0] = state
    feed = {"x": np.ones((len(lengths), 5, 4), np.float32), "coefficients": np.ones((4, 2), np.float32), "mask": mask}
    feed |= {"cos": one, "sin": one, "past_state": past, "past_length": np.array(lengths)}
    variant = FunctionVariant(mode, 0.0, 2, FLOAT, FLOAT, ir.DataType.BOOL if masked else None, stateful=True)
    node = onnx.helper.make_node(
        contract.OP_NAME, list(feed), list(contract.OUTPUTS), domain=contract.DOMAIN, **attributes(mode, stateful=True)
    )
    kind = onnx.helper.np_dtype_to_tensor_dtype
    inputs = [onnx.helper.make_tensor_value_info(n, kind(a.dtype), [None] * a.ndim) for n, a in feed.items()]
    outputs = [
        onnx.helper.make_tensor_value_info(name, kind(dtype), [None] * rank)
        for name, dtype, rank in zip(contract.OUTPUTS, map(np.dtype, ("f4", "f4", "i8")), (3, 3, 1), strict=True)
    ]
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], "g", inputs, outputs),
        opset_imports=[onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid(contract.DOMAIN, 1)],
        functions=[ir.to_proto(build_function(variant, 20))],
        ir_version=10,
    )
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    made: list[Any] = session.run(None, feed)
    return made


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_lengths_are_exact_or_the_row_is_not_a_number(mode: str, masked: bool) -> None:
    good = [0, 2**53 + 1, 2**62, LONGEST - 5]
    bad = [LONGEST - 4, LONGEST, -1, -5, -(2**63)]
    y, state, length = stream(mode, masked, good + bad)
    added = 4 if masked else 5
    assert length.tolist() == [each + added for each in good] + [-1] * len(bad)
    for row, each in enumerate(good):
        np.testing.assert_allclose(y[row, -1], (2 + 2 * added) / (each + added), rtol=1e-6)
    assert np.isfinite(state[: len(good)]).all()
    for part in (y, state):
        assert np.isnan(part[len(good) :]).all()


@pytest.mark.parametrize("mode", MODES)
def test_a_state_that_is_not_finite_stays_so(mode: str) -> None:
    y, state, _ = stream(mode, masked=False, lengths=[3], state=np.nan)
    assert np.isnan(y).all()
    assert np.isnan(state.sum(1)).all()
