"""The tests' float64 reference of the op: it agrees with the package's own, and wrong outputs are found."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from pom_export import contract
from pom_export.mixer.reference import polynomial_aggregation
from tests.op_calls import Call, Case

CASES = [
    Case("causal", mask="bool", shape=(2, 9, 6)),
    Case("mean", shape=(2, 9, 6), degree=contract.MAX_DEGREE),
    Case("features", shape=(2, 9, 8), rotation="float32", rotary_blocks=2),
    Case("mean", shape=(2, 9, 6), rotation="float32", rotation_rows=1, mask="same"),
    Case("causal", shape=(2, 9, 9), form=contract.PRODUCT, mask="same"),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_packages_reference_computes_the_same(case: Case) -> None:
    call = Call(case)
    x, *others = (
        None if tensor is None else torch.from_numpy(tensor if tensor.dtype == np.bool_ else tensor.astype(np.float64))
        for tensor in (call.x, call.coefficients, call.mask, *call.tables)
    )
    assert x is not None
    coefficients, mask, *tables = others
    cos, sin = tables or (None, None)
    degree = 0 if case.form == contract.POWER else case.degree
    options = {"degree": degree, "cos": cos, "sin": sin, "rotary_blocks": case.rotary_blocks}
    y = polynomial_aggregation(x, coefficients, mask, case.mode, case.epsilon, **options)
    np.testing.assert_allclose(call.exact().y, y.numpy(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("case", [*CASES, replace(CASES[1], gate="sigmoid", gates=3)], ids=str)
def test_an_error_of_one_element_is_found(case: Case) -> None:
    call = Call(case)
    want = call.exact()
    right = want.y.astype(np.float32)
    call.check([right])
    wrong = right.copy()
    wrong[-1, -1, 0] += 1e-5 * want.size[-1, -1, 0] + 1e-8
    for y in (wrong, np.where(np.arange(right.shape[2]) == 1, np.nan, right).astype(np.float32)):
        with pytest.raises(AssertionError):
            call.check([y])


@pytest.mark.parametrize("name", ["sum", "second float", "length"])
def test_a_wrong_state_is_found(name: str) -> None:
    call = Call(Case("causal", shape=(2, 9, 6), past=3))
    want = call.exact()
    first = want.state.astype(np.float32)
    state, length = np.stack([first, (want.state - first).astype(np.float32)], axis=1), want.length.copy()
    call.check([want.y.astype(np.float32), state, length])
    if name == "sum":
        state[1, 0, 2] += 1e-4 * (want.state_size + want.past_size)[1, 2]
    elif name == "second float":
        state[0, 1] = 0.0
        state[0, 0, 1] = np.nextafter(state[0, 0, 1], np.inf)
        state[0, 1, 1] = -2 * np.spacing(state[0, 0, 1])
    else:
        length[1] += 1
    with pytest.raises(AssertionError):
        call.check([want.y.astype(np.float32), state, length])
