"""A quantized weight, and the checks and the arithmetic that all layouts share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from pom_export.checkpoint.storages import BEFORE_QUANTIZING
from pom_export.errors import CheckpointError

FLOATS: Final = (torch.float32, torch.float16, torch.bfloat16)
_VALUES_AT_ONCE: Final = 1 << 22
FLOAT8: Final = (torch.float8_e4m3fn, torch.float8_e5m2)


class LayoutError(Exception):
    """What is wrong with a quantized weight, to be said after its name.

    Args:
        what: the reason, with the value seen.
        hint: what to do about it.
    """

    def __init__(self, what: str, hint: str = BEFORE_QUANTIZING) -> None:
        super().__init__(what)
        self.what, self.hint = what, hint

    def of(self, file: Path, name: str) -> CheckpointError:
        """Return the error that a user sees, given the file and the weight's name."""
        return CheckpointError(f"{file}: {name} cannot be dequantized: {self.what}", self.hint)


@dataclass(frozen=True, eq=False)
class QuantizedTensor:
    """A matrix of floating-point weights that is stored as narrow numbers and scales.

    Attributes:
        layout: the library and its kind of weights, for messages.
        shape: the matrix's shape, (rows, columns).
        parts: the tensors that it is stored as.
        compute: returns the values, (rows, columns), in the type that the library computes; raises LayoutError.
        activations: whether the layer quantized its input as well.
    """

    layout: str
    shape: torch.Size
    parts: Sequence[Tensor]
    compute: Callable[[], Tensor]
    activations: bool = False

    @cached_property
    def values(self) -> Tensor:
        """The values as float32, which holds each of them exactly.

        Raises:
            LayoutError: the stored numbers are not ones that the library writes.
        """
        found = self.compute()
        assert found.shape == self.shape, self.layout
        return found.float()

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return len(self.shape)


class Found(NamedTuple):
    """A quantized weight in a state dict.

    Attributes:
        name: the weight's name.
        entries: names of the entries that it is made of.
        build: returns it, without computing its values; raises LayoutError if parts are missing or contradict another.
    """

    name: str
    entries: set[str]
    build: Callable[[], QuantizedTensor]


def tensor_in(parts: Mapping[str, Any], name: str, dtypes: Sequence[torch.dtype], what: str = "") -> Tensor:
    """Return a part of a weight, after checking its type.

    Args:
        parts: the parts by name, and other things among them.
        name: the part's name.
        dtypes: the types that it may have.
        what: what to call it in messages; default: its name.

    Raises:
        LayoutError: it is missing, or is no such tensor.
    """
    what = what or name
    part = parts.get(name)
    if part is None:
        raise LayoutError(f"its {what} is missing")
    if not isinstance(part, Tensor):
        raise LayoutError(f"its {what} is not a plain tensor")
    if part.dtype not in dtypes:
        raise LayoutError(f"its {what} is {part.dtype}, not {' or '.join(map(str, dtypes))}")
    if part.nbytes > part.untyped_storage().nbytes():
        raise LayoutError(f"its {what} of shape {tuple(part.shape)} repeats its values")
    return part


def check_scales(scales: Tensor, what: str, *, zero: bool = False) -> None:
    """Check that scales are finite and positive.

    Args:
        scales: the scales, of a floating-point type.
        what: what to call them in messages.
        zero: whether 0 is a scale too.

    Raises:
        LayoutError: with the first value that is not.
    """
    wide = scales.float()
    good = torch.isfinite(wide) & ((wide >= 0) if zero else (wide > 0))
    if not good.all():
        bad = wide[~good]
        raise LayoutError(f"its {what} holds {bad[0].item():g}; {bad.numel()} of {wide.numel()} values can be no scale")


def float_type(name: Any) -> torch.dtype | None:
    """Return the type of weights with a name, such as "bfloat16"; None for anything else."""
    return next((dtype for dtype in FLOATS if name == str(dtype).removeprefix("torch.")), None)


def check_matrix(shape: Sequence[int]) -> torch.Size:
    """Return a shape as that of a matrix.

    Raises:
        LayoutError: it has another number of dimensions, or holds nothing.
    """
    if len(shape) != 2 or not all(type(extent) is int and 0 < extent < 2**31 for extent in shape):
        raise LayoutError(f"it is of shape {tuple(shape)}, and only matrices are read")
    return torch.Size(shape)


def affine(
    stored: Tensor, scale: Tensor, zero_point: Tensor | None, blocks: tuple[int, int], dtype: torch.dtype
) -> Tensor:
    """Return (stored - zero_point) * scale, each scale and zero point being that of a block of values.

    Args:
        stored: (rows, columns), of a narrow type.
        scale: (rows / block rows, columns / block columns), rounded up; floating point.
        zero_point: of the same shape, or None.
        blocks: rows and columns of a block.
        dtype: the type in which the zero point is subtracted, and of the result.
    """
    found = torch.empty(stored.shape, dtype=dtype)
    columns = torch.arange(stored.shape[1]) // blocks[1]
    for start in range(0, stored.shape[0], step := rows_at_once(stored.shape[1])):
        part = stored[start : start + step].to(dtype)
        rows = torch.arange(start, start + len(part)) // blocks[0]
        if zero_point is not None:
            part = part - zero_point[rows][:, columns].to(dtype)
        found[start : start + step] = (part * scale[rows][:, columns]).to(dtype)
    return found


def rows_at_once(columns: int) -> int:
    """Return how many rows of a matrix are computed at once, so that what lies between is small."""
    return max(1, _VALUES_AT_ONCE // columns)
