"""One stateful call of the ONNX Runtime op library against float64, for every kernel that this machine can run."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from pom_export import contract
from pom_export.graph.schema import attributes
from pom_export.parity.tolerances import OPS
from tests.plugins.test_onnxruntime_op import (
    FORMS,
    Arrays,
    Form,
    aggregating,
    every_form,
    every_kernel,
    every_type,
    exact,
    magnitudes,
)

MASKS = ("none", "ragged", "broadcast")
GATES = ("none", "channel", "head")


def past_of(batch: int, channels: int, lengths: tuple[int, ...] = (3, 0, 2**40)) -> Arrays:
    """Return sums of about 1 a token, as two floats each; the first rows have these lengths."""
    length = np.resize(np.array(lengths, np.int64), batch)
    total = length[:, None] * np.random.default_rng(5).uniform(-1, 1, (batch, channels))
    rounded = total.astype(np.float32)
    state = np.stack([rounded, (total - rounded).astype(np.float32)], axis=1)
    return {"past_state": state, "past_length": length}


def feeds_of(
    form: Form, mask: str, shape: tuple[int, int, int], dtype: Any = np.float32, gate: str = "none"
) -> tuple[Arrays, dict[str, Any]]:
    """Return a call's inputs of `width` times `form.unit` channels, and what its node's attributes have of a gate."""
    batch, tokens, width = shape
    lengths = np.linspace(0, tokens, batch).astype(int)[-1 if mask == "broadcast" else None :]
    kept = np.arange(tokens) < lengths[:, None]
    feeds = form.feeds(batch, tokens, width, dtype, None if mask == "none" else kept)
    feeds |= {name: np.ones(1, np.float32) for name in contract.INPUTS[:5] if name not in feeds}
    channels = feeds["x"].shape[2]
    feeds |= past_of(batch, channels)
    if gate == "none":
        return feeds, {}
    gates = channels if gate == "channel" else width
    random = np.random.default_rng(6)
    feeds |= {
        "gate": random.standard_normal((batch, tokens, gates)).astype(dtype),
        "gate_bias": random.standard_normal(gates).astype(np.float32),
    }
    return feeds, {"gate_activation": "hardsigmoid"}


def node_of(form: Form, mode: str) -> dict[str, Any]:
    return form.attributes(mode, epsilon=0.5) | {"stateful": 1}


def totals_of(p: np.ndarray, feeds: Arrays) -> np.ndarray:
    """Return the running sums of features of this call, over the tokens that count."""
    kept = feeds["mask"][..., None] if feeds["mask"].ndim > 1 else True
    return np.where(kept, p, 0).cumsum(axis=1)


def assert_matches(outputs: list[np.ndarray], feeds: Arrays, node: dict[str, Any]) -> None:
    """Compare all three outputs with float64, to what rounding costs of all terms made positive."""
    y, state, length = outputs
    plain = {name: array for name, array in feeds.items() if name in contract.INPUTS[:5] and name != "mask"}
    sums = totals_of(exact(plain, node | {"mode": "features"}), feeds)
    sizes = totals_of(magnitudes(plain, node), feeds)
    counts = totals_of(np.ones((len(y), feeds["x"].shape[1], 1)), feeds)
    past = feeds["past_state"].astype(np.float64).sum(axis=1, keepdims=True)
    before = feeds["past_length"][:, None, None]
    sums, sizes, counts = (
        np.concatenate([start, start + array], axis=1)
        for start, array in ((past, sums), (abs(past), sizes), (before, counts))
    )

    assert np.array_equal(length, counts[:, -1, 0])
    total = state.astype(np.float64).sum(axis=1)
    assert np.all(
        abs(total - sums[:, -1]) <= OPS["float32"].relative * (sizes - sizes[:, :1])[:, -1] + 1e-13 * sizes[:, -1]
    )
    assert np.all(abs(state[:, 1]) <= np.spacing(abs(state[:, 0])) / 2)

    rows = slice(-1, None) if node["mode"] == "mean" else slice(1, None)
    weights = counts[:, rows] + (node["epsilon"] if feeds["mask"].ndim > 1 else 0)
    scale = np.divide(1, weights, out=np.zeros_like(weights), where=counts[:, rows] > 0)
    value, magnitude = sums[:, rows] * scale, sizes[:, rows] * scale
    if "gate" in feeds:
        gate = np.clip((feeds["gate"].astype(np.float64) + feeds["gate_bias"]) / 6 + 0.5, 0, 1)
        gate = gate.repeat(sums.shape[-1] // gate.shape[-1], axis=-1)
        # Near the foot of a hardsigmoid its terms cancel.
        value, magnitude = value * gate, magnitude * np.maximum(gate, 0.1)
    assert y.shape == value.shape
    bound = OPS[str(y.dtype)]
    assert np.all(abs(y.astype(np.float64) - value) <= bound.relative * magnitude + bound.absolute)


@every_kernel
@every_form
@every_type
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("gate", GATES)
@aggregating
def test_a_call(onnxruntime_op: Any, mode: str, gate: str, mask: str, dtype: type, form: Form) -> None:
    """No tokens and few and more than a chunk of them, over an odd number of channels a part."""
    session = None
    for shape in ((1, 1, 7), (3, 2, 5), (3, 37, 9), (1, 600, 3), (2, 0, 5), (0, 4, 5)):
        feeds, gated = feeds_of(form, mask, shape, dtype, gate)
        node = node_of(form, mode) | gated
        session = session or onnxruntime_op.session(onnxruntime_op.model(feeds, node))
        assert_matches(onnxruntime_op.outputs(session, feeds), feeds, node)


def part_of(feeds: Arrays, begin: int, end: int) -> Arrays:
    axes = {"x": 1, "gate": 1, "mask": 1, "cos": -2, "sin": -2}
    return {
        name: array.take(range(begin, end), axis=axes[name]) if name in axes and array.ndim > 1 else array
        for name, array in feeds.items()
    }


@every_kernel
@every_form
@aggregating
@pytest.mark.parametrize("gate", GATES)
def test_calls_that_follow_each_other(onnxruntime_op: Any, gate: str, mode: str, form: Form) -> None:
    """Each is right, and all together leave the state of one call."""
    tokens = 1500
    feeds, gated = feeds_of(form, "ragged", (3, tokens, 3), gate=gate)
    node = node_of(form, mode) | gated
    session = onnxruntime_op.session(onnxruntime_op.model(feeds, node), threads=2)
    whole = onnxruntime_op.outputs(session, feeds)
    random, past, begin = np.random.default_rng(8), {}, 0
    while begin < tokens:
        end = min(begin + int(random.choice([0, 1, 2, 37, 512, 513, 700])), tokens)
        part = part_of(feeds, begin, end) | past
        outputs = onnxruntime_op.outputs(session, part)
        assert_matches(outputs, part, node)
        past, begin = dict(zip(contract.STATE_INPUTS, outputs[1:], strict=True)), end
    assert_matches([whole[0], *past.values()], feeds, node)


@every_kernel
@every_form
@aggregating
@pytest.mark.parametrize("gate", ["none", "channel"])
def test_many_channels(onnxruntime_op: Any, gate: str, mode: str, form: Form) -> None:
    """More than one task takes, and more chunks than one; threads change no bit of the state either."""
    feeds, gated = feeds_of(form, "ragged", (2, 700, 1300 // form.unit), gate=gate)
    model = onnxruntime_op.model(feeds, node_of(form, mode) | gated)
    one, *others = (onnxruntime_op.outputs(onnxruntime_op.session(model, threads), feeds) for threads in (1, 2, 5))
    assert_matches(one, feeds, node_of(form, mode) | gated)
    for other in others:
        assert [array.tobytes() for array in other] == [array.tobytes() for array in one]


@every_kernel
@every_type
@pytest.mark.parametrize("form", [FORMS["power"], FORMS["rotated"]], ids=["power", "rotated"])
def test_an_output_beyond_the_caches_leaves_the_state_of_a_small_one(
    onnxruntime_op: Any, form: Form, dtype: type
) -> None:
    feeds, _ = feeds_of(form, "none", (1, 333, 512 // form.unit), dtype)
    session = onnxruntime_op.session(onnxruntime_op.model(feeds, node_of(form, "causal")), threads=2)
    batch = 2**25 // feeds["x"].nbytes + 1
    repeated = {name: np.repeat(feeds[name], batch, axis=0) for name in ("x", *contract.STATE_INPUTS)}
    small, large = (onnxruntime_op.outputs(session, each) for each in (feeds, feeds | repeated))
    assert large[0].nbytes >= 2**25
    for one, many in zip(small, large, strict=True):
        assert {row.tobytes() for row in many} == {one[0].tobytes()}


@every_kernel
@every_form
@aggregating
def test_a_token_that_does_not_count_leaves_no_trace(onnxruntime_op: Any, mode: str, form: Form) -> None:
    """Whatever it holds; and a row that never had one that counts gives zeros."""
    feeds, _ = feeds_of(form, "ragged", (3, 30, 5))
    feeds |= past_of(3, feeds["x"].shape[2], (0, 5, 0))
    node = node_of(form, mode) | {"epsilon": 0.0}
    session = onnxruntime_op.session(onnxruntime_op.model(feeds, node))
    clean = onnxruntime_op.outputs(session, feeds)
    assert_matches(clean, feeds, node)
    assert not any(array[0].any() for array in clean)
    feeds["x"][~feeds["mask"]] = np.nan
    assert [array.tobytes() for array in onnxruntime_op.outputs(session, feeds)] == [array.tobytes() for array in clean]


@every_kernel
@aggregating
def test_what_is_not_a_number_stays_in_its_channel(onnxruntime_op: Any, mode: str) -> None:
    feeds, _ = feeds_of(FORMS["power"], "none", (1, 600, 20))
    feeds["x"][0, 100, 3] = np.nan
    feeds["past_state"][0, 0, 7] = np.nan
    feeds["past_state"][0, 0, 9] = np.inf
    session = onnxruntime_op.session(onnxruntime_op.model(feeds, node_of(FORMS["power"], mode)))
    y, state, _ = onnxruntime_op.outputs(session, feeds)
    for row in (y[0, -1], state[0].sum(axis=0)):
        assert list(np.flatnonzero(~np.isfinite(row))) == [3, 7, 9]


@pytest.mark.parametrize("gate", GATES[:2])
@aggregating
def test_an_output_that_nobody_uses_may_be_left_out(onnxruntime_op: Any, mode: str, gate: str) -> None:
    feeds, gated = feeds_of(FORMS["power"], "none", (2, 5, 6), gate=gate)
    model = onnx.load_from_string(onnxruntime_op.model(feeds, node_of(FORMS["power"], mode) | gated))
    everything = dict(
        zip(contract.OUTPUTS, onnxruntime_op.session(model.SerializeToString()).run(None, feeds), strict=True)
    )
    values = {value.name: value for value in model.graph.output}
    for names in (["y"], ["y", "present_state"], ["y", "", "present_length"]):
        (node,) = model.graph.node
        del node.output[:], model.graph.output[:]
        node.output.extend(names)
        model.graph.output.extend(values[name] for name in names if name)
        made = onnxruntime_op.session(model.SerializeToString()).run(None, feeds)
        for name, array in zip(filter(None, names), made, strict=True):
            assert np.array_equal(array, everything[name])


@every_kernel
@pytest.mark.parametrize("form", [FORMS["power"], FORMS["rotated_in_two"]], ids=["power", "rotated_in_two"])
@aggregating
def test_the_present_may_be_written_over_the_past(onnxruntime_op: Any, mode: str, form: Form) -> None:
    """By many tasks, some of which read while others write."""
    feeds, _ = feeds_of(form, "ragged", (3, 300, 2600 // form.unit))
    session = onnxruntime_op.session(onnxruntime_op.model(feeds, node_of(form, mode)), threads=2)
    y, *present = onnxruntime_op.outputs(session, feeds)
    binding = session.io_binding()
    values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in feeds.items()}
    for name, value in values.items():
        binding.bind_ortvalue_input(name, value)
    binding.bind_output("y")
    for name, past in zip(contract.STATE_OUTPUTS, contract.STATE_INPUTS, strict=True):
        binding.bind_ortvalue_output(name, values[past])
    session.run_with_iobinding(binding)
    made = [binding.get_outputs()[0], *(values[name] for name in contract.STATE_INPUTS)]
    for value, array in zip(made, (y, *present), strict=True):
        assert np.array_equal(value.numpy(), array)


@aggregating
def test_a_present_without_a_state_is_refused(onnxruntime_op: Any, mode: str) -> None:
    feeds, _ = feeds_of(FORMS["power"], "none", (2, 5, 6))
    model = onnx.load_from_string(onnxruntime_op.model(feeds, attributes(mode)))
    (node,) = model.graph.node
    del node.input[5:], node.output[2:], model.graph.output[2:]
    with pytest.raises(Exception, match="present_state and present_length go with stateful 1"):
        onnxruntime_op.session(model.SerializeToString())


@pytest.mark.parametrize("gate", GATES[:2])
@pytest.mark.parametrize(("mode", "tokens"), [("mean", 1), ("causal", "x1")])
def test_types_and_shapes_are_inferred(onnxruntime_op: Any, mode: str, tokens: int | str, gate: str) -> None:
    feeds, gated = feeds_of(FORMS["power"], "none", (2, 5, 6), np.float16, gate)
    session = onnxruntime_op.session(onnxruntime_op.model(feeds, node_of(FORMS["power"], mode) | gated))
    assert [(output.type, output.shape) for output in session.get_outputs()] == [
        ("tensor(float16)", ["x0", "gate1" if gated else tokens, "x2"]),
        ("tensor(float)", []),
        ("tensor(int64)", []),
    ]


@aggregating
def test_inputs_of_unknown_rank_are_judged_by_the_run(onnxruntime_op: Any, mode: str) -> None:
    feeds, _ = feeds_of(FORMS["rotated"], "ragged", (2, 5, 6))
    model = onnx.load_from_string(onnxruntime_op.model(feeds, node_of(FORMS["rotated"], mode)))
    for value in model.graph.input:
        value.type.tensor_type.ClearField("shape")
    session = onnxruntime_op.session(model.SerializeToString())
    assert_matches(onnxruntime_op.outputs(session, feeds), feeds, node_of(FORMS["rotated"], mode))
    with pytest.raises(Exception, match=r"past_length must be \(2\) for x's batch and channels, got shape \(1\)"):
        session.run(None, feeds | {"past_length": np.zeros(1, np.int64)})
