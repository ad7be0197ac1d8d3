"""Reject weights that cannot be written to a file as they are, by name and with what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from pom_export.errors import InputError
from pom_export.graph.wrappers import plain_name

_PLAIN_CLASSES = (Tensor, nn.Parameter, nn.Buffer)
# Packages with modules whose weights are packed for special kernels.
_QUANTIZED = (
    *("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.ao.nn.qat", "torch.ao.nn.intrinsic.qat"),
    *("torch.ao.quantization.fake_quantize", "bitsandbytes", "torchao", "auto_gptq", "gptqmodel", "awq", "hqq"),
    "optimum.quanto",
)
_BEFORE = (
    "Export the model as it was before that, and quantize the file (`pom-export quantize`); dtype='float16' or "
    "'bfloat16' makes it smaller too"
)
_SCHEME = "quantization_scheme"  # the attribute of any module that compressed-tensors quantizes
_GATHER = (
    "Build the model without sharding, and load into it what torch.distributed.checkpoint.state_dict."
    "get_model_state_dict returns with StateDictOptions(full_state_dict=True)"
)
# What may be wrong with a tensor, and what to do.
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
    (lambda tensor: hasattr(tensor, "full_tensor"), "is spread over processes (DTensor)", _GATHER),
    (
        lambda tensor: type(tensor).__module__.startswith("torchao."),
        "is quantized by torchao",
        "Replace it by its dequantize(), and quantize the exported file (`pom-export quantize`)",
    ),
    (
        lambda tensor: type(tensor) not in _PLAIN_CLASSES and hasattr(tensor, "__tensor_flatten__"),
        "is of a class of its own",
        "Replace it by a plain tensor (often: dequantize())",
    ),
)


def check_weights(module: nn.Module) -> None:
    """Raise InputError if a module contains something that can't be traced, with its name and class."""
    for wrapped_name, part in module.named_modules():
        name = plain_name(wrapped_name)
        where = f"{name} ({_class(part)})" if name else f"the model ({_class(part)})"
        if isinstance(part, torch.jit.ScriptModule):
            raise InputError(
                f"{where} is a TorchScript module, whose Python code is no longer there",
                "Use the module that it was made from instead",
            )
        if package := _quantizer(part):
            raise InputError(f"{where} holds quantized weights, which only {package}'s kernels can use", _BEFORE)
        if _is_sharded(part):
            raise InputError(f"{where} holds its weights in pieces (FullyShardedDataParallel)", _GATHER)
    for name, tensor in _weights(module):
        for is_kind, what, remedy in _KINDS:
            if is_kind(tensor):
                raise InputError(f"{plain_name(name)} {what}: {type(tensor).__name__}", remedy)


def _quantizer(part: nn.Module) -> str:
    """Return the package whose kernels a module needs for its weights; "" for others."""
    if type(vars(part).get(_SCHEME)).__module__.startswith("compressed_tensors."):
        return "compressed_tensors"
    return next((each for each in _QUANTIZED if type(part).__module__.startswith(f"{each}.")), "")


def _is_sharded(part: nn.Module) -> bool:
    """Return whether a module is a wrapper whose parts only have views or pieces of its parameters."""
    sharded = getattr(vars(part).get("_handle"), "uses_sharded_strategy", False)
    return "_flat_param" in part._parameters or bool(sharded)


def _weights(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _class(module: nn.Module) -> str:
    # TorchScript's wrappers store the name of the original class.
    return str(getattr(module, "original_name", type(module).__name__))
