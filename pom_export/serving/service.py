"""A model that answers requests, and all that the requests share."""

from __future__ import annotations

import os

import numpy as np

from pom_export.errors import InputError
from pom_export.graph.exported_model import ExportedModel
from pom_export.runtime.streaming.interface import StatefulModel, read_stateful
from pom_export.serving.metrics import RequestCounts
from pom_export.serving.model import LocalModel, Model
from pom_export.serving.sessions import MemoryStore, Sessions, SessionStore
from pom_export.serving.settings import ServeSettings
from pom_export.text.tokenizers import AUTO, Tokenizer, choose_tokenizer


class Service:
    """A model that answers requests, with its sessions and limits.

    Args:
        path: path of a stateful export, as for `StreamPool`.
        settings: options and limits.
        store: where sessions are kept; None: in memory.
        model: what runs the file; None: it is loaded in this process.

    Attributes:
        name: the model's name, that of its file without the suffix.
        file: the file.
        interface: its interface.
        tokenizer: its tokenizer; None: it takes vectors, or ids of no text.
        draining: whether new requests are refused, since the server ends.
        requests: number of requests that are being answered.

    Raises:
        InputError: `StreamPool` refuses the file, or the tokenizer is not the model's.
        MissingDependencyError: onnxruntime, our library, TensorRT or the tokenizer's is not installed.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        settings: ServeSettings,
        store: SessionStore | None = None,
        model: Model | None = None,
    ) -> None:
        self.settings = settings
        self.interface: StatefulModel = read_stateful(path)
        self.file: ExportedModel = self.interface.file
        self.name = self.file.path.stem
        self.tokenizer = _tokenizer(self.interface, settings.tokenizer)
        self.model: Model = LocalModel(path, settings) if model is None else model
        self.metrics = RequestCounts()
        self.sessions = Sessions(
            store or MemoryStore(settings.sessions, settings.session_bytes, settings.session_seconds)
        )
        self.draining = False
        self.requests = 0

    @property
    def vocabulary(self) -> int | None:
        """Number of ids that the model takes; None: it takes vectors, or does not say."""
        return _vocabulary(self.interface)

    @property
    def state_bytes(self) -> int:
        """Size of a stream's state."""
        return sum(array.nbytes for array in self.interface.empty(1).values())


def _vocabulary(model: StatefulModel) -> int | None:
    values = model.limits.values.get(model.tokens.name)
    return None if values is None or not model.takes_ids else int(np.prod(values[:1]))


def _tokenizer(model: StatefulModel, name: str) -> Tokenizer | None:
    """Return a model's tokenizer; None if none is named, and none is known for it.

    Raises:
        InputError: it has ids that the model lacks, or the model takes no ids.
    """
    vocabulary = _vocabulary(model)
    if vocabulary is None:
        if name == AUTO:
            return None
        raise InputError(f"{model.name} takes no ids of a vocabulary that it names", "Leave `tokenizer` out")
    try:
        tokenizer = choose_tokenizer(name, vocabulary)
    except InputError:
        if name == AUTO:
            return None
        raise
    if tokenizer.size > vocabulary:
        raise InputError(
            f"the tokenizer {tokenizer.name} has {tokenizer.size} tokens, but {model.name} has {vocabulary}",
            "Name the model's own: `tokenizer=PATH`",
        )
    return tokenizer
