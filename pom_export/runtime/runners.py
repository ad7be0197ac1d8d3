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
from pom_export.runtime.session import default_session_options

if TYPE_CHECKING:
    from torch import Tensor, nn

Arrays = Mapping[str, npt.NDArray[Any]]
# Of an onnxruntime.InferenceSession, from the options that it is made with.
Load = Callable[[Any], Any]


class Runner(Protocol):
    """What computes a model's outputs between its start and its end, as Polygraphy's runners do."""

    @property
    def name(self) -> str:
        """For messages."""

    def __enter__(self) -> Any:
        """Load the model."""

    def __exit__(self, *exception: Any) -> None:
        """Let go of it."""

    def infer(self, feed: dict[str, Any]) -> Mapping[str, Any]:
        """Return the outputs by name."""


class OnnxRuntimeRunner:
    """A model in ONNX Runtime.

    The first call is watched by ONNX Runtime's profiler: what a file is made of does not say what ran, since functions
    are unfolded and nodes are fused or left out when it is loaded.

    Args:
        name: for messages.
        load: returns the session.

    Attributes:
        name: the same.
        ran: how many nodes of each operator the first call took, by the operator's name; None: not known yet, or
            ONNX Runtime's profile was not readable.
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
            watch.callback(lambda: self._read(session.end_profiling()))
            self._watch = watch.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        """Let go of it."""
        self._watch.close()
        self._session = None

    def infer(self, feed: Arrays) -> Arrays:
        """Return the outputs by name."""
        names = [output.name for output in self._session.get_outputs()]
        outputs = dict(zip(names, self._session.run(names, dict(feed)), strict=True))
        self._watch.close()
        return outputs

    def _read(self, profile: str) -> None:
        """Count the nodes of a file of ONNX Runtime's profiler."""
        with suppress(OSError, ValueError, LookupError, TypeError):
            events = [event for event in json.loads(Path(profile).read_bytes()) if event["cat"] == "Node"]
            self.ran = Counter(event["args"]["op_name"] for event in events if "op_name" in event["args"])


def run_module(module: nn.Module, feed: Arrays) -> list[npt.NDArray[Any]]:
    """Return the tensors that a module in float64 computes of inputs by name, in order."""
    import torch
    from torch.utils._pytree import tree_leaves

    from pom_export.quiet import quiet_failure
    from pom_export.torch_modes import plain_modes

    tensors = {}
    for name, array in feed.items():
        # Neither numpy nor torch.from_numpy knows bfloat16; float64 holds every smaller type's values.
        exact = array if array.dtype.kind in "biu" else array.astype(np.float64)
        tensors[name] = torch.from_numpy(np.ascontiguousarray(exact))
    with plain_modes(), quiet_failure():
        leaves = tree_leaves(module(**nested(tensors)))
    return [leaf.numpy() for leaf in leaves if isinstance(leaf, torch.Tensor)]


def to_numpy(tensor: Tensor) -> npt.NDArray[Any]:
    """Return a tensor's values as an array of its type; bfloat16 as ml_dtypes'."""
    import ml_dtypes
    import torch

    if tensor.dtype == torch.bfloat16:
        return tensor.detach().contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.detach().numpy()
