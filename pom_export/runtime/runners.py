"""Where a model's outputs come from: ONNX Runtime as a Polygraphy runner, and PyTorch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from polygraphy.backend.base import BaseRunner
from polygraphy.backend.onnxrt import OnnxrtRunner

from pom_export.graph.exported import nested
from pom_export.runtime.session import inference_session

if TYPE_CHECKING:
    from torch import Tensor, nn

Arrays = Mapping[str, npt.NDArray[Any]]


def onnxruntime_runner(model: str | os.PathLike[str], name: str, *, kernels: bool) -> BaseRunner:
    """Return a runner on ONNX Runtime, with our kernels or with the op's function."""
    return OnnxrtRunner(lambda: inference_session(model, kernels=kernels), name=name)


def run_module(module: nn.Module, feed: Arrays) -> list[npt.NDArray[Any]]:
    """Return the tensors that a module in float64 computes of inputs by name, in order."""
    import torch
    from torch.utils._pytree import tree_leaves

    from pom_export.graph.quiet import quiet_failure

    tensors = {}
    for name, array in feed.items():
        # Neither numpy nor torch.from_numpy knows bfloat16; float64 holds every smaller type's values.
        exact = array if array.dtype.kind in "biu" else array.astype(np.float64)
        tensors[name] = torch.from_numpy(np.ascontiguousarray(exact))
    with torch.no_grad(), quiet_failure():
        leaves = tree_leaves(module(**nested(tensors)))
    return [leaf.numpy() for leaf in leaves if isinstance(leaf, torch.Tensor)]


def to_numpy(tensor: Tensor) -> npt.NDArray[Any]:
    """Return a tensor's values as an array of its type; bfloat16 as ml_dtypes'."""
    import ml_dtypes
    import torch

    if tensor.dtype == torch.bfloat16:
        return tensor.detach().contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.detach().numpy()
