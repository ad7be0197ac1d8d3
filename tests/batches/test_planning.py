"""Batches hold similar lengths, within a budget."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from pom_export.batches.budget import Budget
from pom_export.batches.interface import Interface
from pom_export.batches.planning import plan
from pom_export.batches.probing import Behaviour
from pom_export.graph.claims import InputLimits
from pom_export.graph.exported_model import TensorSpec

F4 = np.dtype("float32")


def interface(batch: str | int = "batch", width: int = 8) -> Interface:
    x, y = TensorSpec("x", F4, (batch, "tokens", width)), TensorSpec("y", F4, (batch, "tokens", width))
    return Interface("m.onnx", {"x": x}, {}, {"y": y}, batch, InputLimits(), causal_state=False)


def planned(lengths: Sequence[int], behaviour: Behaviour, *, batch: int = 100, max_tokens: int = 10**6,
            file: Interface | None = None) -> list[list[int]]:  # fmt: skip
    sizes = [{"tokens": length} for length in lengths]
    found = plan(range(len(lengths)), sizes, file or interface(), behaviour, Budget(batch, max_tokens))
    assert sorted(index for each in found for index in each) == list(range(len(lengths)))
    return [sorted(lengths[index] for index in each) for each in found]


PADDED = Behaviour(padded=frozenset({"tokens"}))


@pytest.mark.parametrize(
    ("lengths", "behaviour", "options", "expected"),
    [
        ([5, 6, 5, 7], PADDED, {}, [[5, 5, 6, 7]]),
        ([5, 6, 5, 7], Behaviour(), {}, [[5, 5], [6], [7]]),
        ([5, 6, 5, 7], Behaviour(rows=False), {}, [[5], [5], [6], [7]]),
        # Little padding beside what is to be computed.
        ([1000, 1000, 900, 500], PADDED, {}, [[900, 1000, 1000], [500]]),
        ([5] * 5, PADDED, {"batch": 2}, [[5, 5], [5, 5], [5]]),
        ([50] * 5, PADDED, {"max_tokens": 100}, [[50, 50], [50, 50], [50]]),
        # One that exceeds the budget is alone.
        ([500, 50, 50], PADDED, {"max_tokens": 100}, [[500], [50, 50]]),
        ([5] * 5, Behaviour(), {"file": interface(2)}, [[5, 5], [5, 5], [5]]),
        # Outputs of 128 MiB each.
        ([4, 4, 4], PADDED, {"file": interface(width=2**22)}, [[4, 4], [4]]),
    ],
)
def test_batches(lengths: list[int], behaviour: Behaviour, options: dict, expected: list[list[int]]) -> None:
    assert sorted(planned(lengths, behaviour, **options)) == sorted(expected)
