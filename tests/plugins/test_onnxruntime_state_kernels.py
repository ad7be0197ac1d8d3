"""One stateful call of the ONNX Runtime op library against float64, for every kernel that this machine can run."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from pom_export import contract
from pom_export.graph.schema import attributes
from tests import op_calls
from tests.op_calls import FLOATS, Call, Case, check, tokens_of
from tests.plugins.conftest import wide
from tests.plugins.cpu_kernels import every_kernel
from tests.plugins.test_onnxruntime_op import (
    FORMS,
    aggregating,
    every_form,
    every_type,
    rows_beyond_the_caches,
    sized,
)
from tests.slow_cases import slow_cases

MASKS = ("none", "ragged", "broadcast")
GATES = ("none", "channel", "head")


def case_of(form: Case, mode: str, shape: tuple[int, int, int], mask: str = "none", gate: str = "none") -> Case:
    """Return a case of shape[2] times `form.unit` channels, whose rows continue from 3, 4, ... tokens."""
    case = sized(form, mode, *shape, past=3)
    if mask != "none":
        case = replace(case, mask="ragged", mask_rows=1 if mask == "broadcast" else None)
    return case if gate == "none" else replace(case, gate="hardsigmoid", gates=shape[2] if gate == "head" else None)


def call_of(case: Case) -> Call:
    """Return its call; the second row continues from no tokens, the third from more than a float32 counts."""
    call = Call(case)
    assert call.past is not None
    length = np.resize(np.array((3, 0, 2**40), np.int64), len(call.x))
    total = length[:, None] * np.random.default_rng(5).uniform(-1, 1, (len(call.x), case.shape[2]))
    rounded = total.astype(np.float32)
    call.past = np.stack([rounded, (total - rounded).astype(np.float32)], axis=1), length
    return call


@every_form
@pytest.mark.parametrize("dtype", slow_cases(FLOATS, lambda name: name == "float16"))
@aggregating
def test_a_call(on_every_kernel: Any, mode: str, dtype: str, form: Case) -> None:
    """No tokens, few, and more than one chunk, with an odd number of channels per part."""
    shapes = ((1, 1, 7), (3, 2, 5), (3, 37, 9), (1, 600, 3), (2, 0, 5), (0, 4, 5))
    for gate, mask, shape in itertools.product(GATES, MASKS, shapes):
        on_every_kernel.check(call_of(replace(case_of(form, mode, shape, mask, gate), dtype=dtype)))


@every_form
@aggregating
@pytest.mark.parametrize("gate", GATES)
def test_calls_that_follow_each_other(on_every_kernel: Any, gate: str, mode: str, form: Case) -> None:
    """Each is right, and together they leave the state of a single call."""
    tokens = 1500
    call = call_of(case_of(form, mode, (3, tokens, 3), "ragged", gate))
    feeds, node = call.feeds(), call.case.attributes()
    op, model = on_every_kernel.op, on_every_kernel.op.model(feeds, node)
    for kernel in on_every_kernel.each():
        session = op.shared_session(model, threads=2)
        whole = op.outputs(session, feeds)
        random, past, begin = np.random.default_rng(8), {}, 0
        while begin < tokens:
            end = min(begin + int(random.choice([0, 1, 2, 37, 512, 513, 700])), tokens)
            part = tokens_of(feeds, begin, end) | past
            outputs = op.outputs(session, part)
            check(outputs, part, node, what=(kernel, begin, end))
            past, begin = dict(zip(contract.STATE_INPUTS, outputs[1:], strict=True)), end
        check([whole[0], *past.values()], feeds, node, what=kernel)


@every_form
@aggregating
@pytest.mark.parametrize("gate", slow_cases(["none", "channel"], lambda name: name == "none"))
def test_many_channels(on_every_kernel: Any, gate: str, mode: str, form: Case) -> None:
    """More channels than one task takes, and several chunks; threads change no bit of the state either."""
    call = call_of(case_of(form, mode, (2, 400, 1300 // form.unit), "ragged", gate))
    for kernel in on_every_kernel.each():
        one, *others = (on_every_kernel.op.outputs_of(call, threads) for threads in (1, 2, 5))
        call.check(one, by=kernel)
        for other in others:
            assert [array.tobytes() for array in other] == [array.tobytes() for array in one], kernel


@pytest.mark.slow
@every_kernel
@every_type
@pytest.mark.parametrize("form", [FORMS["power"], FORMS["rotated"]], ids=["power", "rotated"])
def test_an_output_beyond_the_caches_leaves_the_state_of_a_small_one(
    onnxruntime_op: Any, form: Case, dtype: str
) -> None:
    call = call_of(replace(case_of(form, "causal", (1, 333, 512 // form.unit)), dtype=dtype))
    session = onnxruntime_op.shared_session(onnxruntime_op.model(call.feeds(), call.case.attributes()), threads=2)
    feeds, rows = wide(call.feeds()), rows_beyond_the_caches(call)
    repeated = {name: np.repeat(feeds[name], rows, axis=0) for name in ("x", *contract.STATE_INPUTS)}
    small, large = (session.run(None, each) for each in (feeds, feeds | repeated))
    for one, many in zip(small, large, strict=True):
        assert many.shape == (rows, *one.shape[1:])
        assert (many.view(np.int64) == one.view(np.int64)).all()


@every_kernel
@every_form
@aggregating
def test_a_token_that_does_not_count_leaves_no_trace(onnxruntime_op: Any, mode: str, form: Case) -> None:
    """Whatever its values; and a row without any token that counts gives zeros."""
    call = call_of(replace(case_of(form, mode, (3, 30, 5), "ragged"), epsilon=0.0))
    assert call.past is not None
    assert call.mask is not None
    call.mask[...] = np.arange(30) < np.array([[0], [15], [30]])
    call.past = call.past[0] * np.array([0, 1, 0], np.float32)[:, None, None], np.array([0, 5, 0])
    clean = onnxruntime_op.outputs_of(call)
    call.check(clean)
    assert not any(array[0].any() for array in clean)
    call.x[~call.mask] = np.nan
    assert [array.tobytes() for array in onnxruntime_op.outputs_of(call)] == [array.tobytes() for array in clean]


@every_kernel
@aggregating
def test_what_is_not_a_number_stays_in_its_channel(onnxruntime_op: Any, mode: str) -> None:
    call = call_of(case_of(FORMS["power"], mode, (1, 600, 20)))
    assert call.past is not None
    call.x[0, 100, 3] = np.nan
    call.past[0][0, 0, [7, 9]] = np.nan, np.inf
    y, state, _ = onnxruntime_op.outputs_of(call)
    for row in (y[0, -1], state[0].sum(axis=0)):
        assert list(np.flatnonzero(~np.isfinite(row))) == [3, 7, 9]


@pytest.mark.parametrize("gate", GATES[:2])
@aggregating
def test_an_output_that_nobody_uses_may_be_left_out(onnxruntime_op: Any, mode: str, gate: str) -> None:
    call = call_of(case_of(FORMS["power"], mode, (2, 5, 6), gate=gate))
    feeds = call.feeds()
    model = op_calls.model(feeds, call.case.attributes())
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
def test_the_present_may_be_written_over_the_past(onnxruntime_op: Any, mode: str, form: Case) -> None:
    """By many tasks, some of which read while others write."""
    call = call_of(case_of(form, mode, (3, 300, 2600 // form.unit), "ragged"))
    feeds = call.feeds()
    session = onnxruntime_op.shared_session(onnxruntime_op.model(feeds, call.case.attributes()), threads=2)
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
    model = op_calls.model(call_of(case_of(FORMS["power"], mode, (2, 5, 6))).feeds(), attributes(mode))
    (node,) = model.graph.node
    del node.input[5:], node.output[2:], model.graph.output[2:]
    with pytest.raises(Exception, match="present_state and present_length go with stateful 1"):
        onnxruntime_op.session(model.SerializeToString())


@pytest.mark.parametrize("gate", GATES[:2])
@pytest.mark.parametrize(("mode", "tokens"), [("mean", 1), ("causal", "x1")])
def test_types_and_shapes_are_inferred(onnxruntime_op: Any, mode: str, tokens: int | str, gate: str) -> None:
    case = replace(case_of(FORMS["power"], mode, (2, 5, 6), gate=gate), dtype="float16")
    session = onnxruntime_op.session(onnxruntime_op.model(call_of(case).feeds(), case.attributes()))
    assert [(output.type, output.shape) for output in session.get_outputs()] == [
        ("tensor(float16)", ["x0", tokens if gate == "none" else "gate1", "x2"]),
        ("tensor(float)", []),
        ("tensor(int64)", []),
    ]


@aggregating
def test_inputs_of_unknown_rank_are_judged_by_the_run(onnxruntime_op: Any, mode: str) -> None:
    call = call_of(case_of(FORMS["rotated"], mode, (2, 5, 6), "ragged"))
    feeds = call.feeds()
    model = op_calls.model(feeds, call.case.attributes())
    for value in model.graph.input:
        value.type.tensor_type.ClearField("shape")
    session = onnxruntime_op.session(model.SerializeToString())
    call.check(onnxruntime_op.outputs(session, feeds))
    with pytest.raises(Exception, match=r"past_length must be \(2\) for x's batch and channels, got shape \(1\)"):
        session.run(None, feeds | {"past_length": np.zeros(1, np.int64)})
