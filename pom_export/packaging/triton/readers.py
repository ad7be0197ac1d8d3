"""What runs the sequences of a model in the server: a pool of streams, or a session for each."""

from __future__ import annotations

from pom_export.errors import InputError
from pom_export.graph.exported_model import BLOCK_CAUSAL
from pom_export.packaging.triton.open_sequences import Reader
from pom_export.packaging.triton.sequences import PooledSequences
from pom_export.packaging.triton.sessions import SessionSequences
from pom_export.runtime.pool.pool import StreamPool, check_poolable
from pom_export.runtime.streaming.interface import StatefulModel
from pom_export.runtime.streaming.session import StreamingSession


def shares_calls(model: StatefulModel) -> bool:
    """Return whether a model's streams can share calls: its state does not grow, and calls do not see themselves."""
    return model.file.stateful != BLOCK_CAUSAL and not any(part.grows for part in model.past)


def check_sequences(model: StatefulModel) -> None:
    """Raise InputError for a model whose sequences need more than their tokens."""
    if shares_calls(model):
        check_poolable(model)
    elif model.others:
        raise InputError(f"{model.name} takes {min(model.others)} besides tokens", "Use a StreamingSession in Python")


def reader_of(model: StatefulModel, most: int) -> Reader:
    """Load a model, and return what runs its sequences.

    Args:
        model: its interface.
        most: the most sequences at a time.

    Raises:
        InputError: it cannot be loaded.
        MissingDependencyError: onnxruntime or our library is not installed.
    """
    if shares_calls(model):
        return PooledSequences(StreamPool(model.file.path, streams=most))
    return SessionSequences(StreamingSession(model.file.path), most)
