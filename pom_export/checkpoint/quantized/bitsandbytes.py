"""bitsandbytes: `Linear8bitLt`, and `Linear4bit` with the types nf4 and fp4, nested or not.

The layouts are those of bitsandbytes 0.50, and its formats have been the same since 0.41. The results equal its
`int8_vectorwise_dequant(weight, SCB)` and `dequantize_4bit(weight, quant_state)`, bit for bit. The latter are of the
type that the weights had before, to which bitsandbytes rounds them in every layer. In that version, its kernel for CPUs
takes other scales where a block ends within a row; the result is then that of its portable implementation, which undoes
what `quantize_4bit` does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor

from pom_export.checkpoint.quantized.tensor import (
    Found,
    LayoutError,
    QuantizedTensor,
    check_matrix,
    check_scales,
    float_type,
    rows_at_once,
    tensor_in,
)
from pom_export.errors import reason_of
from pom_export.json_text import parse_json

_SCB: Final = re.compile(r"(?P<module>(.*\.)?)SCB")
_STATE: Final = re.compile(r"(?P<weight>.+)\.quant_state\.bitsandbytes__\w+")
_ROWS: Final = 0  # the only weight_format that is written since 0.43; others are orders of certain GPUs
_PER_127: Final = 7.874015718698502e-3  # as bitsandbytes writes 1 / 127
_BLOCKS: Final = (32, 64, 128, 256, 512, 1024, 2048, 4096)
_STORAGE: Final = (torch.uint8, torch.int8, torch.float16, torch.bfloat16, torch.float32)
_PARTS: Final = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
_MOST_STATE: Final = 4096  # bytes of JSON
_STATE_KEYS: Final = {"quant_type", "blocksize", "dtype", "shape"}
_NESTED_KEYS: Final = {"nested_blocksize", "nested_dtype", "nested_offset"}

_HALF_OF_NF4: Final = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
)
_UPPER_HALF_OF_NF4: Final = (
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
_HALF_OF_FP4: Final = (
    *(0.0, 0.0052083334885537624, 0.6666666865348816, 1.0),
    *(0.3333333432674408, 0.5, 0.1666666716337204, 0.25),
)
# What each of the 16 codes stands for, in units of a block's largest magnitude: bitsandbytes.functional.get_4bit_type.
_CODES: Final = {
    "nf4": (*_HALF_OF_NF4, *_UPPER_HALF_OF_NF4),
    "fp4": (*_HALF_OF_FP4, *(-value for value in _HALF_OF_FP4)),
}


@dataclass(frozen=True)
class _Nested:
    """How the largest magnitudes of blocks are themselves quantized.

    Attributes:
        absmax: (blocks of blocks,) float32.
        codes: (256,) float32, what each byte stands for.
        block: number of values in a block.
        offset: what was subtracted before.
    """

    absmax: Tensor
    codes: Tensor
    block: int
    offset: float


def find(entries: Mapping[Any, Any]) -> Iterator[Found]:
    """Yield the weights in a state dict."""
    for key in entries:
        if not isinstance(key, str):
            continue
        if found := _SCB.fullmatch(key):
            weight, form = (f"{found['module']}{name}" for name in ("weight", "weight_format"))
            yield Found(weight, {weight, key, form} & entries.keys(), partial(_int8, entries, weight, key, form))
        elif found := _STATE.fullmatch(key):
            weight = found["weight"]
            names = {weight, *(f"{weight}.{part}" for part in _PARTS)}
            yield Found(weight, {key, *(names & entries.keys())}, partial(_four_bits, entries, weight, key))


def _int8(entries: Mapping[Any, Any], weight: str, scb: str, form: str) -> QuantizedTensor:
    stored = tensor_in(entries, weight, [torch.int8], "weight")
    scale = tensor_in(entries, scb, [torch.float32], "SCB")
    shape = check_matrix(stored.shape)
    if form in entries:
        order = tensor_in(entries, form, [torch.uint8], "weight_format")
        if order.numel() != 1 or order.item() != _ROWS:
            raise LayoutError(f"its weight_format is {order.tolist()}, an order of values for certain GPUs")
    if scale.shape != shape[:1]:
        raise LayoutError(f"its SCB is of shape {tuple(scale.shape)}, and its weight of shape {tuple(shape)}")

    def values() -> Tensor:
        check_scales(scale, "SCB", zero=True)
        _check_empty(scale, stored, "SCB")
        found = torch.empty(shape)
        for start in range(0, shape[0], step := rows_at_once(shape[1])):
            rows = slice(start, start + step)
            found[rows] = stored[rows] * scale[rows, None] * _PER_127
        return found

    return QuantizedTensor("bitsandbytes int8", shape, (stored, scale), values, activations=True)


def _four_bits(entries: Mapping[Any, Any], weight: str, key: str) -> QuantizedTensor:
    """Return a weight of two values per byte, in blocks that ignore where rows end."""
    state = _state(entries, key)
    kind, block, shape = state["quant_type"], state["blocksize"], state["shape"]
    dtype = float_type(state["dtype"])
    if kind not in list(_CODES) or not key.endswith(f"__{kind}"):
        raise LayoutError(f"its quant_type is {kind!r}, not 'nf4' or 'fp4' as its entry is named")
    if type(block) is not int or block not in _BLOCKS or dtype is None or not isinstance(shape, list):
        held = ", ".join(f"{name} {str(state[name])[:40]}" for name in ("blocksize", "dtype", "shape"))
        raise LayoutError(f"its quant_state holds {held}")
    size = check_matrix(shape)
    stored = tensor_in(entries, weight, _STORAGE, "weight")
    codes = tensor_in(entries, f"{weight}.quant_map", [torch.float32], "quant_map")
    if stored.nbytes != -(-size.numel() // 2) or not stored.is_contiguous():
        raise LayoutError(f"its weight holds {stored.nbytes:,} bytes, for half as many values as in {tuple(size)}")
    if not torch.equal(codes, torch.tensor(_CODES[kind])):
        raise LayoutError(
            f"its quant_map is not that of {kind}: {[round(code, 4) for code in codes.flatten().tolist()[:16]]}"
        )
    nested = _nested(entries, weight, state)
    absmax = tensor_in(entries, f"{weight}.absmax", [torch.uint8 if nested else torch.float32], "absmax")
    blocks = -(-size.numel() // block)
    if absmax.shape != (blocks,):
        raise LayoutError(f"its absmax is of shape {tuple(absmax.shape)}, and it has {blocks:,} blocks of {block}")
    if nested and nested.absmax.shape != (-(-blocks // nested.block),):
        raise LayoutError(f"its nested_absmax is of shape {tuple(nested.absmax.shape)}, for {blocks:,} blocks")
    parts = (stored, codes, absmax, *((nested.absmax, nested.codes) if nested else ()))
    values = partial(_decoded, stored, codes, absmax, nested, block)
    return QuantizedTensor(
        f"bitsandbytes {kind}{', nested' if nested else ''}",
        size,
        parts,
        lambda: values(size.numel()).view(size).to(dtype),
    )


def _decoded(stored: Tensor, codes: Tensor, absmax: Tensor, nested: _Nested | None, block: int, count: int) -> Tensor:
    """Return the values of a weight in 4 bits, one after another, (count,) float32."""
    largest = _unnested(absmax, nested) if nested else absmax
    if not nested:
        check_scales(largest, "absmax", zero=True)
    packed = stored.view(torch.uint8).flatten()
    found = torch.empty(len(largest), block)  # the last block may be longer than what is left of the weight
    for start in range(0, len(largest), step := rows_at_once(block)):
        by_block, scales = found[start : start + step], largest[start : start + step]
        coded = _coded(packed[start * block // 2 : (start + step) * block // 2], codes, by_block.numel())
        if not nested:
            _check_empty(scales, coded.view(by_block.shape), "absmax")
        torch.mul(coded.view(by_block.shape), scales[:, None], out=by_block)
    return found.flatten()[:count]


def _coded(packed: Tensor, codes: Tensor, count: int) -> Tensor:
    """Return what the two values in each byte stand for, the upper one first; zeros beyond, (count,)."""
    values = torch.zeros(count)
    pairs = torch.stack((codes.repeat_interleave(16), codes.repeat(16)), dim=1)  # for each byte
    found = pairs[packed.int()].flatten()[:count]
    values[: len(found)] = found
    return values


def _state(entries: Mapping[Any, Any], key: str) -> dict[str, Any]:
    """Return the JSON that is stored as the bytes of a tensor."""
    content = tensor_in(entries, key, [torch.uint8], "quant_state")
    if content.numel() > _MOST_STATE:
        raise LayoutError(f"its quant_state holds {content.numel():,} bytes, and at most {_MOST_STATE:,} are read")
    try:
        state = parse_json(bytes(content.flatten().tolist()))
    except ValueError as error:
        raise LayoutError(f"its quant_state is not readable JSON: {reason_of(error)}") from error
    keys = set(state) if isinstance(state, dict) else set()
    if keys != _STATE_KEYS and keys != _STATE_KEYS | _NESTED_KEYS:
        raise LayoutError(f"its quant_state holds {', '.join(sorted(keys)) or 'no entries'}")
    assert isinstance(state, dict)
    return state


def _nested(entries: Mapping[Any, Any], weight: str, state: Mapping[str, Any]) -> _Nested | None:
    if "nested_blocksize" not in state:
        if f"{weight}.nested_absmax" in entries:
            raise LayoutError("its absmax is nested, but its quant_state does not say how")
        return None
    block, dtype, offset = (state[key] for key in ("nested_blocksize", "nested_dtype", "nested_offset"))
    if type(block) is not int or not 0 < block < 2**31 or dtype != "float32" or type(offset) is not float or offset < 0:
        raise LayoutError(f"its nested absmax is of blocks of {block!r}, type {dtype!r} and offset {offset!r}")
    absmax = tensor_in(entries, f"{weight}.nested_absmax", [torch.float32], "nested_absmax")
    codes = tensor_in(entries, f"{weight}.nested_quant_map", [torch.float32], "nested_quant_map")
    if codes.shape != (256,):
        raise LayoutError(f"its nested_quant_map is of shape {tuple(codes.shape)}, not (256,)")
    return _Nested(absmax, codes, block, offset)


def _unnested(absmax: Tensor, nested: _Nested) -> Tensor:
    """Return the largest magnitude of each block, (blocks,)."""
    check_scales(nested.absmax, "nested_absmax", zero=True)
    if not torch.isfinite(nested.codes).all():
        raise LayoutError("its nested_quant_map holds a value that is not finite")
    scale = nested.absmax[torch.arange(len(absmax)) // nested.block]
    return nested.codes[absmax.long()] * scale + torch.tensor(nested.offset)


def _check_empty(scales: Tensor, rows: Tensor, what: str) -> None:
    """Refuse a scale of 0 for values other than 0, which only a block of zeros can have."""
    lost = (scales == 0) & (rows != 0).any(dim=1)
    if lost.any():
        raise LayoutError(f"its {what} is 0 for {int(lost.sum())} blocks of values that are not")
