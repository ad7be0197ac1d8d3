"""The CUDA kernels against float64: compiled with g++ and run on the CPU with sanitizers, and on a GPU if there is one.

Only a GPU can show timing, memory ordering between blocks, and what nvcc makes of the code.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from pom_export import contract
from tests.op_calls import DTYPES, FLOATS, MASKED_MODES, Call, Case
from tests.plugins.cuda.executors import assert_matches

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.plugins.cuda.executors import Executor


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("mode", "mask"), MASKED_MODES)
def test_modes_masks_and_types(check: Callable[..., None], mode: str, mask: str, dtype: str) -> None:
    """One channel and one pack at a time, one mask per row and one for the whole batch."""
    case = Case(mode, dtype, mask=mask)
    shapes = [(3, 65, 17), (3, 130, 64), (1, 2500, 24)]
    cases = [replace(case, shape=shape, mask_rows=rows) for shape in shapes for rows in (None, 1)]
    check(*(case for case in cases if mask != "none" or case.mask_rows is None))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("mode", contract.MODES)
def test_shapes(check: Callable[..., None], mode: str, dtype: str) -> None:
    mask = "none" if mode == "features" else "same"
    shapes = [(1, tokens, channels) for tokens in (0, 1, 2, 63, 64, 65) for channels in (1, 3, 8, 17, 130)]
    shapes += [(0, 5, 8), (3, 0, 8), (0, 0, 1), (3, 63, 3), (3, 700, 8), (1, 700, 17), (1, 700, 1)]
    check(*(Case(mode, dtype, shape, mask=mask, degree=1 + index % 4) for index, shape in enumerate(shapes)))


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [
        ("float32", (3, 700, 130)),  # one channel at a time; in mode mean 5 channel tiles
        ("float32", (1, 300, 264)),  # packs: the last of several tiles almost empty
        ("float16", (1, 20000, 1)),  # 20 chunks of the largest size
        ("float32", (1, 40000, 4)),  # a sequential sum of this length errs by 1e-4
        ("float32", (1, 8700, 17)),  # causal: 136 chunks, so that one prefix follows from another
    ],
    ids=str,
)
@pytest.mark.parametrize("mode", ["mean", "causal"])
def test_tokens_over_several_blocks(
    check: Callable[..., None], mode: str, dtype: str, shape: tuple[int, int, int]
) -> None:
    check(Case(mode, dtype, shape, mask="bool"))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_blocks_that_have_several_steps(check: Callable[..., None], dtype: str) -> None:
    """A batch large enough to fill the device leaves each block more tokens than its threads hold at once."""
    check(Case("mean", dtype, (67, 150, 136), mask="bool"), Case("causal", dtype, (641, 300, 8), mask="bool"))


@pytest.mark.parametrize("rotation", ["none", "float16"])
@pytest.mark.parametrize("mask", ["none", "bool"])
def test_prefixes_that_follow_from_each_other(check: Callable[..., None], mask: str, rotation: str) -> None:
    """More chunks than two prefixes cover, of packs and, at twice the tokens per chunk, of pairs of packs."""
    check(
        Case("causal", "float16", (1, 4300, 34), mask=mask, rotation=rotation),
        Case("causal", "float16", (1, 1030, 9), degree=9, form=contract.PRODUCT, mask=mask),
    )


def test_what_is_not_finite_reaches_all_later_prefixes(kernels: Executor) -> None:
    call = Call(Case("causal", "float32", (1, 8700, 17), form=contract.PRODUCT, degree=1))
    call.x[0, 100, 3], call.x[0, 100, 5] = np.inf, np.nan

    (y,) = kernels.run(call)

    expected = np.zeros(y.shape, bool)
    expected[0, 100:, [3, 5]] = True
    np.testing.assert_array_equal(~np.isfinite(y), expected)
    assert (y[0, 100:, 3] == np.inf).all()


@pytest.mark.parametrize("mode", contract.MODES)
def test_degrees(check: Callable[..., None], mode: str) -> None:
    degrees = (1, 2, 3, 7, contract.MAX_DEGREE)
    check(*(Case(mode, dtype, (2, 90, 24), degree=degree) for degree in degrees for dtype in FLOATS))


@pytest.mark.parametrize("mode", contract.MODES)
def test_coefficients_of_xs_type(check: Callable[..., None], mode: str) -> None:
    check(*(Case(mode, dtype, (2, 90, channels), coefficients=dtype) for dtype in FLOATS for channels in (17, 24)))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("mode", "mask"), MASKED_MODES)
def test_rotation(check: Callable[..., None], mode: str, mask: str, dtype: str) -> None:
    """Both types and ranks of the tables, one and two blocks, packs and single channels, one chunk and several."""
    case = Case(mode, dtype, mask=mask)
    tables = [replace(case, rotation=kind, rotation_rows=rows) for kind in ("float32", dtype) for rows in (None, 1)]
    packs = [((2, 37, 32), 1), ((2, 34, 32), 2)]
    odd = [((3, 65, 2), 1), ((2, 37, 6), 1), ((2, 33, 12), 2), ((1, 33, 528), 2)]
    check(
        *(replace(each, shape=shape, rotary_blocks=blocks) for each in tables for shape, blocks in packs),
        *(replace(each, shape=shape, rotary_blocks=blocks) for each, (shape, blocks) in zip(tables, odd, strict=True)),
    )


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("mode", contract.MODES)
def test_rotation_of_every_degree_and_alignment(check: Callable[..., None], mode: str, dtype: str) -> None:
    """Half tiles where a whole one's coefficients do not fit in shared memory; x and tables off alignment."""
    case = Case(mode, dtype, (2, 40, 544), rotation=dtype)
    degrees = (1, 14, contract.MAX_DEGREE)
    off = np.dtype(DTYPES[dtype]).itemsize
    small = replace(case, shape=(2, 40, 64))
    check(
        *(replace(case, degree=degree) for degree in degrees),
        replace(small, shift=off),
        replace(small, table_shift=off),
    )


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("mode", "mask"), MASKED_MODES)
def test_product(check: Callable[..., None], mode: str, mask: str, dtype: str) -> None:
    """Even and odd degrees, factors of single channels and of packs, one mask per row and one for the whole batch."""
    case = Case(mode, dtype, mask=mask, form=contract.PRODUCT)
    factors = {1: 24, 2: 33, 3: 16, 4: 5, 5: 8}
    cases = [replace(case, degree=degree, shape=(3, 66, degree * factor)) for degree, factor in factors.items()]
    cases += [replace(case, degree=degree, shape=(2, 37, degree * 8)) for degree in (2, contract.MAX_DEGREE)]
    check(*cases, *(replace(each, mask_rows=1) for each in cases[:2] if mask != "none"))


@pytest.mark.parametrize("mode", contract.MODES)
def test_product_off_alignment(check: Callable[..., None], mode: str) -> None:
    case = Case(mode, form=contract.PRODUCT, shape=(2, 50, 24))
    check(*(replace(case, dtype=dtype, shift=np.dtype(DTYPES[dtype]).itemsize) for dtype in FLOATS))


FORMS = {
    "rotation": Case("mean", rotation="float32"),
    "shared rotation": Case("mean", rotation="float32", rotation_rows=1, rotary_blocks=2),
    "product": Case("mean", form=contract.PRODUCT),
}
"""Of every form but the one that has its own tests."""


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [
        ("float32", (0, 5, 12)),
        ("float32", (3, 0, 12)),
        ("float16", (1, 2500, 12)),  # chunks of the largest size
        ("float32", (2, 300, 132)),  # several tiles and chunks
        ("float16", (1, 70, 1056)),  # packs: several tiles, the last one almost empty
    ],
    ids=str,
)
@pytest.mark.parametrize("mode", ["mean", "causal"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_over_several_blocks(
    check: Callable[..., None], form: str, mode: str, dtype: str, shape: tuple[int, int, int]
) -> None:
    check(replace(FORMS[form], mode=mode, mask="bool", shape=shape, dtype=dtype))


def test_the_workspace_of_one_full_tile_is_enough(check: Callable[..., None]) -> None:
    """As many chunks as there can be, each with the sums of all channels of the widest tile."""
    check(Case("mean", "float16", (1, 264 * 16, 512), degree=1, rotation="float16"))


@pytest.mark.parametrize("form", ["rotation", "product"])
def test_every_form_in_several_chunks(check: Callable[..., None], form: str) -> None:
    check(replace(FORMS[form], mode="causal", mask="bool", shape=(7, 700, 66)))


@pytest.mark.parametrize("mode", contract.MODES)
def test_unaligned_pointers_take_the_scalar_path(check: Callable[..., None], mode: str) -> None:
    """A 16-byte access off alignment would stop the undefined-behaviour sanitizer."""
    check(*(Case(mode, dtype, (2, 50, 24), shift=np.dtype(DTYPES[dtype]).itemsize) for dtype in FLOATS))


@pytest.mark.parametrize("mode", ["mean", "causal"])
@pytest.mark.parametrize("mask", ["bool", "same"])
@pytest.mark.parametrize("form", [None, *FORMS])
def test_absent_tokens_may_hold_anything(kernels: Executor, form: str | None, mask: str, mode: str) -> None:
    case = replace(FORMS[form] if form else Case(mode), mode=mode, shape=(2, 50, 48), mask=mask)
    for dtype in FLOATS:
        clean, spoiled = (Call(replace(case, dtype=dtype)) for _ in range(2))
        assert spoiled.mask is not None
        spoiled.x[spoiled.mask == 0] = np.nan
        for table in spoiled.tables:
            absent = spoiled.mask == 0
            table[absent if len(table) > 1 else absent.all(0, keepdims=True)] = np.nan

        outputs = kernels.run(clean, spoiled)

        assert np.isfinite(outputs[0].astype(np.float64)).all()
        assert outputs[0].tobytes() == outputs[1].tobytes()


@pytest.mark.parametrize("mode", contract.MODES)
def test_a_nan_reaches_the_rows_that_hold_it(kernels: Executor, mode: str) -> None:
    token, channel = 70, 3
    rows = {"mean": slice(0, 1), "causal": slice(token, None), "features": slice(token, token + 1)}
    for dtype in FLOATS:
        call = Call(Case(mode, dtype, (2, 130, 8)))
        call.x[1, token, channel] = np.nan

        (y,) = kernels.run(call)

        expected = np.zeros(y.shape, bool)
        expected[1, rows[mode], channel] = True
        np.testing.assert_array_equal(np.isnan(y.astype(np.float64)), expected)


def test_infinities_are_clamped(kernels: Executor) -> None:
    call = Call(Case("features", "float16", (1, 2, 8), degree=1))
    call.x[0, 0], call.x[0, 1] = np.inf, -np.inf
    assert_matches(kernels, call)


@pytest.mark.parametrize("mode", ["mean", "causal"])
@pytest.mark.parametrize("mask", ["bool", "same"])
def test_a_masked_out_row_gives_zero(kernels: Executor, mode: str, mask: str) -> None:
    for epsilon in (0.0, 0.5):
        call = Call(Case(mode, "float16", (2, 70, 8), mask=mask, epsilon=epsilon))
        assert call.mask is not None
        call.mask[1] = 0
        call.x[1] = np.nan
        (y,) = kernels.run(call)
        assert not y[1].any()
        assert np.isfinite(y).all()
