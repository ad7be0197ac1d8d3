"""torchao: tensors of its own classes, pickled by torch.save or taken apart for safetensors.

The classes are those of torchao 0.18. The results equal, bit for bit, what it computes from them:
`Int8Tensor.dequantize(torch.float32)`, `Float8Tensor.dequantize(torch.float32)` and
`IntxUnpackedToInt8Tensor.dequantize()`; the last is of the type that the weights had before, to which torchao rounds
them in every layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor

from pom_export.checkpoint.quantized.tensor import (
    FLOAT8,
    FLOATS,
    Found,
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
from pom_export.errors import reason_of
from pom_export.json_text import parse_json

_NAMES: Final = "tensor_names"  # the entry of a safetensors file's metadata that lists the weights
_PLAIN: Final = "Tensor"
_WRAPPER: Final = "torch._utils._rebuild_wrapper_subclass"
# Parts and attributes that change what a layer computes from the weight, other than those of each class.
_PRE_SCALE: Final = "act_pre_scale"
_OF_ACTIVATIONS: Final = ("act_quant_kwargs", "activation_quantization", "act_quant_scale", "act_quant_zero_point")
# The tensors of all known classes. Those of `zero_point` also end like a part named `point` would, which none is.
_PARTS: Final = ("qdata", "scale", "zero_point", "act_quant_scale", "act_quant_zero_point", _PRE_SCALE)
# Attributes that only choose a kernel.
_WITHOUT_EFFECT: Final = ("mm_config", "kernel_preference", "reduce_range")


@dataclass(frozen=True)
class _Taken:
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


def find(entries: Mapping[Any, Any], metadata: Mapping[str, str]) -> Iterator[Found]:
    """Yield the weights in a state dict.

    Args:
        entries: the state dict, and other things among it.
        metadata: that of the safetensors file.
    """
    for key, value in entries.items():
        if isinstance(key, str) and isinstance(value, OtherTensor) and (taken := _unpickled(value)) is not None:
            yield Found(key, {key}, partial(_CLASSES[taken.name], taken))
    parts: dict[str, dict[str, str]] = {}
    for entry in entries:
        for part in _PARTS:
            if isinstance(entry, str) and entry.endswith(f"_{part}"):
                parts.setdefault(entry.removesuffix(f"_{part}"), {})[part] = entry
    for key in _listed(metadata):
        module, _, name = key.rpartition(".")
        held = parts.get(f"{module}._{name}")
        if held and key in metadata:
            values = {part: entries[entry] for part, entry in held.items()}
            yield Found(key, {*held.values(), key} & entries.keys(), partial(_from_text, metadata[key], values))


def _unpickled(value: OtherTensor) -> _Taken | None:
    """Return what torch.save stores of a tensor of a known class; None for others."""
    kind = value.contents[0] if value.contents and value.name == _WRAPPER else None
    if not isinstance(kind, Inert) or not kind.name.startswith("torchao.") or not isinstance(value.state, Mapping):
        return None
    name = kind.name.rpartition(".")[2]
    if name not in _CLASSES:
        return None
    parts = {key: part for key, part in value.state.items() if isinstance(part, (Tensor, OtherTensor))}
    rest = {key: part for key, part in value.state.items() if key not in parts}
    # The type is the wrapper's, an argument of the function that makes it.
    attributes = {**rest, "dtype": value.contents[1] if len(value.contents) > 1 else None}
    return _Taken(name, parts, {str(key): _type_name(part) for key, part in attributes.items()})


def _type_name(value: Any) -> Any:
    """Return the name of a type of numbers, and any other value as it is."""
    return value.name.removeprefix("torch.") if isinstance(value, Inert) and value.name.startswith("torch.") else value


def _listed(metadata: Mapping[str, str]) -> list[str]:
    """Return the names of the weights that torchao lists in a file's metadata."""
    try:
        names = parse_json(metadata.get(_NAMES, "[]"))
    except ValueError:
        return []
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def _from_text(text: str, parts: Mapping[str, Any]) -> QuantizedTensor:
    """Return a weight whose attributes are described in a file's metadata."""
    try:
        described = parse_json(text)
    except ValueError as error:
        raise LayoutError(f"its metadata is not readable JSON: {reason_of(error)}") from error
    kind, data, names = (described.get(key) if isinstance(described, dict) else None for key in _DESCRIBED)
    if not isinstance(kind, str) or kind not in _CLASSES:
        raise LayoutError(f"it is of torchao's class {str(kind)[:40]}, which is packed for a kernel, or new")
    if not isinstance(data, dict) or not isinstance(names, list) or sorted(map(str, names)) != sorted(parts):
        raise LayoutError(f"its parts are {', '.join(sorted(parts))}, but its metadata lists {str(names)[:80]}")
    attributes = {key: value.get("_data") if _is_type(value) else value for key, value in data.items()}
    return _CLASSES[kind](_Taken(kind, parts, attributes))


_DESCRIBED: Final = ("_type", "_data", "_tensor_data_names")


def _is_type(value: Any) -> bool:
    return isinstance(value, dict) and value.get("_type") == "torch.dtype"


def _int8(taken: _Taken) -> QuantizedTensor:
    taken.check_known("qdata", "scale", "zero_point", "block_size")
    stored, scale, blocks = _stored(taken, [torch.int8], FLOATS)
    zero_point = _zero_point(taken, scale, [torch.int8])
    taken.dtype()

    def values() -> Tensor:
        check_scales(scale, "scale")
        return affine(stored, scale, zero_point, blocks, torch.float32)

    return _made(taken, "int8", stored, (scale, zero_point), values)


def _intx(taken: _Taken) -> QuantizedTensor:
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
        if zero_point.is_floating_point() and not torch.isfinite(zero_point).all():
            raise LayoutError("its zero_point holds a value that is not finite")
        least, most = (int(value) for value in stored.aminmax())
        if least < low or most > high:
            raise LayoutError(f"its qdata reaches from {least} to {most}, and {kind} from {low} to {high}")
        return affine(stored, scale, zero_point, blocks, dtype)

    return _made(taken, str(kind), stored, (scale, zero_point), values)


_INTEGERS: Final = {f"int{bits}": bits for bits in range(1, 9)}


def _float8(taken: _Taken) -> QuantizedTensor:
    taken.check_known("qdata", "scale", "block_size")
    stored, scale, blocks = _stored(taken, FLOAT8, [torch.float32])
    taken.dtype()

    def values() -> Tensor:
        check_scales(scale, "scale")
        return affine(stored, scale, None, blocks, torch.float32)

    return _made(taken, "float8", stored, (scale,), values)


# How to read each class. The others are packed for one kind of kernel, and have no values of their own.
_CLASSES: Final[Mapping[str, Callable[[_Taken], QuantizedTensor]]] = {
    "Int8Tensor": _int8,
    "IntxUnpackedToInt8Tensor": _intx,
    "Float8Tensor": _float8,
}


def _stored(
    taken: _Taken, dtypes: Sequence[torch.dtype], scales: Sequence[torch.dtype]
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


def _zero_point(taken: _Taken, scale: Tensor, dtypes: Sequence[torch.dtype]) -> Tensor | None:
    if taken.parts.get("zero_point") is None:
        return None
    zero_point = tensor_in(taken.parts, "zero_point", dtypes)
    if zero_point.shape != scale.shape:
        raise LayoutError(f"its zero_point is of shape {tuple(zero_point.shape)}, its scale of {tuple(scale.shape)}")
    return zero_point


def _made(
    taken: _Taken, kind: str, stored: Tensor, others: Sequence[Tensor | None], values: Callable[[], Tensor]
) -> QuantizedTensor:
    parts = (stored, *(part for part in others if part is not None))
    return QuantizedTensor(f"torchao {kind}", torch.Size(stored.shape), parts, values, taken.activations)
