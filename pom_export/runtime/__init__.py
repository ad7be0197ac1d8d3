"""Find our libraries and run models: sessions, runners, and streaming with a state."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pom_export.runtime.pool.pool import CallError, StreamPool
    from pom_export.runtime.pool.stream import PoolStream
    from pom_export.runtime.streaming.session import StreamingSession
    from pom_export.runtime.streaming.state import State, merge_states

# Imported on first use: a session without a state needs neither these modules nor onnx.
_HOMES = {
    "CallError": "pool.pool",
    "PoolStream": "pool.stream",
    "State": "streaming.state",
    "StreamPool": "pool.pool",
    "StreamingSession": "streaming.session",
    "merge_states": "streaming.state",
}

__all__ = ["CallError", "PoolStream", "State", "StreamPool", "StreamingSession", "merge_states"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
