"""What the emulation of CUDA itself must find."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.op_calls import Call, Case
from tests.plugins.cuda.executors import assert_matches

if TYPE_CHECKING:
    from tests.plugins.cuda.executors import Emulation


@pytest.mark.parametrize(
    ("mode", "barrier", "tokens"),
    # In mode "causal", they are around the ticket, the coefficients, and alternately the totals of groups and of tiles.
    [("features", 0, 40), ("mean", 0, 40), ("mean", 1, 40), *(("causal", barrier, 700) for barrier in range(4))],
)
def test_a_missing_barrier_would_be_seen(emulation: Emulation, mode: str, barrier: int, tokens: int) -> None:
    """The emulation notices the absence of each __syncthreads() in the kernels."""
    with pytest.raises(AssertionError):
        assert_matches(emulation, Call(Case(mode, "float32", (3, tokens, 130), skipped_barrier=barrier)))
