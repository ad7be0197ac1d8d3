"""The kernels' interface for torch tensors, as far as a machine without a GPU can see it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pom_export.errors import InputError
from pom_export.runtime.cuda import CudaCall

X = torch.zeros(2, 300, 8)
COEFFICIENTS = torch.zeros(8, 3)
PAST = torch.zeros(2, 2, 8)
LENGTH = torch.zeros(2, dtype=torch.int64)


pytestmark = pytest.mark.usefixtures("library")


@pytest.mark.parametrize(
    ("tokens", "mode"), [(1, "mean"), (300, "mean"), (100_000, "mean"), (1, "causal"), (300, "causal")]
)
def test_the_workspace_grows_with_the_tokens(tokens: int, mode: str) -> None:
    small, large = (CudaCall(torch.zeros(1, n, 8), COEFFICIENTS, mode=mode) for n in (tokens, tokens + 300))

    assert 0 < small.workspace_bytes <= large.workspace_bytes
    assert small.output.shape == (1, 1 if mode == "mean" else tokens, 8)


def test_features_need_no_workspace() -> None:
    assert CudaCall(X, COEFFICIENTS, mode="features").workspace_bytes == 0


@pytest.mark.parametrize("gate", [None, torch.zeros(2, 9, 8)])
def test_a_stateful_call_has_places_for_a_new_state(gate: torch.Tensor | None) -> None:
    gated = {} if gate is None else {"gate": gate, "gate_bias": torch.zeros(8), "gate_activation": "sigmoid"}
    call = CudaCall(X, COEFFICIENTS, past_state=PAST, past_length=LENGTH, **gated)

    assert call.output.shape == (2, 1 if gate is None else 9, 8)
    assert call.present_state is not None
    assert call.present_length is not None
    assert (call.present_state.shape, call.present_state.dtype) == (PAST.shape, torch.float32)
    assert (call.present_length.shape, call.present_length.dtype) == (LENGTH.shape, torch.int64)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"coefficients": torch.zeros(7, 3)}, "coefficients"),
        ({"mask": torch.ones(3, 300, dtype=torch.bool)}, "mask"),
        ({"mask": torch.ones(2, 300, dtype=torch.int64)}, "int64"),
        ({"mask": torch.ones(300, 2, dtype=torch.bool).T}, "not contiguous"),
        ({"cos": torch.zeros(1, 300, 4)}, "sin"),
        ({"mode": "median"}, "median"),
        ({"form": "cube"}, "cube"),
        ({"form": "product", "degree": 3}, "placeholder"),
        ({"form": "product", "degree": 3, "coefficients": None}, "multiple of degree 3"),
        ({"gate_activation": "sigmoid"}, "without gate"),
        ({"gate": torch.zeros(2, 300, 8), "gate_bias": torch.zeros(8), "gate_activation": "tanh"}, "tanh"),
        ({"gate": torch.zeros(2, 300, 3), "gate_bias": torch.zeros(3), "gate_activation": "sigmoid"}, "divisor"),
        ({"mask": torch.ones(2, 300, dtype=torch.bool, device="meta")}, "on meta"),
        ({"past_state": PAST}, "past_length is missing"),
        ({"past_length": LENGTH}, "go with stateful 1"),
        ({"past_state": PAST, "past_length": LENGTH.int()}, "past_length is torch.int32"),
        ({"past_state": PAST, "past_length": LENGTH, "mode": "features"}, "has no state"),
        ({"past_state": PAST, "past_length": LENGTH, "mask": X[..., 0].contiguous()}, "mask must be bool"),
        ({"past_state": PAST, "past_length": LENGTH, "present_state": PAST[:1]}, "present_state has 64 bytes"),
        ({"present_length": LENGTH}, "present_length without a past"),
        ({"output": torch.zeros(2, 1, 7)}, "output has 56 bytes"),
        ({"workspace": torch.zeros(3, dtype=torch.uint8)}, "workspace has 3 bytes"),
    ],
    ids=str,
)
def test_what_the_op_does_not_take_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        CudaCall(**({"x": X, "coefficients": COEFFICIENTS} | given))


def test_tensors_that_are_on_no_gpu_are_refused() -> None:
    with pytest.raises(InputError, match="on cpu"):
        CudaCall(X, COEFFICIENTS).enqueue()
