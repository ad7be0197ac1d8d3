"""The functions of `plugins/cpu/products/products.h`, called through the library, and what they read and write."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pom_export.runtime.library import custom_ops_library

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
Doubles = npt.NDArray[np.float64]

TILE: Final = 16
ACTIVATIONS: Final = ("none", "gelu", "relu", "silu")
_POINTER, _COUNT, _FLOAT, _ENUM = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int32


class _RoundedRows(ctypes.Structure):
    _fields_ = (
        ("values", _POINTER),
        ("scales", _POINTER),
        ("corrections", _POINTER),
        ("stride", _COUNT),
        ("blocks", _COUNT),
    )


class _Epilogue(ctypes.Structure):
    _fields_ = (
        ("bias", _POINTER),
        ("activation", _ENUM),
        ("factor", _FLOAT),
        ("added", _POINTER),
        ("added_stride", _COUNT),
    )


class _Product(ctypes.Structure):
    _fields_ = (
        ("x", _RoundedRows),
        ("rows", _COUNT),
        ("weights", _POINTER),
        ("bits", _COUNT),
        ("block", _COUNT),
        ("outputs", _COUNT),
        ("y", _POINTER),
        ("y_stride", _COUNT),
        ("epilogue", _Epilogue),
    )


class _GroupedProduct(ctypes.Structure):
    _fields_ = (
        ("x", _POINTER),
        ("x_stride", _COUNT),
        ("rows", _COUNT),
        ("weights", _POINTER),
        ("groups", _COUNT),
        ("inputs", _COUNT),
        ("outputs", _COUNT),
        ("y", _POINTER),
        ("y_stride", _COUNT),
        ("epilogue", _Epilogue),
    )


_MATRIX = (_POINTER, _COUNT, _COUNT, _COUNT)  # pointer, stride, rows, columns


class _ProductKernel(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("round_rows", ctypes.CFUNCTYPE(None, *_MATRIX, _COUNT, _POINTER, _POINTER, _POINTER)),
        ("multiply", ctypes.CFUNCTYPE(None, ctypes.POINTER(_Product), _COUNT, _COUNT)),
        ("multiply_groups", ctypes.CFUNCTYPE(None, ctypes.POINTER(_GroupedProduct), _COUNT, _COUNT, _COUNT)),
        ("rms_norm", ctypes.CFUNCTYPE(None, *_MATRIX, _FLOAT, _POINTER, _POINTER, _COUNT)),
        ("layer_norm", ctypes.CFUNCTYPE(None, *_MATRIX, _FLOAT, _POINTER, _POINTER, _POINTER, _COUNT)),
        ("elementwise", ctypes.CFUNCTYPE(None, _POINTER, _POINTER, _POINTER, _COUNT, _ENUM, _FLOAT, _POINTER)),
    )


def _address(array: npt.NDArray[Any] | None) -> int | None:
    return None if array is None else array.ctypes.data


@dataclass(frozen=True)
class Finish:
    """What becomes of a product: activation(product + bias) * factor + added."""

    bias: Floats | None = None
    activation: str = "none"
    factor: float = 1.0
    added: Floats | None = None

    def structure(self) -> _Epilogue:
        stride = 0 if self.added is None else self.added.shape[1]
        activation = ACTIVATIONS.index(self.activation)
        return _Epilogue(_address(self.bias), activation, self.factor, _address(self.added), stride)


@dataclass(frozen=True)
class Rounded:
    """Activations of 8 bits: values (M, padded K), scales and corrections (M, blocks)."""

    values: npt.NDArray[np.int8]
    scales: Floats
    corrections: npt.NDArray[np.int32]


@dataclass(frozen=True)
class Kernel:
    """One instruction set's functions, for NumPy arrays."""

    functions: _ProductKernel = field(repr=False)

    @property
    def name(self) -> str:
        return str(self.functions.name.decode())

    def round_rows(self, x: Floats, block: int) -> Rounded:
        rows, inputs = x.shape
        blocks = -(-inputs // block)
        rounded = Rounded(
            np.full((rows, blocks * block), 99, np.int8),
            np.full((rows, blocks), 99, np.float32),
            np.full((rows, blocks), 99, np.int32),
        )
        outputs = (rounded.values, rounded.scales, rounded.corrections)
        self.functions.round_rows(_address(x), inputs, rows, inputs, block, *map(_address, outputs))
        return rounded

    def multiply(
        self,
        x: Rounded,
        weights: Bytes,
        block: int,
        outputs: int,
        finish: Finish,
        tiles: tuple[int, ...] = (),
        bits: int = 4,
    ) -> Floats:
        """Return the product; `tiles` are where calls for a part of the outputs begin, beyond the first."""
        rows, blocks = x.scales.shape
        y = np.full((rows + 1, outputs), np.nan, np.float32) if finish.added is None else finish.added
        source = _RoundedRows(*map(_address, (x.values, x.scales, x.corrections)), x.values.shape[1], blocks)
        sizes = bits, block, outputs
        product = _Product(source, rows, _address(weights), *sizes, _address(y), outputs, finish.structure())
        bounds = (0, *tiles, -(-outputs // TILE))
        for first, last in itertools.pairwise(bounds):
            self.functions.multiply(ctypes.byref(product), first, last)
        assert finish.added is not None or np.isnan(y[rows]).all(), "written beyond the last row"
        return y[:rows]

    def multiply_groups(self, x: Floats, weights: Floats, outputs: int, finish: Finish) -> Floats:
        groups, tiles, inputs, _ = weights.shape
        rows, width = len(x), groups * outputs
        y = np.full((rows + 1, width), np.nan, np.float32)
        product = _GroupedProduct(
            *(_address(x), x.shape[1], rows, _address(weights), groups, inputs, outputs, _address(y), width),
            finish.structure(),
        )
        for group in range(groups):
            middle = tiles // 2
            self.functions.multiply_groups(ctypes.byref(product), group, 0, middle)
            self.functions.multiply_groups(ctypes.byref(product), group, middle, tiles)
        assert np.isnan(y[rows]).all(), "written beyond the last row"
        return y[:rows]

    def rms_norm(self, x: Floats, epsilon: float, gain: Floats | None) -> Floats:
        y = np.empty_like(x)
        rows, width = x.shape
        self.functions.rms_norm(_address(x), width, rows, width, epsilon, _address(gain), _address(y), width)
        return y

    def layer_norm(self, x: Floats, epsilon: float, gain: Floats | None, bias: Floats | None) -> Floats:
        y = np.empty_like(x)
        rows, width = x.shape
        addresses = map(_address, (gain, bias, y))
        self.functions.layer_norm(_address(x), width, rows, width, epsilon, *addresses, width)
        return y

    def elementwise(
        self, x: Floats, added: Floats | None, multiplied: Floats | None, activation: str, factor: float
    ) -> Floats:
        y = np.full(x.size + 1, np.nan, np.float32)
        arrays = map(_address, (x, added, multiplied))
        self.functions.elementwise(*arrays, x.size, ACTIVATIONS.index(activation), factor, _address(y))
        assert np.isnan(y[-1]), "written beyond the last number"
        return y[:-1]


def runnable_kernels() -> Iterator[Kernel]:
    """Yield the kernels that this machine can run, fastest first."""
    library = ctypes.CDLL(str(custom_ops_library()))
    library.pom_product_kernel.restype = ctypes.POINTER(_ProductKernel)
    index = 0
    while table := library.pom_product_kernel(index):
        yield Kernel(table.contents)
        index += 1


def chosen_kernel() -> str:
    """Return the name of the kernel that a session would run; POM_CPU_KERNEL has a say in it."""
    library = ctypes.CDLL(str(custom_ops_library()))
    library.pom_cpu_products.restype = ctypes.c_char_p
    return str(library.pom_cpu_products().decode())


def pack(values: npt.NDArray[np.uint8], scales: Floats, block: int, bits: int = 4) -> Bytes:
    """Pack weights as `products.h` says.

    Args:
        values: (N, K), 0 to 15, or to 255.
        scales: (N, blocks).
        block: inputs that share a scale.
        bits: of a weight, 4 or 8.
    """
    outputs, inputs = values.shape
    tiles, blocks = -(-outputs // TILE), scales.shape[1]
    padded = np.full((tiles * TILE, blocks * block), 1 << (bits - 1), np.uint8)
    padded[:outputs, :inputs] = values
    padded_scales = np.zeros((tiles * TILE, blocks), np.float32)
    padded_scales[:outputs] = scales
    # (tile, output, block, chunk, part, input) to (tile, block, chunk, output, input, part)
    parts = padded.reshape(tiles, TILE, blocks, -1, 8 // bits, 4).transpose(0, 2, 3, 1, 5, 4)
    joined = parts[..., 0] | parts[..., 1] << 4 if bits == 4 else parts[..., 0]
    chunks = joined.reshape(tiles, blocks, -1)
    scale_bytes = np.ascontiguousarray(padded_scales.reshape(tiles, TILE, blocks).transpose(0, 2, 1)).view(np.uint8)
    return np.concatenate([scale_bytes, chunks], axis=-1).reshape(-1)


def pack_groups(weights: Floats) -> Floats:
    """Pack the float32 weights of groups, (groups, outputs, inputs)."""
    groups, outputs, inputs = weights.shape
    tiles = -(-outputs // TILE)
    padded = np.zeros((groups, tiles * TILE, inputs), np.float32)
    padded[:, :outputs] = weights
    return np.ascontiguousarray(padded.reshape(groups, tiles, TILE, inputs).transpose(0, 1, 3, 2))
