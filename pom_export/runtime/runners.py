"""Run a model in ONNX Runtime, which reports what it ran, or in PyTorch."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from pom_export.files import scratch_folder
from pom_export.graph.exported_model import nested
from pom_export.runtime.fusing.rewriting import OPERATOR
from pom_export.runtime.session import default_session_options

if TYPE_CHECKING:
    from torch import Tensor, nn

Arrays = Mapping[str, npt.NDArray[Any]]
# Creates an onnxruntime.InferenceSession from session options.
Load = Callable[[Any], Any]


class Runner(Protocol):
    """Computes a model's outputs while it is entered as a context, like Polygraphy's runners."""

    @property
    def name(self) -> str:
        """Name of the runner in messages."""

    def __enter__(self) -> Any:
        """Load the model."""

    def __exit__(self, *exception: Any) -> None:
        """Unload the model."""

    def infer(self, feed: dict[str, Any]) -> Mapping[str, Any]:
        """Return the outputs by name."""


class OnnxRuntimeRunner:
    """A model in ONNX Runtime.

    The first call is run with ONNX Runtime's profiler. The nodes in the file do not tell what actually runs, since ONNX
    Runtime inlines functions and fuses or removes nodes when it loads the file.

    Args:
        name: name of the runner in messages.
        load: creates the session.

    Attributes:
        name: name of the runner in messages.
        ran: how many nodes of each operator ran in the first call, by the operator's name; None: unknown, either
            because there was no call yet or because ONNX Runtime's profile was not readable.
    """

    def __init__(self, name: str, load: Load) -> None:
        self.name = name
        self.ran: Mapping[str, int] | None = None
        self._load = load
        self._session: Any = None
        self._watch = ExitStack()

    def __enter__(self) -> OnnxRuntimeRunner:
        """Load the model."""
        with ExitStack() as watch:
            options = default_session_options()
            options.profile_file_prefix = str(watch.enter_context(scratch_folder()) / "profile")
            options.enable_profiling = True
            self._session = session = self._load(options)
            watch.callback(lambda: self._read(session.end_profiling(), getattr(session, "fused", {})))
            self._watch = watch.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        """Unload the model."""
        self._watch.close()
        self._session = None

    def infer(self, feed: Arrays) -> Arrays:
        """Return the outputs by name."""
        names = [output.name for output in self._session.get_outputs()]
        outputs = dict(zip(names, self._session.run(names, dict(feed)), strict=True))
        self._watch.close()
        return outputs

    def _read(self, profile: str, fused: Mapping[str, int]) -> None:
        """Count the nodes in one of the profiler's files, and those that are inside fused nodes."""
        with suppress(OSError, ValueError, LookupError, TypeError):
            events = [event for event in json.loads(Path(profile).read_bytes()) if event["cat"] == "Node"]
            ran = Counter(event["args"]["op_name"] for event in events if "op_name" in event["args"])
            self.ran = ran + Counter(fused) if ran.pop(OPERATOR, 0) else ran


def run_module(module: nn.Module, feed: Arrays, dtype: npt.DTypeLike = np.float64) -> list[npt.NDArray[Any]]:
    """Return the tensors that a module computes from inputs by name, in order.

    Args:
        module: the module.
        feed: its inputs.
        dtype: its floating-point type, float64 or float32.
    """
    import torch
    from torch.utils._pytree import tree_leaves

    from pom_export.quiet import quiet_failure
    from pom_export.torch_modes import plain_modes

    tensors = {}
    for name, array in feed.items():
        # Neither NumPy nor torch.from_numpy supports bfloat16; float64 represents every smaller type's values exactly.
        exact = array if array.dtype.kind in "biu" else array.astype(dtype)
        tensors[name] = torch.from_numpy(np.ascontiguousarray(exact))
    with plain_modes(), quiet_failure():
        leaves = tree_leaves(module(**nested(tensors)))
    return [leaf.numpy() for leaf in leaves if isinstance(leaf, torch.Tensor)]


def to_numpy(tensor: Tensor) -> npt.NDArray[Any]:
    """Return a tensor's values as an array of its type; for bfloat16, that of ml_dtypes."""
    import ml_dtypes
    import torch

    if tensor.dtype == torch.bfloat16:
        return tensor.detach().contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.detach().numpy()
