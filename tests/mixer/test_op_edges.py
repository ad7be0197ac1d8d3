"""The torch ops at the limits of their number types: right, NaN, or refused with the value that was given."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from pom_export.mixer.op import polynomial_aggregation
from pom_export.mixer.stateful_op import stateful_polynomial_aggregation
from tests.plugins.weights import EPSILONS, NOT_A_NUMBER, RIGHT, check_not_a_number, check_right, feeds

MODES = ("mean", "causal")
LONGEST = 2**63 - 1


def run(given: dict[str, Any], mode: str, epsilon: float = 0.0) -> Any:
    x, coefficients, mask = (torch.from_numpy(array) for array in given.values())
    return polynomial_aggregation(x, coefficients, mask, mode, epsilon).numpy()


@pytest.mark.parametrize("mode", MODES)
def test_means_of_weights_at_the_ends_of_float32(mode: str) -> None:
    for row, epsilon in itertools.product(RIGHT.values(), EPSILONS):
        given = feeds(row)
        check_right(run(given, mode, epsilon), given, mode, epsilon)
    for row, first in NOT_A_NUMBER.values():
        check_not_a_number(run(feeds(row), mode), first, mode)


@pytest.mark.parametrize("mode", MODES)
def test_the_gradient_of_subnormal_weights_is_that_of_ones(mode: str) -> None:
    gradients = []
    for weight in (1e-40, 1.0):
        x = torch.linspace(-1, 1, 24).reshape(1, 6, 4).requires_grad_()
        polynomial_aggregation(x, torch.ones(4, 2), torch.full((1, 6), weight), mode).sum().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(*gradients)


def stream(lengths: list[int], mode: str = "causal", mask: Any = None, state: float = 2.0) -> tuple[Any, ...]:
    past = torch.zeros(len(lengths), 2, 4)
    past[:, 0] = state
    x, length = torch.ones(len(lengths), 5, 4), torch.tensor(lengths)
    return stateful_polynomial_aggregation(x, torch.ones(4, 2), mask, past, length, mode)


@pytest.mark.parametrize("mask", [None, torch.tensor([[True, False, True, True, True]])])
@pytest.mark.parametrize("mode", MODES)
def test_every_length_is_counted_exactly(mode: str, mask: Any) -> None:
    lengths, added = [0, 2**53 + 1, 2**62, LONGEST - 5], 5 if mask is None else 4
    y, _, present = stream(lengths, mode, mask)
    assert present.tolist() == [length + added for length in lengths]
    expected = torch.tensor([(2 + 2 * added) / (length + added) for length in lengths])
    torch.testing.assert_close(y[:, -1, 0], expected)


@pytest.mark.parametrize("length", [LONGEST - 4, LONGEST, -1, -(2**63)])
def test_a_length_that_cannot_be_counted_is_refused(length: int) -> None:
    message = f"past_length must be 0 to {LONGEST - 5} where 5 tokens are added, got {length}$"
    with pytest.raises(ValueError, match=message):
        stream([3, length])


def test_what_counts_nothing_is_zero_whatever_a_state_holds() -> None:
    """Like the kernels; and a NaN that does count is visible."""
    nothing = torch.zeros(1, 5, dtype=torch.bool)
    assert not stream([0], mask=nothing, state=torch.nan)[0].any()
    assert stream([1], mask=nothing, state=torch.nan)[0].isnan().all()


@pytest.mark.parametrize(
    ("change", "seen"),
    [
        ({"epsilon": -1e-10}, "epsilon must be finite and not negative, got -1e-10"),
        ({"epsilon": float("nan")}, "got nan"),
        ({"epsilon": float("inf")}, "got inf"),
        ({"epsilon": 1e39}, r"got 1e\+39"),
        ({"rotary_blocks": 3}, "rotary_blocks must be 1 or 2, got 3"),
        ({"degree": 2**40}, "must be 0 in form"),
        ({"x": torch.zeros(2, 5, 3, dtype=torch.int64)}, "x must be floating, got torch.int64"),
        ({"x": torch.zeros(2, 5, 3, dtype=torch.complex64)}, "x must be floating, got torch.complex64"),
        ({"coefficients": torch.ones(3, 2, dtype=torch.int32)}, "coefficients must be floating"),
        ({"x": torch.zeros(2**31, 0, 3)}, "means would be 6442450944 zeros, more than 134217728"),
        ({"x": torch.zeros(2, 5, 0), "coefficients": torch.zeros(0, 2)}, "at least one channel"),
        ({"mask": torch.ones(3, 5)}, "mask must have 1 or 2 rows, got 3"),
        ({"mask": torch.ones(2, 5, dtype=torch.int64)}, "mask must be bool or floating, got torch.int64"),
        ({"x": torch.zeros(1, 5, 3), "mask": torch.ones(2, 5)}, "mask must have 1 or 1 rows, got 2"),
        ({"x": torch.zeros(1, 1, 1), "coefficients": torch.zeros(1, 20_000_000)}, "1 to 16 columns, got 20000000"),
        (
            {"x": torch.zeros(2, 5, 4), "coefficients": torch.ones(4, 2), "cos": torch.ones(3, 5, 2)}
            | {"sin": torch.ones(3, 5, 2)},
            "cos must have 1 or 2 rows, got 3",
        ),
    ],
    ids=str,
)
def test_refuses_what_breaks_the_contract(change: dict[str, Any], seen: str) -> None:
    arguments = {"x": torch.zeros(2, 5, 3), "coefficients": torch.ones(3, 2), "mask": None, "mode": "mean"} | change
    with pytest.raises(ValueError, match=seen):
        polynomial_aggregation(**arguments)


@pytest.mark.parametrize("change", [{"mode": ["mean"]}, {"epsilon": [1.0]}, {"degree": [2]}, {"degree": 2.5}], ids=str)
def test_refuses_an_argument_of_another_type(change: dict[str, Any]) -> None:
    arguments = {"x": torch.zeros(2, 5, 3), "coefficients": torch.ones(3, 2), "mask": None, "mode": "mean"} | change
    with pytest.raises((RuntimeError, TypeError, ValueError)):
        polynomial_aggregation(**arguments)


def test_a_state_has_the_type_that_sums_have() -> None:
    with pytest.raises(ValueError, match=r"past_state must be torch.float32, got torch.float64"):
        stateful_polynomial_aggregation(
            torch.zeros(1, 5, 4), torch.ones(4, 2), None, torch.zeros(1, 2, 4).double(), torch.tensor([0]), "mean"
        )


@pytest.mark.parametrize(
    ("shape", "degree", "mode"),
    [((2**31, 0, 4), 0, "features"), ((2**24, 0, 4), 0, "causal"), ((1, 0, 2**30), 2, "causal")],
)
def test_what_has_no_element_takes_no_time(shape: tuple[int, ...], degree: int, mode: str) -> None:
    coefficients = None if degree else torch.ones(4, 2)
    assert polynomial_aggregation(torch.zeros(shape), coefficients, None, mode, 0.0, degree).shape == shape
