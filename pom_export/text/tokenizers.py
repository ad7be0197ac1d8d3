"""Convert text to token ids and back: bytes, a Hugging Face `tokenizer.json`, GPT-2's vocabulary."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, Protocol

from pom_export.errors import InputError, MissingDependencyError, reason_of
from pom_export.files import readable_file
from pom_export.text.decoding import REPLACEMENT, BytesStream, Held, TextStream, WindowStream

AUTO: Final = "auto"
BYTES: Final = "bytes"
GPT2: Final = "gpt2"
# Names of tokenizers that need no file.
NAMES: Final = (AUTO, BYTES, GPT2)
_BYTES_VOCABULARY: Final = 256
# From GPT-2's own size to the multiple of 64 that models round it up to.
_GPT2_VOCABULARIES: Final = range(50257, 50305)
# Several times the size of the largest vocabularies.
_LARGEST_FILE: Final = 128 << 20
_HINT: Final = "Name a tokenizer.json: `tokenizer=PATH`"
_INSTALL_TOKENIZERS: Final = "Install it: pip install 'tokenizers>=0.20'"
_INSTALL_TIKTOKEN: Final = "Install it: pip install 'tiktoken>=0.7'"
_PANIC: Final = "PanicException"  # an exception of pyo3, which does not export it
_WHOLE_HINT: Final = "Is it a complete tokenizer.json, and the model's own?"


class Tokenizer(Protocol):
    """Turns text into tokens and back.

    Attributes:
        name: name for `choose_tokenizer`.
        size: an upper bound on its ids, exclusive.
    """

    name: str
    size: int

    def encode(self, text: str, *, begins: bool = True) -> list[int]:
        """Return the ids of a text; `begins` adds whatever the tokenizer puts at the beginning of a text.

        Bytes that are not UTF-8 are passed as surrogates, like in Python's file names and arguments.

        Raises:
            InputError: there are such bytes, and the tokenizer has no tokens for them.
        """

    def stream(self, context: Sequence[int] = (), held: Held | None = None) -> TextStream:
        """Return a stream of text that follows a prompt's tokens, or that continues another."""

    def bytes_of(self, token: int) -> bytes | None:
        """Return what a token stands for inside a text, in UTF-8; None if that cannot be told of it alone."""


class ByteTokenizer:
    """One token per byte of UTF-8."""

    name = BYTES
    size = _BYTES_VOCABULARY

    def encode(self, text: str, *, begins: bool = True) -> list[int]:  # noqa: ARG002, D102 (the protocol says it)
        return list(text.encode("utf-8", "surrogateescape"))

    def stream(self, context: Sequence[int] = (), held: Held | None = None) -> TextStream:  # noqa: ARG002, D102
        return BytesStream(lambda token: bytes([token]), held)

    def bytes_of(self, token: int) -> bytes:  # noqa: D102
        return bytes([token])


@contextmanager
def _refusals(what: str) -> Iterator[None]:
    """Turn whatever the `tokenizers` library raises into InputError; it has no exception class narrower than Exception.

    A panic in its Rust code, for example because a regular expression takes too long, is not even an Exception.
    """
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != _PANIC:
            raise
        raise InputError(f"{what}: {reason_of(error)}", _WHOLE_HINT) from error


class FileTokenizer:
    """A tokenizer of Hugging Face's `tokenizers` library.

    Args:
        path: path of a tokenizer.json.

    Raises:
        InputError: the file cannot be read.
        MissingDependencyError: the library is not installed.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        try:
            import tokenizers
        except ImportError as error:
            raise MissingDependencyError(
                "tokenizers is not installed", "Install it: pip install 'tokenizers>=0.20'"
            ) from error
        file = readable_file(path, "tokenizer")
        if (size := file.stat().st_size) > _LARGEST_FILE:
            raise InputError(f"{file} has {size:,} bytes, which is not a tokenizer", "Name a tokenizer.json")
        with _refusals(f"{file} is no tokenizer"):
            self._tokenizer: Any = tokenizers.Tokenizer.from_file(os.fspath(file))
        self.name = os.path.abspath(file)  # noqa: PTH100 (a link's own name)
        # The number of tokens would not do, since some vocabularies have gaps.
        self.size = max(self._tokenizer.get_vocab().values(), default=-1) + 1

    def encode(self, text: str, *, begins: bool = True) -> list[int]:  # noqa: D102
        content = _as_utf8(text)
        with _refusals(f"{self.name} cannot encode the text"):
            return list(self._tokenizer.encode(content, add_special_tokens=begins).ids)

    def stream(self, context: Sequence[int] = (), held: Held | None = None) -> TextStream:  # noqa: D102
        return WindowStream(self._decode, context, held)

    def bytes_of(self, token: int) -> bytes | None:  # noqa: D102
        # The second of two, since some decoders leave out a space at the beginning of a text.
        text = self._decode([token, token])[len(self._decode([token])) :]
        return None if REPLACEMENT in text else text.encode()

    def id_of(self, text: str) -> int | None:
        """Return the id of a token by its name in the vocabulary, such as </s>; None if there is none."""
        found = self._tokenizer.token_to_id(text)
        return None if found is None else int(found)

    def _decode(self, ids: Sequence[int]) -> str:
        with _refusals(f"{self.name} cannot decode tokens"):
            return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))


class Gpt2Tokenizer:
    """GPT-2's vocabulary, through tiktoken, which downloads it on first use.

    Raises:
        InputError: the vocabulary is not available.
        MissingDependencyError: tiktoken is not installed.
    """

    name = GPT2

    def __init__(self) -> None:
        try:
            import tiktoken
        except ImportError as error:
            raise MissingDependencyError(
                "tiktoken is not installed", "Install it: pip install 'tiktoken>=0.7'"
            ) from error
        try:
            self._encoding: Any = tiktoken.get_encoding(GPT2)
        except Exception as error:  # from whatever tiktoken uses to download it
            raise InputError(
                f"tiktoken cannot fetch GPT-2's vocabulary: {reason_of(error)}",
                "Run it once on a machine with network access, with TIKTOKEN_CACHE_DIR set, and copy that folder here",
            ) from error
        self.size = int(self._encoding.n_vocab)

    def encode(self, text: str, *, begins: bool = True) -> list[int]:  # noqa: ARG002, D102
        return list(self._encoding.encode_ordinary(_as_utf8(text)))

    def stream(self, context: Sequence[int] = (), held: Held | None = None) -> TextStream:  # noqa: ARG002, D102
        return BytesStream(self._encoding.decode_single_token_bytes, held)

    def bytes_of(self, token: int) -> bytes:  # noqa: D102
        return bytes(self._encoding.decode_single_token_bytes(token))


def is_file(name: str) -> bool:
    """Return whether a tokenizer's name is the path of a file."""
    return name not in NAMES


def choose_tokenizer(name: str, vocabulary: int) -> Tokenizer:
    """Return a tokenizer by name.

    Args:
        name: "bytes", "gpt2", the path of a file, or "auto" to choose by the size of the vocabulary.
        vocabulary: number of ids that the model has.

    Raises:
        InputError: no tokenizer is known for the size, or the file or the vocabulary is not available.
        MissingDependencyError: a library is not installed.
    """
    if name == AUTO and vocabulary == _BYTES_VOCABULARY:
        name = BYTES
    elif name == AUTO and vocabulary in _GPT2_VOCABULARIES:
        name = GPT2
    elif name == AUTO:
        raise InputError(f"no tokenizer is known for {vocabulary} tokens", _HINT)
    if name == BYTES:
        return ByteTokenizer()
    if is_file(name):
        return FileTokenizer(name)
    if vocabulary < _GPT2_VOCABULARIES.start:
        raise InputError(
            f"GPT-2's tokenizer has {_GPT2_VOCABULARIES.start} tokens, but the model has {vocabulary}", _HINT
        )
    return Gpt2Tokenizer()


def _as_utf8(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError("the prompt is not UTF-8", "Only a byte tokenizer accepts arbitrary bytes") from error
    return text
