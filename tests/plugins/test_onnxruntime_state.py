"""The stateful op in ONNX Runtime: any split into calls gives one pass, and a million tokens lose no digit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pom_export.graph.schema import attributes
from tests.op_calls import Array, Arrays, Call, Case, check, tokens_of
from tests.op_reference import exact

# More than one of the kernel's chunks, which hold at most 512 tokens.
SPLITS = [[1], [1] * 7, [0, 3, 0, 1], [600], [511, 2, 600, 1, 513], [1, 1, 1025]]
FORMS = {
    "power": Case("causal"),
    "rotated": Case("causal", rotation="float32"),
    "product": Case("causal", form="product"),
}


class Stream:
    """A node in a session, fed call by call, starting without tokens.

    Attributes:
        call: a call with all tokens.
        feeds: its inputs, which share its memory, and the current past.
    """

    def __init__(self, op: Any, case: Case, threads: int = 1) -> None:
        self.call = Call(replace(case, past=0))
        self.feeds = self.call.feeds()
        self.node = self.call.case.attributes()
        self.session = op.shared_session(op.model(self.feeds, self.node), threads)

    @property
    def past(self) -> Arrays:
        return {name: self.feeds[name] for name in ("past_state", "past_length")}

    def __call__(self, begin: int, end: int) -> Array:
        y, state, length = self.session.run(None, tokens_of(self.feeds, begin, end))
        self.feeds |= {"past_state": state, "past_length": length}
        result: Array = y
        return result

    def check(self, y: Array, end: int) -> None:
        """Compare the outputs of the last tokens before `end`, and the state, with those of a single call."""
        whole = tokens_of(self.call.feeds(), 0, end)
        tokens = 1 if self.node["mode"] == "mean" and "gate" not in whole else end
        before = self.call.exact().y[:, : tokens - y.shape[1]]
        check([np.concatenate([before, y], axis=1).astype(y.dtype), *self.past.values()], whole, self.node)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("sizes", SPLITS, ids=str)
def test_any_split_gives_one_pass(onnxruntime_op: Any, sizes: list[int], form: Case, gated: bool, dtype: str) -> None:
    gate = {"gate": "identity", "gates": 27} if gated else {}
    stream = Stream(onnxruntime_op, replace(form, dtype=dtype, shape=(2, sum(sizes), 54), **gate), threads=2)
    outputs = [stream(int(end) - size, int(end)) for size, end in zip(sizes, np.cumsum(sizes), strict=True)]
    stream.check(np.concatenate(outputs, axis=1), sum(sizes))
    assert stream.past["past_length"].tolist() == [sum(sizes)] * 2


@pytest.mark.parametrize("mask_rows", [1, 3])
@pytest.mark.parametrize("mode", ["mean", "causal"])
def test_tokens_that_do_not_count_are_not_in_the_state(onnxruntime_op: Any, mode: str, mask_rows: int) -> None:
    stream = Stream(onnxruntime_op, Case(mode, shape=(3, 40, 7), mask="bool", mask_rows=mask_rows, epsilon=0.0))
    lengths = np.array([0, 25, 40])[-mask_rows:]
    stream.feeds["mask"][...] = np.arange(40) < lengths[:, None]
    stream.feeds["x"][np.broadcast_to(~stream.feeds["mask"], (3, 40))] = np.nan
    for begin, end in ((0, 25), (25, 40)):
        stream.check(stream(begin, end), end)
    assert stream.past["past_length"].tolist() == list(np.broadcast_to(lengths, 3))


@pytest.mark.parametrize("gated", [False, True])
def test_all_tokens_of_a_call_of_mode_mean_see_it_and_what_came_before(onnxruntime_op: Any, gated: bool) -> None:
    stream = Stream(onnxruntime_op, Case("mean", shape=(2, 300, 20), gate="identity" if gated else "none"))
    if gated:
        assert stream.call.gate is not None
        assert stream.call.gate_bias is not None
        stream.call.gate[...], stream.call.gate_bias[...] = 1, 0
    plain = stream.call.case.attributes() | {"stateful": 0}
    for begin, end in ((0, 130), (130, 131), (131, 131), (131, 300)):
        y = stream(begin, end)
        given = {"x": stream.call.x[:, :end], "coefficients": stream.feeds["coefficients"]}
        assert y.shape == (2, end - begin if gated else 1, 20)
        for token in range(y.shape[1]):
            check([y[:, token : token + 1]], given, plain)


@pytest.mark.parametrize("batch", [0, 1, 2])
@pytest.mark.parametrize("mode", ["mean", "causal"])
def test_a_call_of_no_tokens_changes_nothing(onnxruntime_op: Any, mode: str, batch: int) -> None:
    stream = Stream(onnxruntime_op, Case(mode, shape=(batch, 5, 6)))
    stream(0, 5)
    before = stream.past
    y = stream(5, 5)
    assert y.shape == (batch, 1 if mode == "mean" else 0, 6)
    stream.check(y, 5)
    for name, value in before.items():
        np.testing.assert_array_equal(stream.past[name], value)


def test_a_million_tokens_lose_no_digit(onnxruntime_op: Any) -> None:
    """Fed one by one and in large calls: the state is that of float64, while a float32 sum has lost three digits."""
    random, channels, block = np.random.default_rng(0), 8, 10_000
    stream = Stream(onnxruntime_op, Case("causal", shape=(1, block, channels), degree=2))
    stream.feeds["coefficients"][...] = random.random((channels, 2))
    stream.feeds["x"][...] = random.random((1, block, channels))
    p = exact({**stream.feeds}, {**stream.node, "mode": "features", "stateful": 0}).y[0]
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
    stream = Stream(onnxruntime_op, Case("causal", shape=(1, 3, 4)))
    stream.feeds |= {
        "past_state": np.stack([np.full((1, 4), 2.0**40), np.zeros((1, 4))], axis=1).astype(np.float32),
        "past_length": np.array([2**40]),
    }
    before = dict(stream.feeds)
    y = stream(0, 3)
    np.testing.assert_allclose(y, 1, rtol=2e-6)
    assert stream.past["past_length"].tolist() == [2**40 + 3]
    gained = stream.past["past_state"].astype(np.float64).sum(axis=1) - 2.0**40
    added = exact(before, stream.node).state - 2.0**40
    np.testing.assert_allclose(gained, added, rtol=1e-4, atol=1e-4)


def test_neither_threads_nor_their_order_change_a_bit(onnxruntime_op: Any) -> None:
    results = []
    for threads in (1, 2, 5):
        stream = Stream(onnxruntime_op, Case("causal", shape=(1, 3000, 300)), threads)
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
    onnxruntime_op: Any, changes: Arrays, node: dict[str, Any], message: str
) -> None:
    feeds = Call(Case("causal", shape=(2, 5, 6), past=0)).feeds() | changes
    model = onnxruntime_op.model(feeds, {**attributes("causal", stateful=True), **node})
    with pytest.raises(Exception, match=message):
        onnxruntime_op.session(model).run(None, feeds)


def test_a_missing_past_is_refused(onnxruntime_op: Any) -> None:
    feeds = Call(Case("causal", shape=(2, 5, 6), past=0)).feeds()
    inputs = {name: feeds[name] for name in feeds if not name.startswith("past")}
    with pytest.raises(Exception, match="past_state is missing, which stateful 1 needs"):
        onnxruntime_op.session(onnxruntime_op.model(inputs, attributes("causal", stateful=True)))
