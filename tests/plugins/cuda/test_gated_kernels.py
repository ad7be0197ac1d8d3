"""The CUDA kernels of the gated op against float64, on both executors."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from pom_export import contract
from tests.op_calls import DTYPES, FLOATS, Call, Case
from tests.plugins.cuda.executors import assert_matches

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.plugins.cuda.executors import Executor


GATED_MODES = ("mean", "causal")


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("activation", contract.GATE_ACTIVATIONS)
@pytest.mark.parametrize("mode", GATED_MODES)
def test_gate(check: Callable[..., None], mode: str, activation: str, dtype: str) -> None:
    """Packs and single channels, both types of the bias, one gate per channel, per head and for all channels.

    Several blocks and tiles are only tested with one activation: the others differ in what they do to an element.
    """
    case = Case(mode, dtype, mask="same", gate=activation)
    sizes = [(17, None), (17, 1), (24, None), (24, 3), (24, 6), (24, 1), (64, 8), (64, 64)]
    shapes = [((2, 37, channels), gates) for channels, gates in sizes]
    shapes += [((1, 2500, 8), None), ((3, 130, 264), None), ((3, 65, 264), 33)] if activation == "sigmoid" else []
    check(
        *(replace(case, shape=shape, gates=gates, bias=bias) for shape, gates in shapes for bias in {"float32", dtype})
    )


@pytest.mark.parametrize("tokens", [0, 1, 31, 33, 700])
def test_a_mean_serves_any_number_of_tokens(check: Callable[..., None], tokens: int) -> None:
    """As in cross-attention, where gate and context have different tokens."""
    shapes = [(3, 9, 5), (2, 40, 520), (2, 0, 8), (0, 5, 8)]
    check(*(Case("mean", dtype, shape, gate="sigmoid", gate_tokens=tokens) for dtype in FLOATS for shape in shapes))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("mode", GATED_MODES)
def test_every_form_with_a_gate(check: Callable[..., None], mode: str, dtype: str) -> None:
    """Two packs per thread, half tiles where a whole one's coefficients do not fit in shared memory, odd degrees."""
    rotated = Case(mode, dtype, (2, 40, 544), rotation=dtype, gate="hardsigmoid", mask="bool")
    product = Case(mode, dtype, (3, 66, 48), form=contract.PRODUCT, gate="sigmoid", mask="bool")
    check(
        *(replace(rotated, degree=degree, gates=gates) for degree in (13, 14) for gates in (None, 34)),
        replace(rotated, shape=(2, 33, 12), rotary_blocks=2),
        *(replace(product, gates=gates, degree=degree) for gates in (None, 6, 2) for degree in (2, 3)),
        replace(product, shape=(67, 70, 66)),
    )


@pytest.mark.parametrize("mode", GATED_MODES)
def test_a_gate_over_several_blocks_and_steps(check: Callable[..., None], mode: str) -> None:
    case = Case(mode, "float16", mask="bool", gate="sigmoid")
    check(
        *(replace(case, shape=shape) for shape in [(7, 700, 136), (1, 8700, 9), (1, 2500, 1056), (0, 5, 8), (3, 0, 8)])
    )


@pytest.mark.parametrize("mode", GATED_MODES)
def test_a_gate_off_alignment(check: Callable[..., None], mode: str) -> None:
    cases = [Case(mode, dtype, (2, 50, 24), gate="sigmoid") for dtype in FLOATS]
    check(*(replace(case, shift=np.dtype(DTYPES[case.dtype]).itemsize) for case in cases))


@pytest.mark.parametrize("mode", GATED_MODES)
def test_nothing_is_rounded_between_the_aggregate_and_the_output(kernels: Executor, mode: str) -> None:
    """A gate that brings a half-precision mean back into range: y alone would be infinite."""
    call = Call(Case(mode, "float16", (1, 40, 16), gate="identity"))
    assert call.coefficients is not None
    assert call.gate is not None
    assert call.gate_bias is not None
    call.x[...] = 6.0
    call.coefficients[...] = 1e4
    call.gate[...], call.gate_bias[...] = 2**-12, 0.0
    assert_matches(kernels, call)


@pytest.mark.parametrize("mode", GATED_MODES)
@pytest.mark.parametrize("activation", contract.GATE_ACTIVATIONS)
def test_gates_beyond_every_bound(kernels: Executor, activation: str, mode: str) -> None:
    """Infinite gates saturate, and a NaN stays in its own element."""
    call = Call(Case(mode, "float32", (1, 70, 8), gate=activation))
    assert call.gate is not None
    call.gate[0, 3, 1], call.gate[0, 4, 1], call.gate[0, 5, 1] = np.nan, np.inf, -np.inf
    (z,) = kernels.run(call)
    infinite = 1 + 2 * (activation == "identity")
    assert (~np.isfinite(z)).sum() == infinite
    assert np.isnan(z[0, 3, 1])
    if activation != "identity":
        assert z[0, 5, 1] == 0
