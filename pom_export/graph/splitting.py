"""Trace splits of a dimension of dynamic size as slices, which torch.onnx can translate."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from typing import Any

import torch
from torch import SymInt, Tensor

from pom_export.function_mode import FunctionMode

# Functions that split a dimension, their third argument, into parts of almost the same size.
_EVENLY = frozenset({torch.tensor_split, Tensor.tensor_split})
_SPLITS = _EVENLY | {
    *(torch.chunk, torch.split, torch.split_with_sizes, torch.unsafe_chunk, torch.unsafe_split),
    *(Tensor.chunk, Tensor.split, Tensor.split_with_sizes, Tensor.unsafe_chunk, Tensor.unsafe_split),
}


class SlicedSplits(FunctionMode):
    """While active, chunk and split of a dynamic dimension become slices with the sizes that torch finds for the parts.

    The number of parts is fixed by the example.
    """

    def call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a torch function; the parts that a split returns are replaced by slices."""
        if func not in _SPLITS:
            return func(*args, **kwargs)
        whole: Any = args[0] if args else kwargs.get("input", kwargs.get("tensor"))
        dim = kwargs.get("dim", args[2] if len(args) > 2 else 0)
        parts = args[1] if len(args) > 1 else kwargs.get("indices_or_sections", kwargs.get("sections"))
        if func in _EVENLY and isinstance(parts, int):
            # Computed here, since torch checks whether all parts have the same size, which would fix the answer in a
            # trace.
            sizes = [(whole.shape[dim] + parts - 1 - index) // parts for index in range(parts)]
        else:
            sizes = [part.shape[dim] for part in func(*args, **kwargs)]
        if not any(isinstance(size, SymInt) for size in sizes):
            return func(*args, **kwargs)
        starts = [0, *accumulate(sizes)]
        return tuple(whole.narrow(dim, start, size) for start, size in zip(starts, sizes, strict=False))
