"""A model that answers requests, and all that the requests share."""

from __future__ import annotations

import os
from typing import Any

from pom_export.graph.exported_model import ExportedModel
from pom_export.runtime.pool.pool import check_poolable
from pom_export.runtime.streaming.interface import StatefulModel, read_stateful
from pom_export.serving.metrics import RequestCounts
from pom_export.serving.model import LocalModel, Model
from pom_export.serving.openai.template import ChatTemplate, chat_template
from pom_export.serving.sessions import MemoryStore, Sessions, SessionStore
from pom_export.serving.settings import ServeSettings
from pom_export.serving.words import tokenizer_of, vocabulary_of
from pom_export.text.tokenizer_files import read_tokenizer_files


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
        chat: the template of chats; None: it has none.
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
        check_poolable(self.interface)
        self.file: ExportedModel = self.interface.file
        self.name = self.file.path.stem
        self.tokenizer = tokenizer_of(self.interface, settings.tokenizer)
        self.chat: ChatTemplate | None = None
        if self.tokenizer is not None:
            self.chat = chat_template(settings.chat_template, read_tokenizer_files(self.tokenizer))
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
        return vocabulary_of(self.interface)

    @property
    def example(self) -> list[Any]:
        """Tokens that the model takes, as `/v1/steps` gets them."""
        return [1, 2, 3] if self.interface.takes_ids else [[0.0] * int(self.interface.tokens.axes[2])]

    @property
    def state_bytes(self) -> int:
        """Size of a stream's state."""
        return sum(array.nbytes for array in self.interface.empty(1).values())
