"""The op in ONNX Runtime at the limits of its number types: weights, lengths, sizes, and attributes of a wrong type."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import helper

from pom_export import contract
from pom_export.graph.schema import attributes
from tests.plugins.cpu_kernels import every_kernel
from tests.plugins.weights import EPSILONS, NOT_A_NUMBER, RIGHT, check_not_a_number, check_right, feeds

Array = npt.NDArray[Any]
LONGEST = 2**63 - 1
MODES = ("mean", "causal")


def one(*shape: int) -> Array:
    return np.ones(shape, np.float32)


@every_kernel
@pytest.mark.parametrize("mode", MODES)
def test_means_of_weights_at_the_ends_of_float32(onnxruntime_op: Any, mode: str) -> None:
    for row, epsilon in itertools.product(RIGHT.values(), EPSILONS):
        given = feeds(row)
        check_right(onnxruntime_op.run(given, attributes(mode, epsilon)), given, mode, epsilon)
    for row, first in NOT_A_NUMBER.values():
        check_not_a_number(onnxruntime_op.run(feeds(row), attributes(mode)), first, mode)


@every_kernel
@pytest.mark.parametrize("mode", MODES)
def test_infinite_features_are_what_the_formula_gives(onnxruntime_op: Any, mode: str) -> None:
    """GELU(-inf) is -inf * 0."""
    x = one(1, 3, 40)
    x[0, 1, [2, 3, 4]] = np.inf, -np.inf, np.nan
    y = onnxruntime_op.run({"x": x, "coefficients": one(1)}, attributes(mode, degree=1))[0, -1]
    assert np.isnan(y[[3, 4]]).all()
    assert np.flatnonzero(~np.isfinite(y)).tolist() == [2, 3, 4]


def state(length: int, channels: int = 4) -> dict[str, Array]:
    return {"past_state": one(1, 2, channels), "past_length": np.array([length])}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("masked", [False, True])
def test_every_length_is_counted_exactly(onnxruntime_op: Any, mode: str, masked: bool) -> None:
    mask = {"mask": np.array([[True, False, True, True, True]])} if masked else {}
    added = 4 if masked else 5
    for length in (0, 2**53 + 1, 2**62, LONGEST - 5):
        given = {"x": one(1, 5, 4), "coefficients": one(4, 2), **mask, **state(length)}
        session = onnxruntime_op.session(onnxruntime_op.model(given, attributes(mode, stateful=True)))
        y, _, present = session.run(None, given)
        assert present.tolist() == [length + added]
        # Tokens whose features are 2, and a past whose sum is 2.
        np.testing.assert_allclose(y[0, -1], (2 + 2 * added) / (length + added), rtol=1e-6)


@pytest.mark.parametrize("length", [LONGEST - 4, LONGEST, -1, -(2**63)])
def test_a_length_that_cannot_be_counted_is_refused(onnxruntime_op: Any, length: int) -> None:
    given = {"x": one(1, 5, 4), "coefficients": one(4, 2), **state(length)}
    session = onnxruntime_op.session(onnxruntime_op.model(given, attributes("causal", stateful=True)))
    message = f"past_length must be 0 to {LONGEST - 5} where 5 tokens are added, got {length}$"
    with pytest.raises(Exception, match=message):
        session.run(None, given)


@pytest.mark.parametrize(
    ("shape", "form", "mode", "gate"),
    [
        ((2**31, 0, 4), "power", "features", None),
        ((2**24, 0, 4), "power", "causal", None),
        ((1, 0, 2**30), "product", "causal", None),
        ((1, 0, 2**52), "product", "features", None),
        ((0, 2**40, 4), "power", "mean", None),
        ((0, 2**31, 2**20), "product", "causal", None),
        ((2**24, 0, 4), "power", "mean", (2**24, 0, 4)),
        ((0, 2**31, 4), "power", "mean", (0, 2**50, 4)),
    ],
)
def test_what_has_no_element_takes_no_time(
    onnxruntime_op: Any, shape: tuple[int, ...], form: str, mode: str, gate: tuple[int, ...] | None
) -> None:
    given = {"x": np.zeros(shape, np.float32), "coefficients": one(1) if form == "product" else one(shape[2], 2)}
    node = attributes(mode, degree=2 if form == "product" else 0)
    if gate is not None:
        given |= {"gate": np.zeros(gate, np.float32), "gate_bias": one(gate[2])}
        node["gate_activation"] = "sigmoid"
    tokens = gate[1] if gate else 1 if mode == "mean" else shape[1]
    assert onnxruntime_op.run(given, node).shape == (shape[0], tokens, shape[2])


@pytest.mark.parametrize(
    ("shape", "mode", "message"),
    [
        ((2**58, 0, 4), "features", "x is too large"),
        ((2**40, 0, 2**20), "mean", "x is too large"),
        ((2**31, 0, 4), "mean", "means would be 8589934592 zeros, more than 134217728"),
    ],
)
def test_sizes_that_no_output_has_are_refused(
    onnxruntime_op: Any, shape: tuple[int, ...], mode: str, message: str
) -> None:
    given = {"x": np.zeros(shape, np.float32), "coefficients": one(1)}
    with pytest.raises(Exception, match=message):
        onnxruntime_op.run(given, attributes(mode, degree=2))


def test_a_mean_of_no_tokens_keeps_nothing_of_a_large_batch(onnxruntime_op: Any) -> None:
    given = {"x": np.zeros((2**20, 0, 2), np.float16), "coefficients": one(2, 2)}
    assert not onnxruntime_op.run(given, attributes("mean")).any()


def test_rows_of_one_token_are_means_of_themselves(onnxruntime_op: Any) -> None:
    """A batch with rows of one chunk each, and with rows of several."""
    for mode, tokens in itertools.product(MODES, (1, 3, 700)):
        x = np.random.default_rng(1).random((3, tokens, 20)).astype(np.float32)
        y = onnxruntime_op.run({"x": x, "coefficients": one(20, 1)}, attributes(mode), threads=2)
        means = x.astype(np.float64).cumsum(1) / np.arange(1, tokens + 1)[:, None]
        np.testing.assert_allclose(y, means[:, -1:] if mode == "mean" else means, rtol=1e-5)


def test_constant_coefficients_of_too_many_columns_are_refused_as_they_are_seen(onnxruntime_op: Any) -> None:
    given = {"x": one(1, 2, 1), "coefficients": np.zeros((1, 1_000_000), np.float32)}
    model = onnxruntime_op.model(given, attributes("mean"), constants=["coefficients"])
    with pytest.raises(Exception, match="coefficients must have 1 to 16 columns, got 1000000"):
        onnxruntime_op.session(model)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("form", ["product"], "form must be a string"),
        ("mode", ["causal"], "mode must be a string"),
        ("degree", [3], "degree must be an integer"),
        ("degree", 3.0, "degree must be an integer"),
        ("rotary_blocks", [2, 1], "rotary_blocks must be an integer"),
        ("epsilon", [1.0], "epsilon must be a float"),
        ("epsilon", 1, "epsilon must be a float"),
        ("epsilon", "1", "epsilon must be a float"),
        ("stateful", [1], "stateful must be an integer"),
        ("plugin_version", [1], "plugin_version must be a string"),
        ("epsilon", helper.make_tensor("t", onnx.TensorProto.FLOAT, [1], [1.0]), "epsilon must be a float"),
        ("mode", helper.make_graph([], "g", [], []), "mode must be a string"),
    ],
    ids=str,
)
def test_an_attribute_of_another_type_is_no_missing_one(
    onnxruntime_op: Any, name: str, value: object, message: str
) -> None:
    model = onnx.load_from_string(onnxruntime_op.model({"x": one(1, 5, 4), "coefficients": one(4, 2)}, {}))
    for each, good in attributes("mean").items():
        model.graph.node[0].attribute.append(helper.make_attribute(each, value if each == name else good))
    with pytest.raises(Exception, match=f"{message}, and the node has it as another type"):
        onnxruntime_op.session(model.SerializeToString())


def test_an_attributes_text_stays_on_one_short_line(onnxruntime_op: Any) -> None:
    node = attributes("mean") | {"form": "\x1b[2J\nresult  passed" + "x" * 10_000}
    with pytest.raises(Exception, match="form must be one of") as refused:
        onnxruntime_op.session(onnxruntime_op.model({"x": one(1, 5, 4), "coefficients": one(4, 2)}, node))
    text = str(refused.value)
    assert text.isprintable()
    assert len(text) < 400


def test_the_gates_activation_has_a_type_too(onnxruntime_op: Any) -> None:
    given = {"x": one(1, 5, 4), "gate": one(1, 5, 4), "gate_bias": one(4), "coefficients": one(4, 2)}
    node = attributes("mean") | {"gate_activation": ["sigmoid"]}
    with pytest.raises(Exception, match="gate_activation must be a string"):
        onnxruntime_op.session(onnxruntime_op.model(given, node))
    assert "gate_activation" in contract.GATED_ATTRIBUTES
