"""The kernels' interface for torch tensors, as far as it can be tested without a GPU."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest
import torch

from pom_export import contract
from pom_export.errors import InputError
from pom_export.runtime.cuda import CudaCall, _Call, _library, _Tensor

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
        ({"mode": "mean\0causal"}, "mode is"),
        ({"mode": ["mean"]}, "mode is"),
        ({"degree": 2**32}, "degree is 4294967296"),
        ({"degree": 2.0}, "degree is 2.0"),
        ({"rotary_blocks": 2**32 + 1}, "rotary_blocks is 4294967297"),
        ({"epsilon": "1"}, "epsilon is '1'"),
        ({"epsilon": float("nan")}, "epsilon must be finite and not negative, got nan"),
        ({"epsilon": 1e300}, "epsilon must be finite and not negative, got inf"),
        ({"mask": [[1.0]]}, "mask is a list"),
        ({"x": None}, "x is None"),
        ({"x": X.to_sparse()}, "torch.sparse_coo"),
        ({"coefficients": torch.zeros(8, 17)}, "1 to 16 columns, got 17"),
        ({"x": torch.zeros(1, 1, 1).expand(1, 2**31, 1)}, "not contiguous"),
        ({"gate": torch.zeros(2, 300, 8), "gate_bias": torch.zeros(8)}, "gate was given without gate_activation"),
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
        ({"present_length": LENGTH}, "present_length was given without a past"),
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


@pytest.mark.parametrize(
    ("shape", "given"),
    [
        ((2**31, 0, 8), {"mode": "features"}),
        ((2**24, 0, 8), {"mode": "causal"}),
        ((0, 2**40, 8), {"mode": "mean"}),
        ((1, 0, 2**30), {"mode": "causal", "form": "product", "degree": 2, "coefficients": None}),
    ],
    ids=str,
)
def test_what_has_no_element_needs_no_workspace(shape: tuple[int, ...], given: dict[str, Any]) -> None:
    call = CudaCall(**({"x": torch.zeros(shape), "coefficients": COEFFICIENTS} | given))
    assert call.workspace_bytes == 0
    assert not call.output.numel()


@pytest.mark.parametrize(
    ("shape", "said"),
    [((1, 2**31, 1), "2147482623 tokens"), ((1, 1, 2**31), "1073741824 channels"), ((2**48, 1, 4), "elements")],
)
@pytest.mark.parametrize("mode", contract.MODES)
def test_sizes_that_the_kernels_do_not_count_are_refused(shape: tuple[int, ...], said: str, mode: str) -> None:
    call, needed = c_call([(0, shape), (0, (shape[2], 2))], mode=mode.encode()), ctypes.c_int64()
    error = _library().pom_cuda_workspace_bytes(ctypes.byref(call), ctypes.byref(needed))
    assert error is not None
    assert said in error.decode()


def c_call(tensors: list[tuple[int, tuple[int, ...]]], **changes: Any) -> _Call:
    """Return a call of the C interface without memory behind it, given the (type, shape) of each input."""
    inputs = [
        _Tensor(None, kind, len(shape), (ctypes.c_int64 * 3)(*shape[:3], *[0] * max(3 - len(shape), 0)))
        for kind, shape in tensors
    ]
    fields: dict[str, Any] = {"form": b"power", "gate_activation": None, "degree": 0, "rotary_blocks": 1}
    fields |= {"epsilon": 0.0, "stateful": 0, "input_count": len(tensors)}
    fields |= {"mode": b"mean", "inputs": (_Tensor * 9)(*inputs)}
    return _Call(**(fields | changes))


GOOD = [(0, (2, 5, 8)), (0, (8, 3))]
MASKED = [*GOOD, (3, (2, 5))]
STATE = [*GOOD, (0, (1,)), (0, (1,)), (0, (1,)), (0, (2, 2, 8)), (4, (2,))]
INT32_ENDS = (-(2**31), 2**31 - 1)


@pytest.mark.parametrize(
    ("tensors", "changes", "said"),
    [
        *[([(kind, (2, 5, 8)), GOOD[1]], {}, f"x has data type {kind}") for kind in (77, 5, -1, *INT32_ENDS)],
        *[([GOOD[0], (kind, (8, 3))], {}, f"coefficients has data type {kind}") for kind in (5, -1, *INT32_ENDS)],
        *[([*GOOD, (kind, (2, 5))], {}, f"mask has data type {kind}") for kind in (5, *INT32_ENDS)],
        ([*STATE[:6], (99, (2,))], {"stateful": 1}, "past_length has data type 99"),
        ([(4, (2, 5, 8)), GOOD[1]], {}, "x must be float32, float16 or bfloat16, got int64"),
        ([(0, (2, 5, 8, 1)), GOOD[1]], {}, "x has rank 4"),
        ([(0, (-1, 5, 8)), GOOD[1]], {}, r"got (-1, 5, 8)"),
        ([(0, (2, 5, -8)), (0, (-8, 3))], {}, r"got (2, 5, -8)"),
        ([GOOD[0], (0, (8, -3))], {}, "1 to 16 columns, got -3"),
        ([(0, (2**40, 2**20, 8)), GOOD[1]], {}, "x is too large"),
        ([(0, (2**62, 2**62, 8)), GOOD[1]], {}, "x is too large"),
        (GOOD, {"mode": None}, "mode is a null pointer"),
        (GOOD, {"form": None}, "form is a null pointer"),
        (GOOD, {"mode": b"me\nan" + b"n" * 10_000}, 'got "me?an'),
        (GOOD, {"form": b""}, 'form must be one of the contract\'s words, got ""'),
        (GOOD, {"gate_activation": b"tanh"}, "takes 4 to 9 inputs|gate_activation must be one of"),
        (GOOD, {"stateful": 2}, "stateful must be 0 or 1, got 2"),
        (GOOD, {"degree": -1}, "must be 0 in form"),
        (GOOD, {"rotary_blocks": 2**31 - 1}, "rotary_blocks must be 1 or 2"),
        (GOOD, {"epsilon": -1e-10}, "epsilon must be finite and not negative, got -1e-10"),
        (GOOD, {"input_count": -1}, "takes at most 7 inputs, got -1"),
        (GOOD, {"input_count": 8}, "takes at most 7 inputs, got 8"),
        (GOOD, {"input_count": 2**31 - 1}, "takes at most 7 inputs"),
        (GOOD, {"input_count": 1}, "takes 2 to 7 inputs, got 1"),
    ],
)
@pytest.mark.parametrize("function", ["pom_cuda_workspace_bytes", "pom_cuda_aggregate"])
def test_the_c_interface_takes_no_number_on_trust(
    function: str, tensors: list[tuple[int, tuple[int, ...]]], changes: dict[str, Any], said: str
) -> None:
    call = c_call(tensors, **changes)
    call.inputs[0].rank = len(tensors[0][1])
    others = [ctypes.byref(ctypes.c_int64())] if function == "pom_cuda_workspace_bytes" else [None, None, None]
    error = getattr(_library(), function)(ctypes.byref(call), *others)
    assert error is not None
    assert any(each in error.decode() for each in said.split("|")), error
    assert error.decode().isprintable()
    assert len(error) < 300


def test_the_c_interface_takes_no_null_pointer() -> None:
    call, needed = c_call(MASKED), ctypes.c_int64()
    assert b"the call is a null pointer" in _library().pom_cuda_workspace_bytes(None, ctypes.byref(needed))
    assert b"is a null pointer" in _library().pom_cuda_workspace_bytes(ctypes.byref(call), None)
    assert b"the call is a null pointer" in _library().pom_cuda_aggregate(None, None, None, None)
    assert b"the outputs are a null pointer" in _library().pom_cuda_aggregate(ctypes.byref(call), None, None, None)
    nothing = (ctypes.c_void_p * 3)()
    assert b"x is a null pointer" in _library().pom_cuda_aggregate(ctypes.byref(call), nothing, None, None)
    assert _library().pom_cuda_workspace_bytes(ctypes.byref(call), ctypes.byref(needed)) is None
    assert needed.value > 0
