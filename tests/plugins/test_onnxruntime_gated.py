"""The gated op of the ONNX Runtime library against float64, for every kernel that this machine can run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pom_export import contract
from tests.op_calls import FLOATS, Arrays, Call, Case, check
from tests.op_reference import exact
from tests.plugins.cpu_kernels import every_kernel

PLACEHOLDER = np.full(1, np.nan, np.float32)

every_activation = pytest.mark.parametrize("activation", contract.GATE_ACTIVATIONS)
every_mode = pytest.mark.parametrize("mode", ["mean", "causal"])
every_type = pytest.mark.parametrize("dtype", FLOATS)


@every_activation
@every_mode
@every_type
def test_activations_and_heads(on_every_kernel: Any, activation: str, mode: str, dtype: str) -> None:
    for channels, heads in ((40, 40), (40, 8), (40, 1), (39, 13), (1100, 1100), (1100, 20), (7, 7)):
        on_every_kernel.check(Call(Case(mode, dtype, (2, 75, channels), gate=activation, gates=heads)))


@every_mode
@pytest.mark.parametrize(("form", "channels"), [("rotated", 52), ("rotated_in_two", 52), ("product", 51)])
@pytest.mark.parametrize("by_head", [False, True])
def test_forms(on_every_kernel: Any, mode: str, form: str, channels: int, by_head: bool) -> None:
    """A head's channels may lie in more than one part of a column."""
    case = Case(mode, shape=(2, 75, channels), mask="bool", gate="hardsigmoid")
    if form == "product":
        case = replace(case, form=form, gates=3 if by_head else None)
    else:
        blocks = 2 if form == "rotated_in_two" else 1
        case = replace(case, rotation="float32", rotation_rows=1, rotary_blocks=blocks, gates=4 if by_head else None)
    on_every_kernel.check(Call(case))


@pytest.mark.parametrize(("tokens", "outputs"), [(33, 200), (200, 33), (5, 1)])
@every_type
def test_a_mean_serves_any_number_of_tokens(on_every_kernel: Any, tokens: int, outputs: int, dtype: str) -> None:
    on_every_kernel.check(Call(Case("mean", dtype, (2, tokens, 24), gate="sigmoid", gate_tokens=outputs)))


@every_kernel
@every_mode
def test_empty_calls(onnxruntime_op: Any, mode: str) -> None:
    for batch, tokens in ((0, 5), (2, 0), (0, 0)):
        call = Call(Case(mode, shape=(batch, tokens, 6), gate="hardsigmoid"))
        assert onnxruntime_op.outputs_of(call)[0].shape == (batch, tokens, 6)


@every_kernel
@every_activation
def test_every_size_of_gate(onnxruntime_op: Any, activation: str) -> None:
    """If the mean is 1, the output is the activation alone: exact to float32's precision, NaN and infinity included."""
    gate = np.concatenate([np.linspace(-120, 120, 99_996), [-3e38, 3e38, -np.inf, np.nan]]).astype(np.float32)
    feeds = {
        "x": np.ones((1, 1, 4), np.float32),
        "gate": gate.reshape(1, -1, 4),
        "gate_bias": np.zeros(4, np.float32),
        "coefficients": np.ones((4, 1), np.float32),
    }
    attributes = node("mean", activation)
    z = onnxruntime_op.run(feeds, attributes)
    expected = exact(feeds, attributes).y
    assert np.array_equal(np.isnan(z), np.isnan(expected))
    finite = np.isfinite(expected)
    assert np.array_equal(z[~finite], expected[~finite].astype(np.float32), equal_nan=True)
    # Half a unit in the last place of float32 is 6e-8. A hardsigmoid's line cancels near its foot; a sigmoid ends at
    # exp(-87).
    relative, absolute = {"identity": (0, 0), "sigmoid": (3e-7, 2e-38), "hardsigmoid": (1.2e-7, 6e-8)}[activation]
    error = abs(z[finite] - expected[finite])
    assert np.all(error <= relative * abs(expected[finite]) + absolute)


@every_kernel
@every_mode
def test_rows_without_weight_give_zero(onnxruntime_op: Any, mode: str) -> None:
    call = Call(Case(mode, shape=(1, 20, 12), mask="bool", gate="sigmoid"))
    assert call.mask is not None
    call.mask[...], call.x[...] = False, np.nan
    assert not onnxruntime_op.outputs_of(call)[0].any()


@every_kernel
@pytest.mark.parametrize("names", [["coefficients"], ["gate_bias"], ["coefficients", "gate_bias", "gate"]])
@every_type
def test_constants_change_no_bit(onnxruntime_op: Any, names: list[str], dtype: str) -> None:
    case = Case("causal", dtype, (2, 30, 24), coefficients=dtype, gate="hardsigmoid", gates=8, bias=dtype)
    feeds, attributes = Call(case).feeds(), case.attributes()
    fed = onnxruntime_op.run(feeds, attributes)
    assert onnxruntime_op.run(feeds, attributes, constants=names).tobytes() == fed.tobytes()


@every_kernel
@every_mode
@pytest.mark.parametrize("heads", [600, 30])
def test_threads_change_no_bit(onnxruntime_op: Any, mode: str, heads: int) -> None:
    call = Call(Case(mode, shape=(1, 700, 600), gate="sigmoid", gates=heads))
    one, two = (onnxruntime_op.outputs_of(call, threads)[0] for threads in (1, 2))
    assert one.tobytes() == two.tobytes()


def node(mode: str, activation: str) -> dict[str, Any]:
    return Case(mode, gate=activation).attributes()


def feeds_of(heads: int = 6, dtype: str = "float32") -> Arrays:
    return Call(Case("mean", dtype, (1, 5, 6), gate="identity", gates=heads)).feeds()


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
    feeds = feeds_of() | {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
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
    feeds = feeds_of()
    feeds[name] = feeds[name].astype(kind)
    with pytest.raises(Exception, match=message):
        onnxruntime_op.session(onnxruntime_op.model(feeds, node("mean", "sigmoid")))


@pytest.mark.parametrize("heads", [1, 6])
def test_an_absent_input_is_a_placeholder_or_empty(onnxruntime_op: Any, heads: int) -> None:
    """A bias of size 1 is not a placeholder."""
    feeds, attributes = feeds_of(heads), node("causal", "identity")
    placeholders = feeds | dict.fromkeys(("mask", "cos", "sin"), PLACEHOLDER)
    plain = onnxruntime_op.run(feeds, attributes)
    check([plain], feeds, attributes)
    assert np.array_equal(onnxruntime_op.run(placeholders, attributes), plain)


@pytest.mark.parametrize("mode", ["mean", "causal"])
def test_the_outputs_type_and_shape_are_inferred(onnxruntime_op: Any, mode: str) -> None:
    feeds = feeds_of(dtype="float16")
    (z,) = onnxruntime_op.session(onnxruntime_op.model(feeds, node(mode, "sigmoid"))).get_outputs()
    assert (z.type, z.shape) == ("tensor(float16)", ["x0", "gate1", "x2"])
