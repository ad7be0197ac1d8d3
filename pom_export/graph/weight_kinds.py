"""Weights that can't be written to a file as they are: refused by name, with what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from pom_export.errors import InputError

_PLAIN_CLASSES = (Tensor, nn.Parameter, nn.Buffer)
# Modules whose weights are packed for kernels of their own, by where their classes come from.
_QUANTIZED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "bitsandbytes.", "torchao.", "auto_gptq.")
_BEFORE = "Export the model as it was before that"
# What may be wrong with one tensor, and what to do.
_KINDS: tuple[tuple[Callable[[Tensor], bool], str, str], ...] = (
    (
        lambda tensor: isinstance(tensor, (UninitializedParameter, UninitializedBuffer)),
        "has no size yet (a lazy module)",
        "Call the model once on the example inputs first",
    ),
    (
        lambda tensor: isinstance(tensor, FakeTensor) or tensor.is_meta,
        "has no values (device meta)",
        "Load its weights",
    ),
    (lambda tensor: tensor.is_quantized, "is quantized", _BEFORE),
    (lambda tensor: tensor.layout != torch.strided, "is sparse", "Replace it by its to_dense()"),
    (
        lambda tensor: hasattr(tensor, "full_tensor"),
        "is spread over processes (DTensor)",
        "Replace it by its full_tensor()",
    ),
    (
        lambda tensor: type(tensor) not in _PLAIN_CLASSES and hasattr(tensor, "__tensor_flatten__"),
        "is of a class of its own",
        "Replace it by a plain tensor (often: dequantize())",
    ),
)


def check_weights(module: nn.Module) -> None:
    """Raise InputError for what a module holds that can't be traced, with its name and class."""
    for name, part in module.named_modules():
        where = f"{name} ({_class(part)})" if name else f"the model ({_class(part)})"
        if isinstance(part, torch.jit.ScriptModule):
            raise InputError(
                f"{where} is a TorchScript module, whose Python code is gone",
                "Put the module that it was made of in its place",
            )
        if _full_class(part).startswith(_QUANTIZED):
            raise InputError(f"{where} holds quantized weights, which are packed for kernels of their own", _BEFORE)
    for name, tensor in _weights(module):
        for is_kind, what, remedy in _KINDS:
            if is_kind(tensor):
                raise InputError(f"{name} {what}: {type(tensor).__name__}", remedy)


def _weights(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _class(module: nn.Module) -> str:
    # TorchScript's wrappers know the name of what they were made of.
    return str(getattr(module, "original_name", type(module).__name__))


def _full_class(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"
