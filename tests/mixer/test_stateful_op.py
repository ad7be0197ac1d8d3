"""The stateful torch op: correctly registered, equal to one pass over all tokens, and exact however long it runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pom_export.mixer import reference
from pom_export.mixer.stateful_op import stateful_polynomial_aggregation

FORMS = {"power": 0, "product": 2}
CHANNELS = 8


def make_inputs(form: str, batch: int, tokens: int, dtype: torch.dtype, rotated: bool = False) -> dict[str, Any]:
    """Return the op's arguments that have a token axis, and those that don't."""
    generator = torch.Generator().manual_seed(tokens)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    angles = torch.arange(tokens, dtype=torch.float64)[:, None] * torch.rand(CHANNELS // 2, generator=generator)
    return {
        "x": normal(batch, tokens, CHANNELS),
        "coefficients": normal(CHANNELS, 3) if form == "power" else None,
        "degree": FORMS[form],
        "cos": angles.cos().to(dtype) if rotated else None,
        "sin": angles.sin().to(dtype) if rotated else None,
    }


def run(inputs: dict[str, Any], state: Tensor, length: Tensor, mode: str, **others: Any) -> tuple[Tensor, ...]:
    names = ("coefficients", "degree", "cos", "sin")
    return stateful_polynomial_aggregation(
        inputs["x"],
        mask=others.pop("mask", None),
        past_state=state,
        past_length=length,
        mode=mode,
        **{name: inputs[name] for name in names},
        **others,
    )


def part(inputs: dict[str, Any], begin: int, end: int) -> dict[str, Any]:
    """Return the arguments for a range of tokens."""
    tables = {name: None if inputs[name] is None else inputs[name][begin:end] for name in ("cos", "sin")}
    return {**inputs, **tables, "x": inputs["x"][:, begin:end]}


def empty(batch: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return torch.zeros(batch, 2, CHANNELS, dtype=dtype), torch.zeros(batch, dtype=torch.int64)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("mode", ["mean", "causal"])
@pytest.mark.parametrize(("form", "rotated"), [("power", False), ("power", True), ("product", False)])
def test_is_registered_soundly(form: str, rotated: bool, mode: str, masked: bool) -> None:
    inputs = make_inputs(form, 2, 5, torch.float32, rotated)
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]]) if masked else None
    state, length = torch.randn(2, 2, CHANNELS), torch.tensor([3, 4])
    arguments = (inputs["x"], inputs["coefficients"], mask, state, length, mode, 1e-7, inputs["degree"])
    # There is no gradient to check: it is for inference.
    utilities = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(
        stateful_polynomial_aggregation, (*arguments, inputs["cos"], inputs["sin"]), test_utils=utilities
    )


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=6),
    form=st.sampled_from(["power", "rotated", "product"]),
    batch=st.integers(1, 3),
)
def test_any_split_gives_one_causal_pass(sizes: list[int], form: str, batch: int) -> None:
    rotated = form == "rotated"
    inputs = make_inputs("power" if rotated else form, batch, sum(sizes), torch.float32, rotated)
    wide = {name: value.double() if isinstance(value, Tensor) else value for name, value in inputs.items()}
    expected = reference.polynomial_aggregation(
        wide["x"], wide["coefficients"], None, "causal", degree=wide["degree"], cos=wide["cos"], sin=wide["sin"]
    )
    (state, length), outputs, begin = empty(batch), [], 0
    for size in sizes:
        y, state, length = run(part(inputs, begin, begin + size), state, length, "causal")
        outputs.append(y)
        begin += size
    assert length.tolist() == [sum(sizes)] * batch
    y = torch.cat(outputs, dim=1)
    assert y.shape == expected.shape
    if y.numel():
        assert (y - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_rows_of_a_ragged_call_go_on_each_by_itself() -> None:
    inputs = make_inputs("power", 3, 9, torch.float64)
    lengths = torch.tensor([9, 4, 0])
    mask = torch.arange(9) < lengths[:, None]
    holes = inputs["x"].masked_fill(~mask[..., None], torch.nan)
    _, state, length = run({**inputs, "x": holes}, *empty(3, torch.float64), "causal", mask=mask)
    assert torch.equal(length, lengths)
    following = make_inputs("power", 3, 2, torch.float64)["x"]
    y, _, _ = run({**inputs, "x": following}, state, length, "causal")
    for row, tokens in enumerate(lengths):
        whole = torch.cat([inputs["x"][row : row + 1, :tokens], following[row : row + 1]], dim=1)
        expected = reference.polynomial_aggregation(whole, inputs["coefficients"], None, "causal")[0, -2:]
        torch.testing.assert_close(y[row], expected, rtol=1e-12, atol=1e-12)


def test_a_call_of_mode_mean_sees_all_of_itself_and_what_came_before() -> None:
    inputs = make_inputs("power", 2, 12, torch.float64)
    state, length = empty(2, torch.float64)
    for end in (5, 6, 12):
        begin = int(length[0])
        y, state, length = run(part(inputs, begin, end), state, length, "mean")
        expected = reference.polynomial_aggregation(inputs["x"][:, :end], inputs["coefficients"], None, "mean")
        torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)


def test_nothing_seen_gives_zero() -> None:
    inputs = make_inputs("power", 1, 2, torch.float32)
    y, state, length = run(inputs, *empty(1), "causal", mask=torch.zeros(1, 2, dtype=torch.bool))
    assert not y.any()
    assert not state.any()
    assert length.item() == 0


def test_sums_keep_twice_float32s_digits() -> None:
    """A long past and one small token: a plain float32 sum would not change at all."""
    inputs = make_inputs("power", 1, 1, torch.float32)
    big = torch.full((1, CHANNELS), 1e9)
    state = torch.stack([big, torch.zeros_like(big)], dim=1)
    length = torch.tensor([2**40])
    features = reference.features(inputs["x"], inputs["coefficients"], 0)
    for _ in range(1000):
        _, state, length = run(inputs, state, length, "causal")
    gained = state.double().sum(1) - 1e9
    torch.testing.assert_close(gained, 1000 * features.double()[:, 0], rtol=1e-5, atol=1e-4)
    assert (state[:, 1].abs() <= 32).all()  # half a step of float32 at 1e9
    assert length.item() == 2**40 + 1000
    assert torch.equal(big + features[:, 0], big)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "features"}, "has no state"),
        ({"mask": torch.ones(2, 5)}, "the mask must be bool, got torch.float32"),
        ({"past_state": torch.zeros(2, 3, CHANNELS)}, r"past_state must be \(batch, 2, 8\), got shape \(2, 3, 8\)"),
        ({"past_state": torch.zeros(3, 2, CHANNELS)}, "past_state has 3 rows, x has 2"),
        ({"past_length": torch.zeros(2)}, r"past_length must be \(batch\) int64, got torch.float32 \(2,\)"),
        ({"past_length": torch.zeros(1, dtype=torch.int64)}, "past_length has 1 rows, x has 2"),
    ],
)
def test_what_breaks_the_contract_is_refused(changes: dict[str, Any], message: str) -> None:
    inputs = make_inputs("power", 2, 5, torch.float32)
    state, length = empty(2)
    given = {"mode": "causal", "mask": None, "past_state": state, "past_length": length, **changes}
    with pytest.raises((ValueError, RuntimeError), match=message):
        stateful_polynomial_aggregation(inputs["x"], inputs["coefficients"], **given)
