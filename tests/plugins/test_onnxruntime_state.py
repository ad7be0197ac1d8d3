"""The stateful op in ONNX Runtime: any split into calls gives one pass, and a million tokens lose no digit."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from pom_export import contract
from pom_export.graph.schema import attributes
from pom_export.parity import tolerances

Array = npt.NDArray[Any]
PLACEHOLDER = np.ones(1, np.float32)
# Past a chunk of the kernel's, which has at most 512 tokens.
SPLITS = [[1], [1] * 7, [0, 3, 0, 1], [600], [511, 2, 600, 1, 513], [1, 1, 1025]]


def features(x: Array, coefficients: Array | None, degree: int) -> Array:
    """Return the features in float64; see `pom_export.contract`."""
    x = x.astype(np.float64)
    if coefficients is None:
        from scipy.special import erf

        factors = np.split(x / 2 * (1 + erf(x / np.sqrt(2))), degree, axis=-1)
        return np.concatenate([np.prod(factors[: j + 1], axis=0) for j in range(degree)], axis=-1)
    h = np.clip(np.where(x > 0, x, contract.LEAKY_SLOPE * x), contract.CLAMP_LOW, contract.CLAMP_HIGH)
    return sum(coefficients.astype(np.float64)[:, j] * h ** (j + 1) for j in range(coefficients.shape[1]))


def rotated(p: Array, cos: Array, sin: Array) -> Array:
    first, second = np.split(p, 2, axis=-1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


class Stream:
    """A node in a session, fed call by call."""

    def __init__(self, op: Any, inputs: dict[str, Array], node: dict[str, Any], threads: int = 1) -> None:
        batch, _, channels = inputs["x"].shape
        self.inputs = inputs
        self.past = {
            "past_state": np.zeros((batch, 2, channels), np.float32),
            "past_length": np.zeros(batch, np.int64),
        }
        self.session = op.session(op.model({**self.part(0, 0), **self.past}, node), threads)

    def part(self, begin: int, end: int) -> dict[str, Array]:
        """Return the inputs of some of the tokens."""
        tokens = {"x": 1, "gate": 1, "mask": 1, "cos": -2, "sin": -2}
        return {
            name: array
            if name not in tokens or array is PLACEHOLDER
            else array.take(range(begin, end), axis=tokens[name])
            for name, array in self.inputs.items()
        }

    def __call__(self, begin: int, end: int) -> Array:
        y, state, length = self.session.run(None, {**self.part(begin, end), **self.past})
        self.past = {"past_state": state, "past_length": length}
        result: Array = y
        return result


def make_case(form: str, dtype: type, batch: int, tokens: int, channels: int) -> tuple[dict[str, Array], Array]:
    """Return the inputs of all tokens and their features in float64."""
    random = np.random.default_rng(tokens)
    x = random.standard_normal((batch, tokens, channels)).astype(dtype)
    coefficients = None if form == "product" else random.standard_normal((channels, 3)).astype(np.float32)
    p = features(x, coefficients, 3)
    inputs = {"x": x, "coefficients": PLACEHOLDER if coefficients is None else coefficients, "mask": PLACEHOLDER}
    inputs |= {"cos": PLACEHOLDER, "sin": PLACEHOLDER}
    if form == "rotated":
        angles = random.random((batch, tokens, channels // 2))
        inputs |= {"cos": np.cos(angles).astype(np.float32), "sin": np.sin(angles).astype(np.float32)}
        p = rotated(p, np.cos(angles), np.sin(angles))
    return inputs, p


def check(actual: Array, expected: Array, dtype: type) -> None:
    tolerance = tolerances.OPS[np.dtype(dtype).name]
    assert actual.shape == expected.shape
    if actual.size:
        error = np.abs(actual.astype(np.float64) - expected).max()
        assert error <= tolerance.absolute + tolerance.relative * np.abs(expected).max()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("form", ["power", "rotated", "product"])
@pytest.mark.parametrize("sizes", SPLITS, ids=str)
def test_any_split_gives_one_pass(onnxruntime_op: Any, sizes: list[int], form: str, gated: bool, dtype: type) -> None:
    tokens, channels = sum(sizes), 54
    inputs, p = make_case(form, dtype, 2, tokens, channels)
    node = attributes("causal", degree=3 if form == "product" else 0, stateful=True)
    expected = p.cumsum(axis=1) / np.arange(1, tokens + 1)[:, None]
    if gated:
        gate = np.random.default_rng(0).standard_normal((2, tokens, 27)).astype(dtype)
        inputs |= {"gate": gate, "gate_bias": np.zeros(27, np.float32)}
        node["gate_activation"] = "identity"
        expected = expected * np.repeat(gate.astype(np.float64), 2, axis=-1)
    stream, ends = Stream(onnxruntime_op, inputs, node, threads=2), np.cumsum(sizes)
    outputs = [stream(int(end) - size, int(end)) for size, end in zip(sizes, ends, strict=True)]
    check(np.concatenate(outputs, axis=1), expected, dtype)
    state = stream.past["past_state"]
    check(state.astype(np.float64).sum(axis=1), p.sum(axis=1), np.float32)
    assert (np.abs(state[:, 1]) <= np.spacing(np.abs(state[:, 0])) / 2).all()
    assert stream.past["past_length"].tolist() == [tokens] * 2


@pytest.mark.parametrize("mask_rows", [1, 3])
@pytest.mark.parametrize("mode", ["mean", "causal"])
def test_tokens_that_do_not_count_are_not_in_the_state(onnxruntime_op: Any, mode: str, mask_rows: int) -> None:
    inputs, p = make_case("power", np.float32, 3, 40, 7)
    lengths = np.array([0, 25, 40])[-mask_rows:]
    mask = np.arange(40) < lengths[:, None]
    inputs["mask"] = mask
    inputs["x"] = np.where(mask[..., None], inputs["x"], np.nan).astype(np.float32)
    weighted = np.where(mask[..., None], p, 0)
    stream = Stream(onnxruntime_op, inputs, attributes(mode, stateful=True))
    for begin, end in ((0, 25), (25, 40)):
        y = stream(begin, end)
        sums, counts = weighted[:, :end].cumsum(axis=1), mask[:, :end].cumsum(axis=1)[..., None]
        expected = sums / np.maximum(counts, 1)
        check(y, expected[:, -1:] if mode == "mean" else expected[:, begin:], np.float32)
    assert stream.past["past_length"].tolist() == list(np.broadcast_to(lengths, 3))


@pytest.mark.parametrize("gated", [False, True])
def test_all_tokens_of_a_call_of_mode_mean_see_it_and_what_came_before(onnxruntime_op: Any, gated: bool) -> None:
    inputs, p = make_case("power", np.float32, 2, 300, 20)
    node = attributes("mean", stateful=True)
    if gated:
        inputs |= {"gate": np.ones((2, 300, 20), np.float32), "gate_bias": np.zeros(20, np.float32)}
        node["gate_activation"] = "identity"
    stream = Stream(onnxruntime_op, inputs, node)
    for begin, end in ((0, 130), (130, 131), (131, 131), (131, 300)):
        y = stream(begin, end)
        expected = p[:, :end].mean(axis=1, keepdims=True)
        check(y, np.repeat(expected, end - begin, axis=1) if gated else expected, np.float32)


@pytest.mark.parametrize("batch", [0, 1, 2])
@pytest.mark.parametrize("mode", ["mean", "causal"])
def test_a_call_of_no_tokens_changes_nothing(onnxruntime_op: Any, mode: str, batch: int) -> None:
    inputs, p = make_case("power", np.float32, batch, 5, 6)
    stream = Stream(onnxruntime_op, inputs, attributes(mode, stateful=True))
    stream(0, 5)
    before = stream.past
    y = stream(5, 5)
    check(y, p.mean(axis=1, keepdims=True) if mode == "mean" else np.zeros((batch, 0, 6)), np.float32)
    for name, value in before.items():
        np.testing.assert_array_equal(stream.past[name], value)


def test_a_million_tokens_lose_no_digit(onnxruntime_op: Any) -> None:
    """Fed one by one and in large calls: the state is float64's, where a plain float32 sum has lost three digits."""
    random, channels, block = np.random.default_rng(0), 8, 10_000
    coefficients = random.random((channels, 2)).astype(np.float32)
    inputs = {"x": random.random((1, block, channels)).astype(np.float32), "coefficients": coefficients}
    inputs |= dict.fromkeys(("mask", "cos", "sin"), PLACEHOLDER)
    stream = Stream(onnxruntime_op, inputs, attributes("causal", stateful=True))
    p = features(inputs["x"], coefficients, 0)[0]
    plain = np.zeros(channels, np.float32)
    for call in range(100):
        sizes = [1] * 100 + [block - 100] if call % 10 == 0 else [block]
        for end, size in zip(np.cumsum(sizes), sizes, strict=True):
            y = stream(int(end) - size, int(end))
        plain = np.cumsum(np.concatenate([plain[None], p.astype(np.float32)]), axis=0, dtype=np.float32)[-1]
    assert stream.past["past_length"].tolist() == [1_000_000]
    expected = 100 * p.sum(axis=0)
    state = stream.past["past_state"].astype(np.float64).sum(axis=1)[0]
    assert np.abs(state / expected - 1).max() < 1e-6
    assert np.abs(y[0, -1] / (expected / 1e6) - 1).max() < 1e-6
    assert np.abs(plain / expected - 1).max() > 1e-5


def test_a_length_beyond_float32s_is_counted(onnxruntime_op: Any) -> None:
    inputs, p = make_case("power", np.float32, 1, 3, 4)
    stream = Stream(onnxruntime_op, inputs, attributes("causal", stateful=True))
    stream.past = {
        "past_state": np.stack([np.full((1, 4), 2.0**40), np.zeros((1, 4))], axis=1).astype(np.float32),
        "past_length": np.array([2**40]),
    }
    y = stream(0, 3)
    check(y, np.ones_like(y), np.float32)
    assert stream.past["past_length"].tolist() == [2**40 + 3]
    gained = stream.past["past_state"].astype(np.float64).sum(axis=1) - 2.0**40
    np.testing.assert_allclose(gained[0], p[0].sum(axis=0), rtol=1e-4, atol=1e-4)


def test_neither_threads_nor_their_order_change_a_bit(onnxruntime_op: Any) -> None:
    inputs, _ = make_case("power", np.float32, 1, 3000, 300)
    results = []
    for threads in (1, 2, 5):
        stream = Stream(onnxruntime_op, inputs, attributes("causal", stateful=True), threads)
        results.append([stream(0, 1500), stream(1500, 3000), *stream.past.values()])
    for other in results[1:]:
        for one, same in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(one, same)


@pytest.mark.parametrize(
    ("changes", "node", "message"),
    [
        ({}, {"stateful": 2}, "stateful must be 0 or 1, got 2"),
        ({}, {"mode": "features"}, 'mode "features" sums nothing and has no state'),
        ({"mask": np.ones((2, 5), np.float32)}, {}, "with stateful 1 mask must be bool, got float32"),
        ({"past_state": np.zeros((2, 2, 6), np.float16)}, {}, "past_state must be float32|output arg .present_state"),
        ({"past_length": np.zeros(2, np.float32)}, {}, "past_length must be int64|output arg .present_length"),
        ({"past_state": np.zeros((2, 2, 5), np.float32)}, {}, r"past_state must be \(2, 2, 6\)"),
        ({"past_length": np.zeros(3, np.int64)}, {}, r"past_length must be \(2\) for x's batch"),
    ],
)
def test_what_breaks_the_contract_is_refused(
    onnxruntime_op: Any, changes: dict[str, Array], node: dict[str, Any], message: str
) -> None:
    inputs, _ = make_case("power", np.float32, 2, 5, 6)
    state = {"past_state": np.zeros((2, 2, 6), np.float32), "past_length": np.zeros(2, np.int64)}
    feeds = {**inputs, **state, **changes}
    model = onnxruntime_op.model(feeds, {**attributes("causal", stateful=True), **node})
    with pytest.raises(Exception, match=message):
        onnxruntime_op.session(model).run(None, feeds)


def test_a_missing_past_is_refused(onnxruntime_op: Any) -> None:
    inputs, _ = make_case("power", np.float32, 2, 5, 6)
    with pytest.raises(Exception, match="past_state is missing, which stateful 1 needs"):
        onnxruntime_op.session(onnxruntime_op.model(inputs, attributes("causal", stateful=True)))
