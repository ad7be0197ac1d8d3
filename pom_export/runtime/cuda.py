"""Call the plugin library's CUDA kernels on torch tensors, without TensorRT or ONNX Runtime."""

from __future__ import annotations

import ctypes
import functools
import math
from typing import Any

import torch

from pom_export import contract
from pom_export.errors import InputError, kind_of
from pom_export.runtime.library import plugin_library

# The numbers of the types in pom::DataType.
_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.bool: 3, torch.int64: 4}


class _Tensor(ctypes.Structure):
    """PomTensor of plugins/cuda/c_api.h."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("type", ctypes.c_int32),
        ("rank", ctypes.c_int32),
        ("shape", ctypes.c_int64 * 3),
    )

    @classmethod
    def of(cls, name: str, tensor: torch.Tensor | None) -> _Tensor:
        if tensor is None:
            return cls(None, 0, 0, (ctypes.c_int64 * 3)())
        if tensor.dtype not in _TYPES or not 1 <= tensor.ndim <= 3 or tensor.layout != torch.strided:
            raise InputError(
                f"{name} is {tensor.dtype} with {tensor.ndim} dimensions, {tensor.layout}",
                "Give a strided tensor of float32, float16, bfloat16, bool or int64 with 1 to 3 dimensions",
            )
        if not tensor.is_contiguous():
            raise InputError(f"{name} is not contiguous: its strides are {tensor.stride()}", "Call .contiguous() on it")
        shape = (ctypes.c_int64 * 3)(*tensor.shape)
        return cls(tensor.data_ptr(), _TYPES[tensor.dtype], tensor.ndim, shape)


class _Call(ctypes.Structure):
    """PomCall of plugins/cuda/c_api.h."""

    _fields_ = (
        ("form", ctypes.c_char_p),
        ("mode", ctypes.c_char_p),
        ("gate_activation", ctypes.c_char_p),
        ("degree", ctypes.c_int32),
        ("rotary_blocks", ctypes.c_int32),
        ("epsilon", ctypes.c_float),
        ("stateful", ctypes.c_int32),
        ("input_count", ctypes.c_int32),
        ("inputs", _Tensor * len(contract.GATED_INPUTS)),
    )


def _check_attributes(form: str, mode: str, gate_activation: str | None, **numbers: float) -> None:
    """Raise InputError for values that C would change on their way to the kernels: text with a NUL, large numbers."""
    for name, word, words in (
        ("form", form, contract.FORMS),
        ("mode", mode, contract.MODES),
        ("gate_activation", gate_activation, (*contract.GATE_ACTIVATIONS, None)),
    ):
        if word not in words:
            raise InputError(f"{name} is {word!r:.60}", f"Give one of {', '.join(filter(None, words))}")
    for name, number in numbers.items():
        is_number = isinstance(number, int) or (name == "epsilon" and isinstance(number, float))
        if not is_number or (name != "epsilon" and abs(number) >= 2**31):
            raise InputError(f"{name} is {number!r:.60}", "See docs/op.md for the values that it can have")


@functools.cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(plugin_library()))
    for function in (library.pom_cuda_workspace_bytes, library.pom_cuda_aggregate):
        function.restype = ctypes.c_char_p
    return library


def _check(error: bytes | None) -> None:
    if error is not None:
        raise InputError(
            f"the CUDA kernels refused the call: {error.decode()}", "See docs/op.md for what the op accepts"
        )


def _check_memory(name: str, tensor: torch.Tensor, needed: int, device: torch.device) -> None:
    if tensor.nbytes < needed or not tensor.is_contiguous() or tensor.device != device:
        raise InputError(
            f"{name} has {tensor.nbytes} bytes on {tensor.device}", f"Give {needed} contiguous bytes on {device}"
        )


def _present(name: str, given: torch.Tensor | None, past: torch.Tensor | None) -> torch.Tensor | None:
    """Return where a stateful call writes its new state; None for other calls."""
    if past is None:
        if given is not None:
            raise InputError(f"{name} was given without a past", "Give past_state and past_length")
        return None
    present = torch.empty_like(past) if given is None else given
    _check_memory(name, present, past.nbytes, past.device)
    return present


class CudaCall:
    """A call of the op or, with `gate`, of the gated op, which may be enqueued any number of times.

    Args:
        x: (B, N, C), float32, float16 or bfloat16.
        coefficients: (C, K), form "power" only.
        mask: (B or 1, N), bool or of x's dtype.
        cos: (B or 1, N, C / 2), float32 or of x's dtype.
        sin: as cos.
        gate: (B, T, gates), of x's dtype.
        gate_bias: (gates), float32 or of x's dtype.
        past_state: (B, 2, C) float32, the sum that the call continues from; makes the call stateful.
        past_length: (B) int64, the number of tokens in that sum.
        mode: "mean", "causal" or "features".
        form: "power" or "product".
        degree: degree of form "product"; otherwise 0.
        rotary_blocks: 1 or 2.
        epsilon: added to a sum of mask weights.
        gate_activation: "identity", "sigmoid" or "hardsigmoid" if there is a gate.
        output: the tensor to write the output to; None: a new one.
        present_state: the tensor for a stateful call's new state, which must not be past_state; None: a new one.
        present_length: the tensor for its new length, which must not be past_length; None: a new one.
        workspace: working memory, 16-byte aligned, of at least `workspace_bytes` bytes; None: a new tensor.

    Raises:
        InputError: the op does not take these shapes, dtypes, devices or attributes, or a given tensor is too small.
    """

    def __init__(
        self,
        x: torch.Tensor,
        coefficients: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        cos: torch.Tensor | None = None,
        sin: torch.Tensor | None = None,
        gate: torch.Tensor | None = None,
        gate_bias: torch.Tensor | None = None,
        past_state: torch.Tensor | None = None,
        past_length: torch.Tensor | None = None,
        *,
        mode: str = "mean",
        form: str = contract.POWER,
        degree: int = 0,
        rotary_blocks: int = 1,
        epsilon: float = 0.0,
        gate_activation: str | None = None,
        output: torch.Tensor | None = None,
        present_state: torch.Tensor | None = None,
        present_length: torch.Tensor | None = None,
        workspace: torch.Tensor | None = None,
    ) -> None:
        given = {"x": x, "gate": gate, "gate_bias": gate_bias, "coefficients": coefficients}
        given |= {"mask": mask, "cos": cos, "sin": sin, "past_state": past_state, "past_length": past_length}
        if gate is None and (gate_bias is not None or gate_activation is not None):
            raise InputError("gate_bias or gate_activation was given without gate", "Give all three, or none")
        if gate is not None and gate_activation is None:
            raise InputError("gate was given without gate_activation", "Give all three, or none")
        _check_attributes(form, mode, gate_activation, degree=degree, rotary_blocks=rotary_blocks, epsilon=epsilon)
        for name, tensor in given.items():
            if not isinstance(tensor, torch.Tensor) and (tensor is not None or name == "x"):
                raise InputError(f"{name} is {kind_of(tensor)}, not a tensor")
            if tensor is not None and tensor.device != x.device:
                raise InputError(f"{name} is on {tensor.device} and x on {x.device}", "Move all to one device")
        names = contract.INPUTS if gate is None else contract.GATED_INPUTS
        self._tensors = given  # keeps the pointers valid
        self._call = _Call(
            form.encode(),
            mode.encode(),
            None if gate_activation is None else gate_activation.encode(),
            degree,
            rotary_blocks,
            epsilon,
            past_state is not None,
            len(names),
            (_Tensor * len(contract.GATED_INPUTS))(*(_Tensor.of(name, given[name]) for name in names)),
        )
        bytes_needed = ctypes.c_int64()
        _check(_library().pom_cuda_workspace_bytes(ctypes.byref(self._call), ctypes.byref(bytes_needed)))
        self.workspace_bytes = bytes_needed.value
        tokens = gate.shape[1] if gate is not None else 1 if mode == "mean" else x.shape[1]
        shape = x.shape[0], tokens, x.shape[2]
        self.output = x.new_empty(shape) if output is None else output
        self.present_state = _present("present_state", present_state, past_state)
        self.present_length = _present("present_length", present_length, past_length)
        self._workspace = x.new_empty(self.workspace_bytes, dtype=torch.uint8) if workspace is None else workspace
        _check_memory("output", self.output, math.prod(shape) * x.itemsize, x.device)
        _check_memory("workspace", self._workspace, self.workspace_bytes, x.device)

    def enqueue(self) -> torch.Tensor:
        """Enqueue the call on torch's current stream and return its output, (B, T, C) of x's dtype.

        Raises:
            InputError: the tensors are not on a CUDA device, or CUDA refused the launch.
        """
        if not self.output.is_cuda:
            raise InputError(f"the tensors are on {self.output.device}", "Move them to a CUDA device")
        stream: Any = torch.cuda.current_stream(self.output.device)
        made = (self.output, self.present_state, self.present_length)
        outputs = (ctypes.c_void_p * len(made))(*(None if tensor is None else tensor.data_ptr() for tensor in made))
        with torch.cuda.device(self.output.device):
            _check(
                _library().pom_cuda_aggregate(
                    ctypes.byref(self._call),
                    outputs,
                    ctypes.c_void_p(self._workspace.data_ptr()),
                    ctypes.c_void_p(stream.cuda_stream),
                )
            )
        return self.output
