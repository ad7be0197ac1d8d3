"""Keep the tables that torch's exporter makes anew for every export: half of a small one's time."""

from __future__ import annotations

import copy
import functools
from typing import Any

from torch.onnx._internal.exporter import _decomp, _registration


def keep() -> None:
    """Make them once a process; each export gets copies."""
    read_torchlib = functools.cache(_registration.ONNXRegistry.from_torchlib)
    make_decompositions = functools.cache(_decomp.create_onnx_friendly_decomposition_table)

    def from_torchlib(**options: Any) -> _registration.ONNXRegistry:
        registry = copy.copy(read_torchlib(**options))
        registry.functions = {target: list(functions) for target, functions in registry.functions.items()}
        return registry

    def create_table(implemented: set[Any]) -> dict[Any, Any]:
        return dict(make_decompositions(frozenset(implemented)))

    _registration.ONNXRegistry.from_torchlib = staticmethod(from_torchlib)
    _decomp.create_onnx_friendly_decomposition_table = create_table
