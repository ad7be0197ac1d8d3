"""Rounding weights: the nearest values, the best scales, and errors that correlated activations cancel."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from pom_export.quantization.rounding import error_of, gptq, nearest


def drawn(rows: int, columns: int, seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def moments_of(rows: int, seed: int = 1) -> npt.NDArray[np.float64]:
    """Return the moments of activations that correlate, as those of a network do."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((500, rows // 4)) @ random.standard_normal((rows // 4, rows))
    x += 0.1 * random.standard_normal((500, rows))
    return x.T @ x / len(x)


@pytest.mark.parametrize(("bits", "bound"), [(4, 0.1), (8, 0.007)])
@pytest.mark.parametrize(("rows", "block"), [(64, 32), (70, 32), (33, 16), (64, 64), (5, 16)])
def test_the_nearest_values_are_close(rows: int, block: int, bits: int, bound: float) -> None:
    matrix = drawn(rows, 8)
    weight = nearest(matrix, bits, block)
    off = weight.dequantized() - matrix
    assert np.sqrt((off**2).mean() / (matrix**2).mean()) < bound
    # No other integer would be nearer.
    scales = np.abs(np.repeat(weight.scales, block, axis=0)[:rows])
    inside = np.abs(weight.values.astype(int)) < 2 ** (bits - 1) - 1
    assert (np.abs(off)[inside] <= scales[inside] * 0.5001).all()


def test_searched_scales_are_better_than_those_of_the_largest_value() -> None:
    matrix = drawn(128, 64)
    matrix[::32] *= 4
    plain = np.abs(matrix.reshape(4, 32, 64)).max(1) / 7
    rounded = np.clip(np.rint(matrix / np.repeat(plain, 32, 0)), -8, 7) * np.repeat(plain, 32, 0)
    searched = nearest(matrix, 4, 32).dequantized()
    assert ((searched - matrix) ** 2).sum() < 0.9 * ((rounded - matrix) ** 2).sum()


def test_rows_that_count_more_are_rounded_better() -> None:
    matrix = drawn(32, 64)
    importance = np.ones(32)
    importance[:4] = 1000
    error = [((nearest(matrix, 4, 32, each).dequantized() - matrix)[:4] ** 2).sum() for each in (None, importance)]
    assert error[1] < 0.7 * error[0]


def test_gptq_errs_less_where_activations_correlate() -> None:
    matrix, moments = drawn(64, 24), moments_of(64)
    found = error_of(matrix, gptq(matrix, 4, 32, moments), moments)
    plain = error_of(matrix, nearest(matrix, 4, 32), moments)
    assert found < 0.6 * plain


def test_the_error_is_that_of_products() -> None:
    matrix = drawn(32, 8)
    x = drawn(100, 32, seed=3).astype(np.float64)
    weight = nearest(matrix, 4, 16)
    off = x @ (weight.dequantized() - matrix)
    expected = np.sqrt((off**2).mean() / ((x @ matrix) ** 2).mean())
    assert error_of(matrix, weight, x.T @ x / 100) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("moments", [np.zeros((16, 16)), np.ones((16, 16)), np.diag(np.arange(16.0))])
def test_activations_that_say_nothing_do_no_harm(moments: npt.NDArray[np.float64]) -> None:
    matrix = drawn(16, 4)
    assert np.abs(gptq(matrix, 8, 16, moments).dequantized() - matrix).max() < 0.1


@pytest.mark.parametrize("value", [0.0, 3.0, -2.5, 1e-30, 1e30])
def test_constant_columns_survive(value: float) -> None:
    matrix = np.full((32, 3), value, np.float32)
    for weight in (nearest(matrix, 4, 32), gptq(matrix, 4, 32, np.eye(32))):
        assert np.isfinite(weight.scales).all()
        np.testing.assert_allclose(weight.dequantized(), matrix, rtol=1e-5)


def test_fewer_integers_can_be_asked_for() -> None:
    weight = nearest(drawn(64, 16), 8, 64, largest=63)
    assert np.abs(weight.values).max() == 63


def test_positive_scales_can_be_asked_for() -> None:
    matrix, moments = drawn(64, 16), moments_of(64)
    assert (nearest(matrix, 4, 32).scales < 0).any()
    for weight in (nearest(matrix, 4, 32, positive=True), gptq(matrix, 4, 32, moments, positive=True)):
        assert (weight.scales > 0).all()
    off, free = (nearest(matrix, 4, 32, positive=each).dequantized() - matrix for each in (True, False))
    assert (free**2).sum() <= (off**2).sum() < 1.3 * (free**2).sum()
