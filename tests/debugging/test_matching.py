"""Tensors of a module are found among a graph's values."""

from __future__ import annotations

import math

import numpy as np

from pom_export.debugging.matching import closest, moved_axes, nearer, relative_error

RANDOM = np.random.default_rng(0)
WANTED = RANDOM.standard_normal((2, 3, 4))


def test_the_closest_of_the_same_shape() -> None:
    near, far = WANTED + 1e-3, WANTED + 1.0
    found = closest([far, near, np.zeros((2, 3)), np.ones((2, 3, 4), np.int64)], WANTED)
    assert found is near


def test_axes_and_parts() -> None:
    turned = closest([np.ascontiguousarray(WANTED.swapaxes(1, 2))], WANTED)
    np.testing.assert_array_equal(turned, WANTED)
    joined = closest([WANTED[..., :1], WANTED[..., 1:]], WANTED)
    np.testing.assert_array_equal(joined, WANTED)


def test_nothing_that_fits() -> None:
    assert closest([], WANTED) is None
    assert closest([np.zeros((2, 3, 5))], WANTED) is None
    assert closest([WANTED[..., :1], WANTED[..., :2]], WANTED) is None
    assert nearer(None, WANTED, WANTED) is WANTED
    assert nearer(WANTED, None, WANTED) is WANTED


def test_the_error_is_relative_to_the_largest_value() -> None:
    assert relative_error(np.array([1.0, 10.5]), np.array([1.0, 10.0])) == 0.05
    assert relative_error(np.array([0.5]), np.array([0.0])) == 0.5
    assert relative_error(np.array([math.nan, 1.0]), np.array([1.0, 1.0])) == math.inf


def test_what_happened_to_axes_is_named() -> None:
    square = RANDOM.standard_normal((3, 3, 4))
    assert moved_axes(square.swapaxes(0, 1), square, 1e-6) == "axes 0 and 1 of its output are exchanged"
    assert moved_axes(WANTED[:, ::-1], WANTED, 1e-6) == "its output is reversed along axis 1"
    assert moved_axes(np.roll(WANTED, 1, 1), WANTED, 1e-6) == "its output is shifted by one along axis 1"
    assert not moved_axes(WANTED + 1, WANTED, 1e-6)
