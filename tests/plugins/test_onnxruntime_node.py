"""Which nodes the ONNX Runtime op library accepts, and how it refuses those that break the contract."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from pom_export import contract
from pom_export.graph.schema import attributes

Arrays = dict[str, np.ndarray]

ONE = (1,)  # the shape of a placeholder


def ones(*shapes: tuple[int, ...]) -> Arrays:
    return {name: np.ones(shape, np.float32) for name, shape in zip(contract.INPUTS, shapes, strict=False)}


def test_the_library_has_the_contract(onnxruntime_symbols: ctypes.CDLL) -> None:
    assert onnxruntime_symbols.pom_contract().decode() == contract.signature()


def test_an_unknown_kernel_is_an_error(
    onnxruntime_op: Any, monkeypatch: pytest.MonkeyPatch, onnxruntime_symbols: ctypes.CDLL
) -> None:
    monkeypatch.setenv("POM_CPU_KERNEL", "sse9")
    assert onnxruntime_symbols.pom_cpu_kernel() == b""
    assert b"scalar" in onnxruntime_symbols.pom_cpu_kernel_error()
    with pytest.raises(Exception, match=r'POM_CPU_KERNEL must be one of .*scalar.*, got "sse9"'):
        onnxruntime_op.run(ones((1, 2, 3), (3, 1)), attributes("mean"))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"form": "sum"}, 'form must be one of "power", "product", got "sum"'),
        ({"form": "product"}, 'form "product" needs a degree of 1 to 16, got 0'),
        ({"form": "product", "degree": 17}, 'form "product" needs a degree of 1 to 16, got 17'),
        ({"degree": 2}, 'must be 0 in form "power", got 2'),
        ({"degree": 2**40}, "degree is out of range, got 1099511627776"),
        ({"degree": "2"}, "degree must be an integer"),
        ({"mode": "median"}, 'mode must be one of "mean", "causal", "features", got "median"'),
        ({"mode": None}, "the attribute mode is missing"),
        ({"mode": 3}, "mode must be a string"),
        ({"rotary_blocks": 3}, "rotary_blocks must be 1 or 2, got 3"),
        ({"rotary_blocks": 0}, "rotary_blocks must be 1 or 2, got 0"),
        ({"rotary_blocks": 2**40}, "rotary_blocks is out of range, got 1099511627776"),
        ({"epsilon": -1.0}, "epsilon must be finite and not negative, got -1"),
        ({"epsilon": float("nan")}, "epsilon must be finite and not negative, got nan"),
        ({"epsilon": float("inf")}, "epsilon must be finite and not negative, got inf"),
    ],
)
def test_invalid_attributes_fail_the_session(onnxruntime_op: Any, changed: dict[str, Any], message: str) -> None:
    node = {name: value for name, value in (attributes("mean") | changed).items() if value is not None}
    with pytest.raises(Exception, match=message):
        onnxruntime_op.session(onnxruntime_op.model(ones((1, 2, 3), (3, 1)), node))


@pytest.mark.parametrize(
    ("shapes", "node", "message"),
    [
        ([(2, 3), (3, 1)], {}, r"x must be \(batch, tokens, channels\), got shape \(2, 3\)"),
        ([(1, 2, 0), (0, 1)], {}, r"x must be .* at least one channel, got \(1, 2, 0\)"),
        ([(1, 2, 3), (3,)], {}, r"coefficients must be \(3, degree\) .* got shape \(3\)"),
        ([(1, 2, 3), (4, 1)], {}, r"coefficients must be \(3, degree\) .* got shape \(4, 1\)"),
        ([(1, 2, 3), ONE], {}, r"coefficients must be \(3, degree\) .* got shape \(1\)"),
        ([(1, 2, 3), (3, 0)], {}, "coefficients must have 1 to 16 columns, got 0"),
        ([(1, 2, 3), (3, 17)], {}, "coefficients must have 1 to 16 columns, got 17"),
        ([(1, 2, 3), (3, 1), (1, 4)], {}, r"mask must be \(1 or 1, 2\) .* got shape \(1, 4\)"),
        ([(1, 2, 3), (3, 1), (2,)], {}, r"mask must be \(1 or 1, 2\) .* got shape \(2\)"),
        ([(4, 2, 3), (3, 1), (3, 2)], {}, "mask must have 1 or 4 rows, got 3"),
        ([(1, 2, 3), ONE], {"degree": 2}, "x must have a multiple of degree 2 channels, got 3"),
        ([(1, 2, 4), (4, 1)], {"degree": 2}, r"coefficients must be a placeholder .* got shape \(4, 1\)"),
        ([(1, 2, 3), (3, 1), ONE, (2, 1), (2, 1)], {}, "1 blocks needs a multiple of 2 channels, got 3"),
        ([(1, 2, 6), (6, 1), ONE, (2, 3), (2, 3)], {"rotary_blocks": 2}, "2 blocks .* multiple of 4 channels, got 6"),
        ([(1, 2, 4), (4, 1), ONE, (2, 4), (2, 4)], {}, r"cos must be \(2, 2\) .* got shape \(2, 4\)"),
        ([(1, 2, 4), (4, 1), ONE, (2, 2), (1, 2, 2)], {}, r"sin must be .* got shape \(1, 2, 2\)"),
        ([(1, 2, 4), (4, 1), ONE, (2, 2), ONE], {}, "cos and sin must be given together"),
        ([(3, 2, 4), (4, 1), ONE, (2, 2, 2), (2, 2, 2)], {}, "cos must have 1 or 3 rows, got 2"),
    ],
)
def test_invalid_shapes_fail_the_run(
    onnxruntime_op: Any, shapes: list[tuple[int, ...]], node: dict[str, Any], message: str
) -> None:
    feeds = ones(*shapes)
    with pytest.raises(Exception, match=f"pom::PolynomialAggregation: .*{message}"):
        onnxruntime_op.run(feeds, attributes("mean", **node))


@pytest.mark.parametrize(
    ("types", "mode", "message"),
    [
        ([np.float64, np.float32], "mean", "x is of ONNX element type 11"),
        ([np.bool_, np.float32], "mean", "x must be float32, float16 or bfloat16, got bool"),
        ([np.float32, np.float16], "mean", "coefficients must be float32 or of x's type"),
        ([np.float32, np.float32, np.float16], "mean", "mask must be bool or of x's type"),
        ([np.float32, np.float32, np.int64], "mean", "mask must be bool or of x's type"),
        ([np.float32, np.float32, np.int32], "mean", "mask is of ONNX element type 6"),
        ([np.float32, np.float32, np.bool_], "features", 'mode "features" takes no mask'),
        ([np.float32, np.float32, np.bool_, np.float16, np.float16], "mean", "cos must be float32 or of x's type"),
        ([np.float32, np.float32, np.bool_, np.float32, np.float16], "mean", "sin must be of cos's type"),
        ([np.float32, np.float32, np.bool_, np.float32], "mean", "cos and sin must be given together"),
    ],
)
def test_invalid_types_fail_the_session(onnxruntime_op: Any, types: list[type], mode: str, message: str) -> None:
    shapes = ((1, 2, 4), (4, 1), (1, 2), (2, 2), (2, 2))
    feeds = {name: np.ones(shape, kind) for name, shape, kind in zip(contract.INPUTS, shapes, types, strict=False)}
    with pytest.raises(Exception, match=message):
        onnxruntime_op.session(onnxruntime_op.model(feeds, attributes(mode)))


def test_a_rotated_product_fails_the_session(onnxruntime_op: Any) -> None:
    feeds = ones((1, 2, 4), ONE, ONE, (2, 2), (2, 2))
    with pytest.raises(Exception, match='form "product" takes no cos and sin'):
        onnxruntime_op.session(onnxruntime_op.model(feeds, attributes("mean", degree=2)))


@pytest.mark.parametrize("mode", contract.MODES)
def test_an_absent_input_is_a_placeholder_or_empty(onnxruntime_op: Any, mode: str) -> None:
    feeds, node = ones((1, 5, 4), (4, 2), ONE, (5, 2), (5, 2)), attributes(mode)
    empty = {name: array for name, array in feeds.items() if name != "mask"}
    assert np.array_equal(onnxruntime_op.run(feeds, node), onnxruntime_op.run(empty, node))
    plain = ones((1, 5, 4), (4, 2))
    all_placeholders = ones((1, 5, 4), (4, 2), ONE, ONE, ONE)
    assert np.array_equal(onnxruntime_op.run(all_placeholders, node), onnxruntime_op.run(plain, node))


@pytest.mark.parametrize("unknown", [["cos"], ["sin"], ["mask", "sin"], ["x", "coefficients", "mask", "cos", "sin"]])
def test_an_input_of_unknown_rank_is_judged_by_the_run(onnxruntime_op: Any, unknown: list[str]) -> None:
    feeds, node = ones((1, 5, 4), (4, 2), (1, 5), (5, 2), (5, 2)), attributes("mean")
    model = onnx.load_from_string(onnxruntime_op.model(feeds, node))
    for value in model.graph.input:
        if value.name in unknown:
            value.type.tensor_type.ClearField("shape")
    session = onnxruntime_op.session(model.SerializeToString())
    assert np.array_equal(session.run(None, feeds)[0], onnxruntime_op.run(feeds, node))
    with pytest.raises(Exception, match="cos and sin must be given together"):
        session.run(None, feeds | {unknown[-1]: np.ones(1, np.float32)})


def test_missing_attributes_take_the_contracts_defaults(onnxruntime_op: Any) -> None:
    feeds = ones((1, 4, 3), (3, 2))
    y = onnxruntime_op.run(feeds, {"mode": "mean"})
    assert np.array_equal(y, onnxruntime_op.run(feeds, attributes("mean")))


@pytest.mark.parametrize(("mode", "tokens"), [("mean", 1), ("causal", "x1"), ("features", "x1")])
def test_the_outputs_type_and_shape_are_inferred(onnxruntime_op: Any, mode: str, tokens: int | str) -> None:
    feeds = {"x": np.ones((1, 4, 3), np.float16), "coefficients": np.ones((3, 2), np.float32)}
    (y,) = onnxruntime_op.session(onnxruntime_op.model(feeds, attributes(mode))).get_outputs()
    assert (y.type, y.shape) == ("tensor(float16)", ["x0", tokens, "x2"])


def test_the_kernel_wins_over_a_function_of_the_same_name(onnxruntime_op: Any) -> None:
    wrong = helper.make_function(
        contract.DOMAIN,
        contract.OP_NAME,
        list(contract.INPUTS),
        list(contract.OUTPUTS[:1]),
        [helper.make_node("Neg", ["x"], ["y"])],
        [helper.make_opsetid("", 20)],
        attributes=list(contract.ATTRIBUTES),
    )
    feeds, node = ones((1, 4, 3), (3, 2)), attributes("causal")
    (y,) = onnxruntime_op.session(onnxruntime_op.model(feeds, node, (wrong,))).run(None, feeds)
    assert np.array_equal(y, np.full((1, 4, 3), 2))


@pytest.mark.parametrize("names", [contract.OP_NAMES, contract.GATED_OP_NAMES])
def test_an_op_is_the_same_by_each_of_its_names(onnxruntime_op: Any, names: tuple[str, ...]) -> None:
    feeds, node = ones((1, 4, 3), (3, 2)), attributes("causal")
    if contract.GATED_OP_NAME in names:
        feeds |= {"gate": np.ones((1, 4, 3), np.float32), "gate_bias": np.ones(3, np.float32)}
        node |= {"gate_activation": "sigmoid"}
    expected = onnxruntime_op.run(feeds, node)
    for name in names:
        model = onnx.load_from_string(onnxruntime_op.model(feeds, node))
        model.graph.node[0].op_type = name
        (y,) = onnxruntime_op.session(model.SerializeToString()).run(None, feeds)
        assert np.array_equal(y, expected)
        with pytest.raises(Exception, match=f"pom::{name}: coefficients must be"):
            onnxruntime_op.session(model.SerializeToString()).run(None, feeds | {"x": np.ones((1, 4, 2), np.float32)})
