"""The CUDA kernels of stateful calls against float64, on both executors."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from pom_export import contract
from pom_export.parity.tolerances import GOLDEN
from tests.op_calls import FLOATS, Array, Call, Case
from tests.plugins.cuda.executors import assert_matches

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.plugins.cuda.executors import Executor


STATEFUL_MODES = ("mean", "causal")
MASKS = ("none", "bool", "ragged")
MANY = 2**40
"""Tokens that no float32 counts."""


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("mode", STATEFUL_MODES)
def test_modes_masks_and_types(check: Callable[..., None], mode: str, mask: str, dtype: str) -> None:
    """No tokens, one, one chunk and several; one channel and one pack at a time."""
    case = Case(mode, dtype, mask=mask, past=5)
    shapes = [(batch, tokens, 17) for batch in (1, 3) for tokens in (0, 1, 37)]
    shapes += [(0, 5, 8), (3, 1, 64), (3, 130, 64), (1, 2500, 24)]
    check(
        *(replace(case, shape=shape) for shape in shapes),
        *(replace(case, shape=shape, past=past) for shape in shapes[1:3] for past in (0, MANY)),
        *(replace(case, shape=(3, 70, 8), mask_rows=1) for _ in range(mask != "none")),
    )


@pytest.mark.parametrize("mode", STATEFUL_MODES)
def test_every_form(check: Callable[..., None], mode: str) -> None:
    rotated = Case(mode, shape=(2, 130, 24), rotation="float32", mask="bool", past=3)
    product = Case(mode, shape=(2, 130, 24), form=contract.PRODUCT, past=3)
    plain = Case(mode, shape=(2, 130, 24), past=3)
    check(
        *(replace(case, dtype=dtype) for case in (rotated, product) for dtype in FLOATS),
        replace(rotated, rotary_blocks=2, rotation_rows=1, mask="none"),
        replace(rotated, shape=(2, 0, 24)),
        *(
            replace(case, dtype=dtype, gate="sigmoid", gates=gates)
            for case, gates in ((plain, None), (rotated, 3), (product, 8))
            for dtype in ("float32", "float16")
        ),
        replace(plain, gate="identity", mask="ragged", shape=(3, 1, 24)),
        replace(plain, gate="identity", mask="ragged", shape=(3, 0, 24)),
        *(replace(plain, gate="sigmoid", gate_tokens=tokens) for tokens in (0, 1, 700) if mode == "mean"),
    )


@pytest.mark.parametrize("mask", ["none", "bool"])
@pytest.mark.parametrize("mode", STATEFUL_MODES)
def test_a_state_over_many_chunks(check: Callable[..., None], mode: str, mask: str) -> None:
    """Prefixes that follow from each other, after more tokens than a float32 counts, and several column tiles."""
    case = Case(mode, mask=mask, past=MANY)
    check(replace(case, shape=(1, 8700, 17)), replace(case, shape=(2, 700, 136), dtype="float16", past=1))


@pytest.mark.parametrize("mask", ["none", "bool"])
@pytest.mark.parametrize("mode", STATEFUL_MODES)
def test_calls_that_follow_each_other_are_one_call(kernels: Executor, mode: str, mask: str) -> None:
    whole = Call(Case(mode, "float32", (2, 700, 24), mask=mask, rotation="float32", past=0))
    cuts = np.sort(np.random.default_rng(5).integers(0, 701, 6))
    outputs: list[Array] = []
    past = whole.past
    for begin, end in zip([0, *cuts], [*cuts, 700], strict=True):
        part = part_of(whole, begin, end, past)
        assert_matches(kernels, part)
        ((y, *present),) = kernels.outputs(part)
        past = present[0], present[1]
        outputs.append(y)

    assert past is not None
    want = whole.exact()
    made = np.concatenate(outputs, axis=1) if mode == "causal" else outputs[-1]
    assert (abs(made - want.y) <= GOLDEN.relative * want.size).all()
    assert (abs(past[0].astype(np.float64).sum(1) - want.state) <= 1e-6 * want.state_size).all()
    np.testing.assert_array_equal(past[1], want.length)


def part_of(whole: Call, begin: int, end: int, past: tuple[Array, Array] | None) -> Call:
    batch, _, channels = whole.case.shape
    part = Call(replace(whole.case, shape=(batch, end - begin, channels)))
    part.x, part.coefficients, part.past = whole.x[:, begin:end], whole.coefficients, past
    part.mask = None if whole.mask is None else whole.mask[:, begin:end]
    part.tables = [table[:, begin:end] for table in whole.tables]
    return part


@pytest.mark.parametrize("mode", STATEFUL_MODES)
def test_a_state_drifts_less_than_a_float_would(kernels: Executor, mode: str) -> None:
    """One token per call: a float32 sum of a million would not change, as a token is below half of its last digit."""
    call = Call(Case(mode, "float32", (1, 1, 8), past=1))
    assert call.past is not None
    assert call.coefficients is not None
    call.x[...], call.coefficients[...] = 0.01, 1.0
    call.past = np.stack([np.full((1, 8), 2.0**20, np.float32), np.zeros((1, 8), np.float32)], axis=1), call.past[1]
    start = call.exact().state
    step = start - 2.0**20
    for _ in range(4):
        ((_, state, length),) = kernels.outputs(call)
        call.past = state, length
    np.testing.assert_allclose(state.astype(np.float64).sum(1), 2.0**20 + 4 * step, rtol=1e-12)


@pytest.mark.parametrize("mode", STATEFUL_MODES)
def test_what_is_not_finite_stays_in_the_state(kernels: Executor, mode: str) -> None:
    """An infinity and a NaN, in the past and in a chunk of this call that others follow."""
    call = Call(Case(mode, "float32", (1, 2500, 17), form=contract.PRODUCT, degree=1, past=5))
    assert call.past is not None
    call.x[0, 100, 3], call.x[0, 100, 5] = np.inf, np.nan
    call.past[0][0, 0, 7], call.past[0][0, 0, 9] = np.inf, np.nan
    call.past[0][0, 1, [7, 9]] = 0.0

    ((y, state, _),) = kernels.outputs(call)

    total = state.astype(np.float64).sum(1)[0]
    assert set(np.flatnonzero(~np.isfinite(total))) == {3, 5, 7, 9}
    assert (total[[3, 7]] == np.inf).all()
    assert (y[0, :, 7] == np.inf).all()
    assert np.isfinite(np.delete(y[0], [3, 5, 7, 9], axis=-1)).all()


@pytest.mark.parametrize("mode", STATEFUL_MODES)
def test_a_row_of_no_tokens_gives_zero_and_no_state(kernels: Executor, mode: str) -> None:
    call = Call(Case(mode, "float16", (2, 70, 8), mask="bool", epsilon=0.0, past=0))
    assert call.mask is not None
    call.mask[1] = 0
    call.x[1] = np.nan
    ((y, state, length),) = kernels.outputs(call)
    assert not y[1].any()
    assert not state[1].any()
    assert length[1] == 0
    assert np.isfinite(y).all()
