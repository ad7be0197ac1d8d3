"""The shapes of activations, as far as a file or the steps found so far tell them."""

from __future__ import annotations

import onnx_ir as ir

Shape = tuple[int | str, int | str, int]
_RANK = 3


class Shapes:
    """Shapes (B, N, width) of float32 values; B and N may be names, and sizes of one name are equal."""

    def __init__(self) -> None:
        self._made: dict[ir.Value, Shape] = {}

    def of(self, value: ir.Value | None) -> Shape | None:
        """Return the shape of a value; None if it is not float32, has another rank, or a size is unknown."""
        if value is None:
            return None
        if value in self._made:
            return self._made[value]
        if value.dtype != ir.DataType.FLOAT or value.shape is None or len(value.shape) != _RANK:
            return None
        sizes = [size if isinstance(size, int) else size.value for size in value.shape]
        rows, tokens, width = sizes
        if rows is None or tokens is None or not isinstance(width, int) or width < 1:
            return None
        return rows, tokens, width

    def make(self, value: ir.Value, x: ir.Value, width: int) -> None:
        """Note that a value has the shape of x, but for its last size."""
        shape = self.of(x)
        assert shape is not None
        self._made[value] = (*shape[:2], width)
