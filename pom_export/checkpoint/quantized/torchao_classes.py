"""torchao's classes of tensors, and what each stands for.

The results equal, bit for bit, what torchao 0.18 computes from its classes: `Int8Tensor.dequantize(torch.float32)`,
`Float8Tensor.dequantize(torch.float32)` and `IntxUnpackedToInt8Tensor.dequantize()`. The last is of the type that the
weights had before, to which torchao rounds them in every layer. The older `AffineQuantizedTensor` is that of 0.13 to
0.16: `dequantize(torch.float32)` with a plain layout, `dequantize()` with that of small integers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor

from pom_export.checkpoint.quantized.tensor import (
    FLOAT8,
    FLOATS,
    LayoutError,
    QuantizedTensor,
    affine,
    check_matrix,
    check_scales,
    float_type,
    tensor_in,
)
from pom_export.checkpoint.storages import OtherTensor
from pom_export.checkpoint.unpickling import Inert

_WRAPPER: Final = "torch._utils._rebuild_wrapper_subclass"
# Parts and attributes that change what a layer computes from the weight, other than those of each class.
_PRE_SCALE: Final = "act_pre_scale"
_OF_ACTIVATIONS: Final = ("act_quant_kwargs", "activation_quantization", "act_quant_scale", "act_quant_zero_point")
# The tensors of all known classes. Those of `zero_point` also end like a part named `point` would, which none is.
PARTS: Final = ("qdata", "scale", "zero_point", "act_quant_scale", "act_quant_zero_point", _PRE_SCALE)
_IMPLEMENTATION: Final = "tensor_impl"
# The implementations without a packing, and whether a layer rounds their weights to the type that they had before.
_SMALL_INTEGERS: Final = {"PlainAQTTensorImpl": False, "QDQTensorImpl": True}
# Arguments of the enumeration ZeroPointDomain, and whether there are zero points: INT and NONE.
_ZERO_POINT_DOMAINS: Final[Mapping[Any, bool]] = {(1,): True, (3,): False}
# Attributes that only choose a kernel.
_WITHOUT_EFFECT: Final = ("mm_config", "kernel_preference", "reduce_range")


@dataclass(frozen=True)
class Taken:
    """A tensor of torchao, taken apart.

    Attributes:
        name: its class, without the module.
        parts: tensors by name, and None for absent ones.
        attributes: everything else, types as their names.
    """

    name: str
    parts: Mapping[str, Any]
    attributes: Mapping[str, Any]

    def check_known(self, *known: str) -> None:
        """Refuse anything that newer versions may have added, since it may change the values."""
        others = {**self.parts, **self.attributes}
        names = {*known, *_OF_ACTIVATIONS, *_WITHOUT_EFFECT, "dtype"}
        if extra := [name for name, value in others.items() if name not in names and value is not None]:
            if extra == [_PRE_SCALE]:
                raise LayoutError("its layer also multiplies its input, by an act_pre_scale")
            raise LayoutError(f"it has {', '.join(sorted(extra))[:80]}, which is not known")

    def dtype(self) -> torch.dtype:
        """Return the type that the weight had before."""
        dtype = float_type(self.attributes.get("dtype"))
        if dtype is None:
            raise LayoutError(f"its dtype is {str(self.attributes.get('dtype'))[:40]}, not a type of weights")
        return dtype

    def blocks(self, shape: torch.Size) -> tuple[int, int]:
        """Return how many rows and columns share a scale."""
        said = self.attributes.get("block_size")
        blocks = said if isinstance(said, (list, tuple)) else ()
        good = len(blocks) == len(shape) and all(type(extent) is int and extent > 0 for extent in blocks)
        if not good or any(extent % block for extent, block in zip(shape, blocks, strict=True)):
            raise LayoutError(f"its block_size is {str(said)[:80]}, and its shape is {tuple(shape)}")
        return int(blocks[0]), int(blocks[1])

    @property
    def activations(self) -> bool:
        """Whether its layer quantized its input as well."""
        return any({**self.parts, **self.attributes}.get(name) is not None for name in _OF_ACTIVATIONS)


def unpickled(value: OtherTensor) -> Taken | None:
    """Return what torch.save stores of a tensor of a known class; None for others."""
    kind = value.contents[0] if value.contents and value.name == _WRAPPER else None
    if not isinstance(kind, Inert) or not kind.name.startswith("torchao.") or not isinstance(value.state, Mapping):
        return None
    name = kind.name.rpartition(".")[2]
    if name not in CLASSES:
        return None
    state = {str(key): part for key, part in value.state.items()}
    parts = {key: part for key, part in state.items() if isinstance(part, (Tensor, OtherTensor))}
    # The type is the wrapper's, an argument of the function that makes it.
    attributes = {**state, "dtype": value.contents[1] if len(value.contents) > 1 else None}
    return Taken(name, parts, {key: _type_name(part) for key, part in attributes.items() if key not in parts})


def _type_name(value: Any) -> Any:
    """Return the name of a type of numbers, and any other value as it is."""
    return value.name.removeprefix("torch.") if isinstance(value, Inert) and value.name.startswith("torch.") else value


def _int8(taken: Taken) -> QuantizedTensor:
    taken.check_known("qdata", "scale", "zero_point", "block_size")
    stored, scale, blocks = _stored(taken, [torch.int8], FLOATS)
    zero_point = _zero_point(taken, scale, [torch.int8])
    taken.dtype()

    def values() -> Tensor:
        check_scales(scale, "scale")
        return affine(stored, scale, zero_point, blocks, torch.float32)

    return _made(taken, "int8", stored, (scale, zero_point), values)


def _intx(taken: Taken) -> QuantizedTensor:
    taken.check_known("qdata", "scale", "zero_point", "block_size", "target_dtype")
    stored, scale, blocks = _stored(taken, [torch.int8], FLOATS)
    zero_point = _zero_point(taken, scale, [torch.int8, *FLOATS])
    kind, dtype = taken.attributes.get("target_dtype"), taken.dtype()
    if not isinstance(kind, str) or kind not in _INTEGERS:
        raise LayoutError(f"its target_dtype is {str(kind)[:40]}, not one of int1 to int8")
    if zero_point is None:
        raise LayoutError("its zero_point is missing")
    low, high = -(1 << (_INTEGERS[kind] - 1)), (1 << (_INTEGERS[kind] - 1)) - 1

    def values() -> Tensor:
        check_scales(scale, "scale")
        _check_finite(zero_point)
        _check_range(stored, low, high)
        return affine(stored, scale, zero_point, blocks, dtype)

    return _made(taken, str(kind), stored, (scale, zero_point), values)


_INTEGERS: Final = {f"int{bits}": bits for bits in range(1, 9)}


def _float8(taken: Taken) -> QuantizedTensor:
    taken.check_known("qdata", "scale", "block_size")
    stored, scale, blocks = _stored(taken, FLOAT8, [torch.float32])
    taken.dtype()

    def values() -> Tensor:
        check_scales(scale, "scale")
        return affine(stored, scale, None, blocks, torch.float32)

    return _made(taken, "float8", stored, (scale,), values)


def _affine_quantized(taken: Taken) -> QuantizedTensor:
    """Return a weight of the class that torchao used up to 0.16, whose numbers another of its classes holds."""
    taken.check_known(_IMPLEMENTATION, "block_size", "quant_min", "quant_max", "zero_point_domain")
    inner, name = taken.parts.get(_IMPLEMENTATION), "none"
    if isinstance(inner, OtherTensor) and inner.contents and isinstance(inner.contents[0], Inert):
        name = inner.contents[0].name.rpartition(".")[2]
    if not isinstance(inner, OtherTensor) or name not in _SMALL_INTEGERS or not isinstance(inner.state, Mapping):
        raise LayoutError(f"its tensor_impl is {name[:40]}, which is packed for a kernel")
    held = {str(key): part for key, part in inner.state.items() if part is not None}
    if extra := sorted(held.keys() - {"int_data", "scale", "zero_point", "_layout"}):
        raise LayoutError(f"its tensor_impl has {', '.join(extra)[:80]}, which is not known")
    # The same as the newer classes, by other names and with scales of fewer dimensions.
    stored = tensor_in(held, "int_data", [torch.int8])
    blocks = taken.blocks(check_matrix(stored.shape))
    grid = (stored.shape[0] // blocks[0], stored.shape[1] // blocks[1])
    scale = _on_grid(tensor_in(held, "scale", FLOATS), grid, "scale")
    zero_point = None
    if _has_zero_points(taken) and "zero_point" in held:
        held_points = tensor_in(held, "zero_point", [torch.int8, torch.int32, torch.int64, *FLOATS])
        zero_point = _on_grid(held_points, grid, "zero_point")
    low, high = _range(taken)
    dtype = taken.dtype() if _SMALL_INTEGERS[name] else torch.float32

    def values() -> Tensor:
        check_scales(scale, "scale")
        _check_finite(zero_point)
        _check_range(stored, low, high)
        return affine(stored, scale, zero_point, blocks, dtype)

    kind = f"int{(high - low).bit_length()}"
    return _made(taken, kind, stored, (scale, zero_point), values)


def _on_grid(part: Tensor, grid: tuple[int, int], what: str) -> Tensor:
    """Return scales or zero points by rows and columns of blocks, of which only extents of 1 may be left out."""
    if [extent for extent in part.shape if extent != 1] != [extent for extent in grid if extent != 1]:
        raise LayoutError(f"its {what} is of shape {tuple(part.shape)}, and it has {grid} blocks")
    return part.reshape(grid)


def _has_zero_points(taken: Taken) -> bool:
    domain = taken.attributes.get("zero_point_domain")
    number = domain.contents if isinstance(domain, Inert) else None
    if number not in _ZERO_POINT_DOMAINS:
        raise LayoutError(f"its zero_point_domain is {str(number)[:40]}, that of a kernel")
    return _ZERO_POINT_DOMAINS[number]


def _range(taken: Taken) -> tuple[int, int]:
    """Return the least and the largest of the numbers that may be stored."""
    low, high = (taken.attributes.get(name) for name in ("quant_min", "quant_max"))
    if low is None and high is None:
        return -128, 127
    if type(low) is not int or type(high) is not int or not -128 <= low < high <= 127:
        raise LayoutError(f"its quant_min is {str(low)[:40]}, its quant_max {str(high)[:40]}")
    return low, high


def _with_inputs(taken: Taken) -> QuantizedTensor:
    """Return a weight whose layer quantizes its input, which another tensor holds."""
    taken.check_known("original_weight_tensor", "input_quant_func", "quant_kwargs")
    held = taken.parts.get("original_weight_tensor")
    inner = unpickled(held) if isinstance(held, OtherTensor) else None
    if inner is None or inner.name == taken.name:
        raise LayoutError("its original_weight_tensor is of a class that is not known")
    return replace(CLASSES[inner.name](inner), activations=True)


# How to read each class. The others are packed for one kind of kernel, and have no values of their own.
CLASSES: Final[Mapping[str, Callable[[Taken], QuantizedTensor]]] = {
    "Int8Tensor": _int8,
    "IntxUnpackedToInt8Tensor": _intx,
    "Float8Tensor": _float8,
    "AffineQuantizedTensor": _affine_quantized,
    "LinearActivationQuantizedTensor": _with_inputs,
}


def _stored(
    taken: Taken, dtypes: Sequence[torch.dtype], scales: Sequence[torch.dtype]
) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """Return the narrow numbers, their scales, and the block that shares one."""
    stored = tensor_in(taken.parts, "qdata", dtypes)
    scale = tensor_in(taken.parts, "scale", scales)
    shape = check_matrix(stored.shape)
    blocks = taken.blocks(shape)
    grid = (shape[0] // blocks[0], shape[1] // blocks[1])
    if scale.shape != grid:
        raise LayoutError(f"its scale is of shape {tuple(scale.shape)}, and it has {grid} blocks of {blocks}")
    return stored, scale, blocks


def _check_finite(zero_point: Tensor | None) -> None:
    if zero_point is not None and not torch.isfinite(zero_point).all():
        raise LayoutError("its zero_point holds a value that is not finite")


def _check_range(stored: Tensor, low: int, high: int) -> None:
    least, most = (int(value) for value in stored.aminmax())
    if least < low or most > high:
        raise LayoutError(f"its numbers reach from {least} to {most}, and its type from {low} to {high}")


def _zero_point(taken: Taken, scale: Tensor, dtypes: Sequence[torch.dtype]) -> Tensor | None:
    if taken.parts.get("zero_point") is None:
        return None
    zero_point = tensor_in(taken.parts, "zero_point", dtypes)
    if zero_point.shape != scale.shape:
        raise LayoutError(f"its zero_point is of shape {tuple(zero_point.shape)}, its scale of {tuple(scale.shape)}")
    return zero_point


def _made(
    taken: Taken, kind: str, stored: Tensor, others: Sequence[Tensor | None], values: Callable[[], Tensor]
) -> QuantizedTensor:
    parts = (stored, *(part for part in others if part is not None))
    return QuantizedTensor(f"torchao {kind}", torch.Size(stored.shape), parts, values, taken.activations)
