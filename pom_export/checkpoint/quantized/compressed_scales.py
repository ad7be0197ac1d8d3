"""Which scale belongs to which weight, in the layouts of compressed-tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from pom_export.checkpoint.quantized.compressed_config import CONFIG, CONFIG_HINT, Scheme
from pom_export.checkpoint.quantized.tensor import LayoutError, QuantizedTensor, affine, check_scales, tensor_in

SCALE: Final = "weight_scale"


@dataclass(frozen=True)
class ScaleLayout:
    """Which scale belongs to which weight.

    Attributes:
        shape: (rows, columns).
        scale: (row blocks, column blocks).
        blocks: rows and columns that share a scale.
        order: for each column, the group that it belongs to, (columns,); None if they follow one another.
        symmetric: whether there may be no zero points.
        activations: whether the layer quantizes its input as well.
    """

    shape: torch.Size
    scale: Tensor
    blocks: tuple[int, int]
    order: Tensor | None
    symmetric: bool
    activations: bool

    @classmethod
    def of(
        cls, parts: Mapping[str, Any], shape: torch.Size, scale: Tensor, schemes: Sequence[Scheme] | None
    ) -> ScaleLayout:
        """Return the only layout that fits the shape of the scales, and one of the schemes if there are any."""
        rows, columns = shape
        grid = (1, 1) if scale.numel() == 1 and scale.ndim < 2 else tuple(scale.shape)
        ways: dict[tuple[int, int], list[Scheme]] = {}
        for scheme in (None,) if schemes is None else schemes:
            for blocks in _blocks(shape, grid, scheme):
                ways.setdefault(blocks, []).extend([scheme] if scheme is not None else [])
        if len(ways) != 1:
            said = "" if schemes is None else f", and {CONFIG} describes {len(schemes)} such kinds"
            raise LayoutError(
                f"its weight_scale of shape {tuple(scale.shape)} fits its shape {(rows, columns)} in {len(ways)} "
                f"ways{said}",
                CONFIG_HINT,
            )
        (blocks, fitting), *_ = ways.items()
        # Which of several schemes a weight has is not said by its shapes, so that each of them must be right.
        order = _order(parts, columns, grid[1], ordered=any(each.ordered for each in fitting))
        symmetric = all(each.symmetric for each in fitting)
        activations = "input_scale" in parts or any(each.activations for each in fitting)
        return cls(shape, scale.reshape(grid), blocks, order, symmetric, activations)

    def values(self, stored: Tensor, zero_point: Tensor | None) -> Tensor:
        """Return the weights; `zero_point` has the scale's shape."""
        check_scales(self.scale, SCALE)
        scale, blocks = self.scale, self.blocks
        if zero_point is not None:
            zero_point = zero_point.reshape(scale.shape)
        if self.order is not None:
            scale, blocks = scale[:, self.order], (blocks[0], 1)
            zero_point = None if zero_point is None else zero_point[:, self.order]
        return affine(stored, scale, zero_point, blocks, scale.dtype)

    def tensor(self, layout: str, parts: Sequence[Tensor | None], values: Callable[[], Tensor]) -> QuantizedTensor:
        """Return the weight, after checking that its zero points are there and of the right number."""
        zero_point = parts[-1]
        if zero_point is None and not self.symmetric:
            raise LayoutError(f"its weight_zero_point is missing, and {CONFIG} says that it has one")
        if zero_point is not None and zero_point.numel() != self.scale.numel():
            raise LayoutError(f"its weight_zero_point is of shape {tuple(zero_point.shape)}, its scales of another")
        given = tuple(part for part in parts if part is not None)
        return QuantizedTensor(layout, self.shape, given, values, self.activations)


def _blocks(shape: torch.Size, grid: Sequence[int], scheme: Scheme | None) -> Iterator[tuple[int, int]]:
    """Yield the blocks of rows and columns of which there are as many as in a grid."""
    rows, columns = shape
    possible = [(rows, columns), (1, columns)]
    if scheme is not None and scheme.block is not None:
        possible = [scheme.block]
    elif scheme is not None and scheme.group is not None:
        possible = [(1, scheme.group)] if columns % scheme.group == 0 else []
    elif scheme is None and len(grid) == 2 and grid[1] > 1 and columns % grid[1] == 0:
        possible = [(1, columns // grid[1])]
    for height, width in possible:
        if tuple(grid) == (-(-rows // height), -(-columns // width)):
            yield height, width


def _order(parts: Mapping[str, Any], columns: int, groups: int, *, ordered: bool) -> Tensor | None:
    """Return the group of each column, if they are ordered otherwise than one after another."""
    if "weight_g_idx" not in parts:
        if ordered:
            raise LayoutError(f"its weight_g_idx is missing, and {CONFIG} says that its columns are ordered")
        return None
    order = tensor_in(parts, "weight_g_idx", [torch.int32, torch.int64])
    if order.shape == (columns,) and bool((order == -1).all()):  # as it is before columns are ordered
        return None
    if order.shape != (columns,) or columns % groups:
        raise LayoutError(
            f"its weight_g_idx is of shape {tuple(order.shape)}, for {groups} groups of {columns} columns"
        )
    least, most = (int(value) for value in order.aminmax())
    counts = torch.bincount(order.long(), minlength=groups) if least >= 0 and most < groups else torch.tensor([0])
    if not bool((counts == columns // groups).all()):
        raise LayoutError(f"its weight_g_idx does not put {columns // groups} columns into each of {groups} groups")
    return order.long()
