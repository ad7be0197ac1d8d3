"""Lay weights out as the kernels of fused nodes read them."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

TILE: Final = 16
"""How many outputs are computed at a time."""
_NIBBLE: Final = 4
# A cache's worth of outputs is packed at a time.
_ROWS: Final = 64 * TILE


def pack_product(
    packed: npt.NDArray[Any], scales: npt.NDArray[Any], width: int, block: int, bits: int
) -> npt.NDArray[np.uint8]:
    """Return int4 or int8 weights in tiles of 16 outputs.

    A tile has, for each block of inputs, the 16 outputs' float32 scales and then chunks of 64 bytes. Byte 4 j + i of
    chunk c holds what output j has for the block's input 4 c + i, or with 4 bits, for the inputs 8 c + i (low bits) and
    8 c + 4 + i (high bits). Outputs are filled up with scales of 0.

    Args:
        packed: uint8, MatMulNBits' (N, blocks, block * bits / 8), in any shape: of each byte, the low bits come first.
        scales: float32, (N, blocks), in any shape.
        width: N.
        block: inputs with a scale in common, a multiple of 16.
        bits: of a weight, 4 or 8.

    Returns:
        The bytes, of rank 1: 64 + 2 * bits * block for each block of each tile.
    """
    chunks = block * bits // 32
    words = np.ascontiguousarray(packed).reshape(width, -1, chunks, 4).view("<u4")[..., 0]
    blocks = words.shape[1]
    tiles = -(-width // TILE)
    out = np.zeros((tiles, blocks, TILE * (1 + chunks)), "<u4")
    numbers = np.zeros((tiles * TILE, blocks), "<f4")
    numbers[:width] = scales.reshape(width, blocks)
    out[..., :TILE] = numbers.view("<u4").reshape(tiles, TILE, blocks).transpose(0, 2, 1)
    spread = _spread() if bits == _NIBBLE else None
    for first in range(0, width, _ROWS):
        part = words[first : first + _ROWS]
        filled = np.zeros((-(-len(part) // TILE) * TILE, blocks, chunks), "<u4")
        if spread is None:
            filled[: len(part)] = part
        else:
            halves = part.view("<u2").reshape(*part.shape, 2)
            filled[: len(part)] = spread[halves[..., 0]] | spread[halves[..., 1]] << np.uint32(4)
        tile = first // TILE
        ordered = filled.reshape(-1, TILE, blocks, chunks).transpose(0, 2, 3, 1)
        out[tile : tile + len(ordered), :, TILE:] = ordered.reshape(len(ordered), blocks, chunks * TILE)
    return out.reshape(-1).view(np.uint8)


def _spread() -> npt.NDArray[np.uint32]:
    """Return, for each 16 bits, their four integers of 4 bits in a byte each."""
    word = np.arange(1 << 16, dtype=np.uint32)
    return sum(((word >> np.uint32(4 * i)) & np.uint32(15)) << np.uint32(8 * i) for i in range(4))  # type: ignore[return-value]


def pack_groups(weight: npt.NDArray[Any], groups: int) -> npt.NDArray[np.float32]:
    """Return a grouped convolution's weight in tiles of 16 outputs: (groups, tiles, inputs, 16), filled up with zeros.

    Args:
        weight: float32, (groups * outputs, inputs, 1).
        groups: how many groups.
    """
    outputs, inputs = weight.shape[0] // groups, weight.shape[1]
    tiles = -(-outputs // TILE)
    padded = np.zeros((groups, tiles * TILE, inputs), np.float32)
    padded[:, :outputs] = weight.reshape(groups, outputs, inputs)
    return np.ascontiguousarray(padded.reshape(groups, tiles, TILE, inputs).transpose(0, 1, 3, 2))
