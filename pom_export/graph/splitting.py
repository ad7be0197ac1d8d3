"""Trace splits of a dimension of dynamic size as slices, which torch.onnx can translate."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from typing import Any

import torch
from torch import SymInt, Tensor

from pom_export.function_mode import FunctionMode

# Functions whose results lie one behind the other along one dimension, their third argument.
_EVENLY = frozenset({torch.tensor_split, Tensor.tensor_split})
_SPLITS = _EVENLY | {
    *(torch.chunk, torch.split, torch.split_with_sizes, torch.unsafe_chunk, torch.unsafe_split),
    *(Tensor.chunk, Tensor.split, Tensor.split_with_sizes, Tensor.unsafe_chunk, Tensor.unsafe_split),
}


class SlicedSplits(FunctionMode):
    """While it is on, chunk and split of a dynamic dimension are slices of the sizes that torch finds for the parts.

    How many parts there are is fixed by the example.
    """

    def call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a function of torch; what a split returns is made anew."""
        if func not in _SPLITS:
            return func(*args, **kwargs)
        whole: Any = args[0] if args else kwargs.get("input", kwargs.get("tensor"))
        dim = kwargs.get("dim", args[2] if len(args) > 2 else 0)
        parts = args[1] if len(args) > 1 else kwargs.get("indices_or_sections", kwargs.get("sections"))
        if func in _EVENLY and isinstance(parts, int):
            # Written out, for torch asks whether the parts are all as long, and a trace has one answer.
            sizes = [(whole.shape[dim] + parts - 1 - index) // parts for index in range(parts)]
        else:
            sizes = [part.shape[dim] for part in func(*args, **kwargs)]
        if not any(isinstance(size, SymInt) for size in sizes):
            return func(*args, **kwargs)
        starts = [0, *accumulate(sizes)]
        return tuple(whole.narrow(dim, start, size) for start, size in zip(starts, sizes, strict=False))
