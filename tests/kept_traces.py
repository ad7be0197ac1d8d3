"""Keeps torch's traces of our own architectures: tracing takes a second or more, with the same result each time."""

from __future__ import annotations

import copy
import io
import pickle
import threading
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from pom_export.graph import tracing
from pom_export.graph.program import Program
from pom_export.graph.stateful.module import StatefulModule
from pom_export.graph.tracing import Traced

_MOST = 64


def keep() -> None:
    """Trace a model that consists of our classes only once per process for each way to export it; exports get copies.

    Modules with other classes are always traced: what they may do while being traced is what many tests are about.
    """
    trace, kept, lock = tracing.trace, dict[bytes, Traced](), threading.Lock()

    def trace_once(program: Program, opset: int) -> Traced:
        key = _content_of(program, opset)
        if key is None:
            return trace(program, opset)
        traced = kept.get(key)
        if traced is None:
            # A test that later changes its model's weights does not change what is kept.
            traced = trace(replace(program, module=copy.deepcopy(program.module)), opset)
            with lock:  # tests export from several threads
                if len(kept) >= _MOST:
                    del kept[next(iter(kept))]
                kept[key] = traced
        program.module.eval()
        return replace(traced, graph=traced.graph.clone())

    tracing.trace = trace_once


class _Content(pickle.Pickler):
    """Serializes a program so that equal programs give equal bytes, wherever their tensors are in memory."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.tensors: list[Tensor] = []

    def persistent_id(self, obj: Any) -> Any:
        """Return a tensor's type, shape and values, and which tensor it is: two modules may share one."""
        if not isinstance(obj, Tensor):
            return None
        if not any(obj is tensor for tensor in self.tensors):
            self.tensors.append(obj)
        place = next(i for i, tensor in enumerate(self.tensors) if tensor is obj)
        return place, str(obj.dtype), tuple(obj.shape), obj.detach().numpy().tobytes()


def _content_of(program: Program, opset: int) -> bytes | None:
    """Return a program's bytes; None if it holds other classes, or something that cannot be serialized."""
    if isinstance(program.module, StatefulModule) or not all(map(_is_ours, program.module.modules())):
        return None
    written = io.BytesIO()
    try:
        shapes = program.dynamic_shapes and {
            name: {axis: (dimension.__name__, dimension.min, dimension.max) for axis, dimension in axes.items()}
            for name, axes in program.dynamic_shapes.items()
        }
        _Content(written).dump((program.module, dict(program.inputs), shapes, program.outputs, program.prefix, opset))
    except (AttributeError, TypeError, pickle.PicklingError):
        return None
    return written.getvalue()


def _is_ours(module: nn.Module) -> bool:
    return type(module).__module__.startswith(("pom_export.", "torch.nn."))
