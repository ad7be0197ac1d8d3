"""Trace adaptive pooling over a dimension of dynamic size as a product or a maximum over bins.

torch.onnx would fix the pooling to the example's size; for several bins it has no translation at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import SymInt, Tensor
from torch.nn import functional

from pom_export.function_mode import FunctionMode

# How many trailing axes each function pools.
_AVERAGES: Mapping[Any, int] = {
    torch.adaptive_avg_pool1d: 1,
    functional.adaptive_avg_pool2d: 2,
    functional.adaptive_avg_pool3d: 3,
}
_MAXIMA: Mapping[Any, int] = {
    functional.adaptive_max_pool1d: 1,
    functional.adaptive_max_pool2d: 2,
    functional.adaptive_max_pool3d: 3,
}


class BinnedPooling(FunctionMode):
    """While active, adaptive pooling over a dynamic dimension is written out; the number of bins is fixed."""

    def call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a torch function, or pool in its place."""
        axes = _AVERAGES.get(func, _MAXIMA.get(func))
        if axes is None or kwargs.get("return_indices"):
            return func(*args, **kwargs)
        x, asked = args[0] if args else kwargs["input"], args[1] if len(args) > 1 else kwargs["output_size"]
        sizes = list(x.shape[-axes:])
        bins = list(asked) if isinstance(asked, Sequence) else [asked] * axes
        bins = [size if wanted is None else wanted for wanted, size in zip(bins, sizes, strict=True)]
        pooled = [(n, size) for n, size in zip(bins, sizes, strict=True) if n is not size]
        if not any(isinstance(size, SymInt) for _, size in pooled) or any(isinstance(n, SymInt) for n, _ in pooled):
            return func(*args, **kwargs)
        for axis, (count, size) in enumerate(zip(bins, sizes, strict=True), -axes):
            if count is not size:
                x = _pool(x, axis, count, average=func in _AVERAGES)
        return x


def _pool(x: Tensor, axis: int, bins: int, *, average: bool) -> Tensor:
    """Reduce an axis to the values of bins, which may overlap."""
    if bins == 1:
        return x.mean(axis, keepdim=True) if average else x.amax(axis, keepdim=True)
    size, index = x.shape[axis], torch.arange(bins, device=x.device)
    start, end = index * size // bins, ((index + 1) * size + bins - 1) // bins
    place = torch.arange(size, device=x.device)
    inside = (place >= start[:, None]) & (place < end[:, None])
    x = x.movedim(axis, -1)
    if average:
        pooled = x @ (inside / (end - start)[:, None]).to(x.dtype).mT
    else:
        pooled = torch.where(inside, x[..., None, :], float("-inf")).amax(-1)
    return pooled.movedim(-1, axis)
