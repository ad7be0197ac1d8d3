"""Servers of many streams: a run gives each stream its next token, the likeliest one."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from pom_export.bench.runners import Array, Bound, Runner, SessionRunner, session_settings
from pom_export.errors import MissingDependencyError
from pom_export.packaging.package import package
from pom_export.runtime import PoolStream, StreamingSession, StreamPool
from pom_export.runtime.streaming.interface import IDS

_FETCHED: Final = Path(__file__).parents[2] / ".deps"
# More than a backend runs at one size; onnxruntime-genai reserves memory for their ids.
_MOST_STEPS: Final = 2**14
# The model's tokens. A package for onnxruntime-genai adds one for the end of texts.
_BYTES: Final = 256


class PoolRunner(Runner):
    """A StreamPool with all streams.

    Args:
        model: a stateful export.
        streams: how many there can be.
        threads: threads of ONNX Runtime.
    """

    def __init__(self, model: Path, streams: int, threads: int) -> None:
        self._pool = StreamPool(model, streams=streams, session_options=session_settings(threads))
        self._streams: list[PoolStream] = []

    def bind(self, feed: Mapping[str, Array]) -> Bound:  # noqa: D102
        for stream in self._streams:
            stream.close()
        self._streams = [self._pool.open() for _ in feed[IDS]]
        self._pool.step(self._streams, feed[IDS][:, 0])

        def run() -> Array:
            answers = self._pool.tick()
            self._pool.step(answers.streams, answers.outputs.argmax(-1))
            return answers.outputs

        return Bound([run()], run, feed)


class SessionsRunner(Runner):
    """A StreamingSession for each stream, one after the other, on the same loaded weights.

    Args:
        model: a stateful export.
        threads: threads of ONNX Runtime.
    """

    def __init__(self, model: Path, threads: int) -> None:
        self._empty = StreamingSession(model, session_options=session_settings(threads))

    def bind(self, feed: Mapping[str, Array]) -> Bound:  # noqa: D102
        tokens = feed[IDS][:, 0].copy()
        sessions = [self._empty.fork() for _ in tokens]

        def run() -> list[Array]:
            outputs = [session.step(token) for session, token in zip(sessions, tokens[:, np.newaxis], strict=True)]
            tokens[:] = [output[0].argmax() for output in outputs]
            return outputs

        return Bound([np.concatenate(run())], run, feed)


def import_genai() -> Any:
    """Return onnxruntime_genai: what is installed, or what `make test-all` has fetched into .deps.

    Raises:
        MissingDependencyError: it is in neither place.
    """
    sys.path += [path for path in map(str, sorted(_FETCHED.glob("onnxruntime-genai-*"))) if path not in sys.path]
    try:
        import onnxruntime_genai
    except ImportError as error:
        raise MissingDependencyError(
            "onnxruntime-genai is not installed", "`make test-all` fetches it, as does pip install onnxruntime-genai"
        ) from error
    return onnxruntime_genai


def package_for_genai(model: Path, folder: Path, threads: int) -> None:
    """Write a package for onnxruntime-genai.

    Args:
        model: a stateful export.
        folder: where to.
        threads: threads of ONNX Runtime; 0: one for each core.
    """
    import_genai()
    package(model, folder, target="genai")
    file = folder / "genai_config.json"
    config = json.loads(file.read_text())
    config["model"]["decoder"]["session_options"]["intra_op_num_threads"] = threads
    file.write_text(json.dumps(config))


class GenaiRunner(Runner):
    """A generator of onnxruntime-genai with all streams, which begin with as many tokens each.

    Args:
        folder: what `package_for_genai` has written.
    """

    def __init__(self, folder: Path) -> None:
        self._library = import_genai()
        self._model = self._library.Model(str(folder))

    def bind(self, feed: Mapping[str, Array]) -> Bound:  # noqa: D102
        ids = feed[IDS].astype(np.int32)
        params = self._library.GeneratorParams(self._model)
        params.set_search_options(batch_size=len(ids), max_length=_MOST_STEPS)
        generator = self._library.Generator(self._model, params)
        generator.append_tokens(ids)
        first = np.array(generator.get_logits())[:, -1, :_BYTES]
        return Bound([first], generator.generate_next_token, feed)


class CacheRunner(Runner):
    """Attention in one batch, whose caches of keys and values are written in place.

    Args:
        session: an onnxruntime.InferenceSession.
        in_place: the inputs of the caches, by output.
    """

    def __init__(self, session: Any, in_place: Mapping[str, str]) -> None:
        self._runner = SessionRunner(session, in_place)

    def bind(self, feed: Mapping[str, Array]) -> Bound:  # noqa: D102
        bound, tokens = self._runner.bind(feed), feed[IDS]

        def run() -> None:
            bound.run()
            tokens[:, 0] = bound.outputs[0][:, 0].argmax(-1)

        return Bound([bound.outputs[0][:, 0].copy()], run, feed)
