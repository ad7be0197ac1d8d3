"""The CUDA kernels at the limits of their number types: they cannot refuse, so they are right or NaN."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np
import pytest

from pom_export import contract
from tests.op_calls import Array, Call, Case
from tests.plugins.weights import EPSILONS, NOT_A_NUMBER, RIGHT, check_not_a_number, check_right, feeds

if TYPE_CHECKING:
    from tests.plugins.cuda.executors import Executor

MODES = ("mean", "causal")
LONGEST = 2**63 - 1


def weighted(given: dict[str, Array], mode: str, epsilon: float) -> Call:
    call = Call(Case(mode, "float32", given["x"].shape, mask="same", epsilon=epsilon))
    call.x, call.coefficients, call.mask = given.values()
    return call


@pytest.mark.parametrize("mode", MODES)
def test_means_of_weights_at_the_ends_of_float32(kernels: Executor, mode: str) -> None:
    cases = [(feeds(row), epsilon) for row, epsilon in itertools.product(RIGHT.values(), EPSILONS)]
    outputs = kernels.run(*(weighted(given, mode, epsilon) for given, epsilon in cases))
    for (given, epsilon), y in zip(cases, outputs, strict=True):
        check_right(y, given, mode, epsilon)
    rows = list(NOT_A_NUMBER.values())
    for (_, first), y in zip(rows, kernels.run(*(weighted(feeds(row), mode, 0.0) for row, _ in rows)), strict=True):
        check_not_a_number(y, first, mode)


@pytest.mark.parametrize("mode", MODES)
def test_small_weights_over_many_chunks(kernels: Executor, mode: str) -> None:
    call = Call(Case(mode, "float32", (1, 5000, 8), mask="same", epsilon=0.0))
    ones = Call(call.case)
    call.mask, ones.mask = np.full((1, 5000), 1e-42, np.float32), np.ones((1, 5000), np.float32)
    y, expected = kernels.run(call, ones)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    call.mask[0, 4000] = np.inf
    (y,) = kernels.run(call)
    assert np.isnan(y[0, -1]).all()


@pytest.mark.parametrize("tokens", [0, 1, 700])
@pytest.mark.parametrize("mask", ["none", "bool"])
@pytest.mark.parametrize("mode", MODES)
def test_lengths_are_exact_or_the_row_is_not_a_number(kernels: Executor, mode: str, mask: str, tokens: int) -> None:
    good = [0, 2**53 + 1, 2**62, LONGEST - tokens]
    bad = [-1, -5, -(2**63)] + ([LONGEST - tokens + 1, LONGEST] if tokens else [])
    call = Call(Case(mode, "float32", (len(good + bad), tokens, 24), mask=mask, past=5))
    assert call.past is not None
    call.past = call.past[0], np.array(good + bad)
    counted = [tokens] * len(good) if call.mask is None else call.mask.sum(1)[: len(good)].tolist()

    ((y, state, length),) = kernels.outputs(call)

    assert length[: len(good)].tolist() == [past + added for past, added in zip(good, counted, strict=True)]
    assert (length[len(good) :] < 0).all()
    assert np.isfinite(y[: len(good)]).all()
    assert np.isfinite(state[: len(good)]).all()
    assert np.isnan(y[len(good) :]).all()
    if tokens or mode == "mean":
        assert np.isnan(state[len(good) :].sum(1)).all()


@pytest.mark.parametrize("mode", MODES)
def test_a_state_that_is_not_finite_in_what_rounding_has_lost(kernels: Executor, mode: str) -> None:
    call = Call(Case(mode, "float32", (1, 700, 24), past=5))
    assert call.past is not None
    call.past[0][0, 1, [2, 4]] = np.nan, np.inf
    ((y, state, _),) = kernels.outputs(call)
    assert sorted(set(np.flatnonzero(~np.isfinite(y[0, -1])))) == [2, 4]
    assert sorted(set(np.flatnonzero(~np.isfinite(state[0].sum(0))))) == [2, 4]


def test_what_has_no_element_takes_no_time(kernels: Executor) -> None:
    cases = [
        Case("features", shape=(2**31, 0, 4)),
        Case("causal", shape=(2**24, 0, 4)),
        Case("causal", shape=(1, 0, 2**30), form=contract.PRODUCT, degree=2),
        Case("mean", shape=(0, 2**40, 4)),
    ]
    for case in cases:
        call = empty(case)
        (y,) = kernels.run(call)
        assert y.shape == call.output_shape


def empty(case: Case) -> Call:
    """Return a call whose x has no elements, made without allocating one for each of its sizes."""
    call = Call(Case(case.mode, case.dtype, (0, 0, 4), form=case.form, degree=case.degree))
    call.case, call.x = case, np.zeros(case.shape, np.float32)
    return call
