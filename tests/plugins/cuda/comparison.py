"""Every element of an output against float64."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pom_export.parity.tolerances import OPS

if TYPE_CHECKING:
    from tests.plugins.cuda.cases import Call
    from tests.plugins.cuda.executors import Executor


def assert_matches(kernels: Executor, *calls: Call) -> None:
    """Compare every element with float64, by the magnitude of its own terms and not of the largest output."""
    for call, y in zip(calls, kernels.run(*calls), strict=True):
        want, magnitude = call.reference()
        tolerance = OPS[call.case.dtype]
        errors = abs(y.astype(np.float64) - want)  # a NaN is in no bound
        assert (errors <= tolerance.absolute + tolerance.relative * magnitude).all(), (call.case, errors.max())
