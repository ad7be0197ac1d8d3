"""compressed-tensors: pack-quantized (int4, int8 in words of 32 bits), int-quantized (int8), float-quantized (float8).

The layouts are those of compressed-tensors 0.20; the order of columns in `weight_g_idx` is that of 0.10, and later
versions don't write it. The results equal what these versions' `decompress` gives, bit for bit, which is of the type
of the scales.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor

from pom_export.checkpoint.quantized.compressed_config import METHOD, Scheme, schemes_in
from pom_export.checkpoint.quantized.compressed_scales import SCALE, ScaleLayout
from pom_export.checkpoint.quantized.tensor import (
    FLOAT8,
    FLOATS,
    Found,
    LayoutError,
    QuantizedTensor,
    check_matrix,
    tensor_in,
)

_PACKED: Final = "weight_packed"
_PARTS: Final = (
    *("weight", _PACKED, SCALE, "weight_zero_point", "weight_shape", "weight_g_idx", "weight_global_scale"),
    *("meta", "input_scale", "input_zero_point", "output_scale", "output_zero_point"),
)
_BITS: Final = (4, 8)  # values of the other widths cross words, in an order that has changed between versions
_WORD: Final = 32
_MOST_DIMENSIONS: Final = 8


def find(entries: Mapping[Any, Any], config: Mapping[str, Any] | None) -> Iterator[Found]:
    """Yield the weights in a state dict.

    Args:
        entries: the state dict, and other things among it.
        config: `quantization_config` of the config.json beside the file, or None.
    """
    ours = config is not None and config.get("quant_method") == METHOD
    for key in entries:
        if not isinstance(key, str):
            continue
        owner, _, last = key.rpartition(".")
        start = f"{owner}." if owner else ""
        if last != _PACKED and not (last == SCALE and ours and f"{start}{_PACKED}" not in entries):
            continue
        parts = {name: entries[f"{start}{name}"] for name in _PARTS if f"{start}{name}" in entries}
        read = _packed if last == _PACKED else _plain
        yield Found(f"{start}weight", {f"{start}{name}" for name in parts}, partial(read, parts, config))


def _packed(parts: Mapping[str, Any], config: Mapping[str, Any] | None) -> QuantizedTensor:
    if "weight" in parts:
        raise LayoutError("it is there too, beside its weight_packed")
    if "meta" in parts:
        raise LayoutError("it has a part named meta, as sparse weights have")
    if "weight_global_scale" in parts:
        raise LayoutError("it has a weight_global_scale, as 4-bit floating-point numbers have (NVFP4)")
    packed = tensor_in(parts, _PACKED, [torch.int32])
    shape = _shape(parts)
    schemes = schemes_in(config)
    bits = _bits(packed, shape, schemes)
    scale = tensor_in(parts, SCALE, FLOATS)
    fitting = None if schemes is None else [each for each in schemes if each.bits == bits and not each.is_float]
    layout = ScaleLayout.of(parts, shape, scale, fitting)
    zero_point = _packed_zero_point(parts, layout, bits)

    def values() -> Tensor:
        return layout.values(_unpacked(packed, bits, shape[1]), zero_point)

    return layout.tensor(f"compressed-tensors int{bits}, packed", (packed, scale, zero_point), values)


def _plain(parts: Mapping[str, Any], config: Mapping[str, Any] | None) -> QuantizedTensor:
    if "weight_global_scale" in parts:
        raise LayoutError("it has a weight_global_scale, as 4-bit floating-point numbers have (NVFP4)")
    stored = tensor_in(parts, "weight", [torch.int8, FLOAT8[0]])
    scale = tensor_in(parts, SCALE, FLOATS)
    shape = check_matrix(stored.shape)
    is_float = stored.dtype.is_floating_point
    fitting = [each for each in schemes_in(config) or () if each.is_float == is_float]
    layout = ScaleLayout.of(parts, shape, scale, fitting)
    zero_point = None
    if "weight_zero_point" in parts:
        zero_point = tensor_in(parts, "weight_zero_point", [stored.dtype, torch.int8])
    kind = "float8" if is_float else "int8"
    return layout.tensor(
        f"compressed-tensors {kind}", (stored, scale, zero_point), partial(layout.values, stored, zero_point)
    )


def _shape(parts: Mapping[str, Any]) -> torch.Size:
    """Return the shape of the weight before it was packed."""
    shape = tensor_in(parts, "weight_shape", [torch.int64, torch.int32])
    if shape.ndim != 1 or shape.numel() > _MOST_DIMENSIONS:
        raise LayoutError(f"its weight_shape is itself of shape {tuple(shape.shape)}")
    return check_matrix([int(extent) for extent in shape])


def _bits(packed: Tensor, shape: torch.Size, schemes: Sequence[Scheme] | None) -> int:
    """Return how many bits each value takes, judging by the number of words in a row."""
    possible = {each.bits for each in schemes if not each.is_float} if schemes is not None else set(_BITS)
    fitting = [bits for bits in sorted(possible) if packed.shape == (shape[0], -(-shape[1] * bits // _WORD))]
    if len(fitting) != 1 or fitting[0] not in _BITS:
        found = " and ".join(map(str, fitting)) or "no number of"
        raise LayoutError(
            f"its weight_packed of shape {tuple(packed.shape)} holds values of {found} bits, for its weight_shape "
            f"{tuple(shape)}; 4 and 8 are read"
        )
    return fitting[0]


def _unpacked(packed: Tensor, bits: int, columns: int) -> Tensor:
    """Return the signed values in rows of words, the lowest bits of a word first: (rows, columns) int8."""
    shifts = torch.arange(0, _WORD, bits, dtype=torch.int32)
    values = (packed[:, :, None] >> shifts) & ((1 << bits) - 1)
    return (values.flatten(1)[:, :columns] - (1 << (bits - 1))).to(torch.int8)


def _packed_zero_point(parts: Mapping[str, Any], layout: ScaleLayout, bits: int) -> Tensor | None:
    """Return the zero points, which are packed along the rows unless there is only one."""
    if "weight_zero_point" not in parts:
        return None
    zero_point = tensor_in(parts, "weight_zero_point", [torch.int32, torch.int8])
    if zero_point.dtype == torch.int8:
        return zero_point
    rows, columns = layout.scale.shape
    if zero_point.shape != (-(-rows * bits // _WORD), columns):
        raise LayoutError(f"its weight_zero_point is of shape {tuple(zero_point.shape)}, for {rows} rows of {columns}")
    return _unpacked(zero_point.T, bits, rows).T
