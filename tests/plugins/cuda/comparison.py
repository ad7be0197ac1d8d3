"""Every element of an output against float64."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pom_export.parity.tolerances import OPS

if TYPE_CHECKING:
    from tests.plugins.cuda.cases import Array, Call
    from tests.plugins.cuda.executors import Executor


def assert_matches(kernels: Executor, *calls: Call) -> None:
    """Compare every element with float64, by the magnitude of its own terms and not of the largest output."""
    for call, (y, *present) in zip(calls, kernels.outputs(*calls), strict=True):
        want, magnitude = call.reference()
        tolerance = OPS[call.case.dtype]
        errors = abs(y.astype(np.float64) - want)  # a NaN is in no bound
        assert (errors <= tolerance.absolute + tolerance.relative * magnitude).all(), (call.case, errors.max())
        if present:
            assert_is_present(call, *present)


def assert_is_present(call: Call, state: Array, length: Array) -> None:
    """Compare a state: it is as exact as this call's sum, and two floats hold no more digits than they do."""
    total, magnitude, count = call.present()
    np.testing.assert_array_equal(length, count, str(call.case))
    made = state.astype(np.float64).sum(1)
    errors, tolerance = abs(made - total), OPS["float32"]
    assert (errors <= tolerance.relative * magnitude + 2**-45 * abs(total)).all(), (call.case, errors.max())
    np.testing.assert_array_equal(state[:, 0], made.astype(np.float32), str(call.case))
