"""The gated op of the ONNX Runtime library against float64, for every kernel that this machine can run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper

from pom_export import contract
from pom_export.mixer.reference import polynomial_aggregation
from pom_export.parity.tolerances import OPS

Arrays = dict[str, np.ndarray]

BFLOAT16 = helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16)
PLACEHOLDER = np.full(1, np.nan, np.float32)

every_kernel = pytest.mark.usefixtures("cpu_kernel")
every_activation = pytest.mark.parametrize("activation", contract.GATE_ACTIVATIONS)
every_mode = pytest.mark.parametrize("mode", ["mean", "causal"])
every_type = pytest.mark.parametrize(
    "dtype", [np.float32, np.float16, BFLOAT16], ids=["float32", "float16", "bfloat16"]
)


def node(mode: str, activation: str, **changed: Any) -> dict[str, Any]:
    plain = {"form": "power", "degree": 0, "mode": mode, "rotary_blocks": 1, "epsilon": 0.0}
    return plain | {"gate_activation": activation} | changed


def feeds_of(
    batch: int,
    tokens: int,
    channels: int,
    heads: int | None = None,
    dtype: Any = np.float32,
    outputs: int | None = None,
) -> Arrays:
    random = np.random.default_rng(3)
    heads = heads or channels
    gate = 6 * random.standard_normal((batch, outputs or tokens, heads))
    return {
        "x": (2 * random.standard_normal((batch, tokens, channels))).astype(dtype),
        "gate": gate.astype(dtype),
        "gate_bias": random.standard_normal(heads).astype(np.float32),
        "coefficients": (random.standard_normal((channels, 3)) / [1, 6, 36]).astype(np.float32),
    }


def exact(feeds: Arrays, attributes: dict[str, Any]) -> np.ndarray:
    inputs = {
        name: torch.from_numpy(array if array.dtype == bool else array.astype(np.float64))
        for name, array in feeds.items()
        if array.ndim > 1 or name == "gate_bias"
    }
    y = polynomial_aggregation(
        inputs["x"],
        inputs.get("coefficients"),
        inputs.get("mask"),
        attributes["mode"],
        attributes["epsilon"],
        degree=attributes["degree"],
        cos=inputs.get("cos"),
        sin=inputs.get("sin"),
        rotary_blocks=attributes["rotary_blocks"],
    )
    gate = inputs["gate"] + inputs["gate_bias"]
    activation = {
        "identity": lambda z: z,
        "sigmoid": torch.sigmoid,
        "hardsigmoid": torch.nn.functional.hardsigmoid,
    }[attributes["gate_activation"]]
    return (activation(gate).repeat_interleave(y.shape[-1] // gate.shape[-1], dim=-1) * y).numpy()


def assert_matches(z: np.ndarray, feeds: Arrays, attributes: dict[str, Any]) -> None:
    expected = exact(feeds, attributes)
    assert z.shape == expected.shape
    bound = OPS[str(z.dtype)]
    allowed = bound.relative * abs(expected).max(initial=0) + bound.absolute
    assert np.all(abs(z.astype(np.float64) - expected) <= allowed)


@every_kernel
@every_activation
@every_mode
@every_type
@pytest.mark.parametrize(
    ("channels", "heads"), [(40, 40), (40, 8), (40, 1), (39, 13), (1100, 1100), (1100, 20), (7, 7)]
)
def test_activations_and_heads(
    onnxruntime_op: Any, activation: str, mode: str, dtype: Any, channels: int, heads: int
) -> None:
    attributes, feeds = node(mode, activation), feeds_of(2, 75, channels, heads, dtype)
    assert_matches(onnxruntime_op.run(feeds, attributes), feeds, attributes)


@every_kernel
@every_mode
@pytest.mark.parametrize(("form", "channels"), [("rotated", 52), ("rotated_in_two", 52), ("product", 51)])
@pytest.mark.parametrize("by_head", [False, True])
def test_forms(onnxruntime_op: Any, mode: str, form: str, channels: int, by_head: bool) -> None:
    """A head's channels may lie in more than one part of a column."""
    feeds = feeds_of(2, 75, channels, channels // (17 if form == "product" else 13) if by_head else None)
    attributes = node(mode, "hardsigmoid")
    feeds["mask"] = np.random.default_rng(0).random((2, 75)) < 0.7
    if form == "product":
        feeds["coefficients"] = PLACEHOLDER
        attributes |= {"form": "product", "degree": 3}
    else:
        angles = np.random.default_rng(1).uniform(0, 6, (75, channels // 2))
        feeds |= {"cos": np.cos(angles).astype(np.float32), "sin": np.sin(angles).astype(np.float32)}
        attributes["rotary_blocks"] = 2 if form == "rotated_in_two" else 1
    assert_matches(onnxruntime_op.run(feeds, attributes), feeds, attributes)


@every_kernel
@pytest.mark.parametrize(("tokens", "outputs"), [(33, 200), (200, 33), (5, 1)])
@every_type
def test_a_mean_serves_any_number_of_tokens(onnxruntime_op: Any, tokens: int, outputs: int, dtype: Any) -> None:
    attributes, feeds = node("mean", "sigmoid"), feeds_of(2, tokens, 24, 24, dtype, outputs)
    assert_matches(onnxruntime_op.run(feeds, attributes), feeds, attributes)


@every_kernel
@every_mode
def test_empty_calls(onnxruntime_op: Any, mode: str) -> None:
    attributes = node(mode, "hardsigmoid")
    for batch, tokens in ((0, 5), (2, 0), (0, 0)):
        feeds = feeds_of(batch, tokens, 6)
        assert onnxruntime_op.run(feeds, attributes).shape == (batch, tokens, 6)


@every_kernel
@every_activation
def test_every_size_of_gate(onnxruntime_op: Any, activation: str) -> None:
    """Where the mean is 1, the output is the activation alone: to float32's precision, NaN and infinity too."""
    gate = np.concatenate([np.linspace(-120, 120, 99_996), [-3e38, 3e38, -np.inf, np.nan]]).astype(np.float32)
    feeds = {
        "x": np.ones((1, 1, 4), np.float32),
        "gate": gate.reshape(1, -1, 4),
        "gate_bias": np.zeros(4, np.float32),
        "coefficients": np.ones((4, 1), np.float32),
    }
    attributes = node("mean", activation)
    z = onnxruntime_op.run(feeds, attributes)
    expected = exact(feeds, attributes)
    assert np.array_equal(np.isnan(z), np.isnan(expected))
    finite = np.isfinite(expected)
    assert np.array_equal(z[~finite], expected[~finite].astype(np.float32), equal_nan=True)
    # Half a place of float32 is 6e-8. The line of a hardsigmoid cancels near its foot; a sigmoid ends at exp(-87).
    relative, absolute = {"identity": (0, 0), "sigmoid": (3e-7, 2e-38), "hardsigmoid": (1.2e-7, 6e-8)}[activation]
    error = abs(z[finite] - expected[finite])
    assert np.all(error <= relative * abs(expected[finite]) + absolute)


@every_kernel
@every_mode
def test_rows_without_weight_give_zero(onnxruntime_op: Any, mode: str) -> None:
    feeds = feeds_of(1, 20, 12)
    feeds["mask"] = np.zeros((1, 20), bool)
    feeds["x"][:] = np.nan
    assert not onnxruntime_op.run(feeds, node(mode, "sigmoid")).any()


@every_kernel
@pytest.mark.parametrize("names", [["coefficients"], ["gate_bias"], ["coefficients", "gate_bias", "gate"]])
@every_type
def test_constants_change_no_bit(onnxruntime_op: Any, names: list[str], dtype: Any) -> None:
    feeds = feeds_of(2, 30, 24, 8, dtype)
    feeds |= {name: feeds[name].astype(dtype) for name in ("coefficients", "gate_bias")}
    attributes = node("causal", "hardsigmoid")
    fed = onnxruntime_op.run(feeds, attributes)
    assert onnxruntime_op.run(feeds, attributes, constants=names).tobytes() == fed.tobytes()


@every_kernel
@every_mode
@pytest.mark.parametrize("heads", [600, 30])
def test_threads_change_no_bit(onnxruntime_op: Any, mode: str, heads: int) -> None:
    feeds, attributes = feeds_of(1, 700, 600, heads), node(mode, "sigmoid")
    one, two = (onnxruntime_op.run(feeds, attributes, threads) for threads in (1, 2))
    assert one.tobytes() == two.tobytes()


@pytest.mark.parametrize(
    ("changed", "shapes", "message"),
    [
        ({"gate_activation": "tanh"}, {}, 'gate_activation must be one of "identity", .*, got "tanh"'),
        ({"gate_activation": None}, {}, "the attribute gate_activation is missing"),
        ({"gate_activation": 2}, {}, "gate_activation must be a string"),
        ({"mode": "features"}, {}, 'mode "features" takes no gate'),
        ({"rotary_blocks": 3}, {}, "rotary_blocks must be 1 or 2, got 3"),
        ({}, {"gate": (2, 5, 6)}, r"gate must be \(1, tokens, gates\) for x's batch .*, got shape \(2, 5, 6\)"),
        ({}, {"gate": (5, 6)}, r"gate must be \(1, tokens, gates\) for x's batch .*, got shape \(5, 6\)"),
        ({}, {"gate": (1, 5, 4)}, "gate must have a divisor of 6 channels as its gates, got 4"),
        ({}, {"gate": (1, 5, 0)}, "gate must have a divisor of 6 channels as its gates, got 0"),
        ({"mode": "causal"}, {"gate": (1, 4, 6)}, r"gate must be \(1, 5, gates\) .*, got shape \(1, 4, 6\)"),
        ({}, {"gate_bias": (1,)}, r"gate_bias must be \(6\), got shape \(1\)"),
        ({}, {"gate_bias": (1, 6)}, r"gate_bias must be \(6\), got shape \(1, 6\)"),
        ({}, {"coefficients": (5, 3)}, r"coefficients must be \(6, degree\)"),
    ],
)
def test_invalid_nodes_and_shapes(
    onnxruntime_op: Any, changed: dict[str, Any], shapes: dict[str, tuple[int, ...]], message: str
) -> None:
    feeds = feeds_of(1, 5, 6) | {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    attributes = {name: value for name, value in (node("mean", "sigmoid") | changed).items() if value is not None}
    with pytest.raises(Exception, match=f"pom::GatedPolynomialAggregation: .*{message}"):
        onnxruntime_op.run(feeds, attributes)


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("gate", np.float16, r"gate must be of x's type \(float32\), got float16"),
        ("gate_bias", np.float16, r"gate_bias must be float32 or of x's type \(float32\), got float16"),
        ("gate", np.float64, "gate is of ONNX element type 11"),
        ("coefficients", np.float16, "coefficients must be float32 or of x's type"),
    ],
)
def test_invalid_types_fail_the_session(onnxruntime_op: Any, name: str, kind: type, message: str) -> None:
    feeds = feeds_of(1, 5, 6)
    feeds[name] = feeds[name].astype(kind)
    with pytest.raises(Exception, match=message):
        onnxruntime_op.session(onnxruntime_op.model(feeds, node("mean", "sigmoid")))


@pytest.mark.parametrize("heads", [1, 6])
def test_an_absent_input_is_a_placeholder_or_empty(onnxruntime_op: Any, heads: int) -> None:
    """A bias of size 1 is none."""
    feeds, attributes = feeds_of(1, 5, 6, heads), node("causal", "identity")
    placeholders = feeds | dict.fromkeys(("mask", "cos", "sin"), PLACEHOLDER)
    plain = onnxruntime_op.run(feeds, attributes)
    assert_matches(plain, feeds, attributes)
    assert np.array_equal(onnxruntime_op.run(placeholders, attributes), plain)


@pytest.mark.parametrize("mode", ["mean", "causal"])
def test_the_outputs_type_and_shape_are_inferred(onnxruntime_op: Any, mode: str) -> None:
    feeds = feeds_of(1, 5, 6, dtype=np.float16)
    (z,) = onnxruntime_op.session(onnxruntime_op.model(feeds, node(mode, "sigmoid"))).get_outputs()
    assert (z.type, z.shape) == ("tensor(float16)", ["x0", "gate1", "x2"])
