"""Streams in forked processes, and snapshots that are sent to other processes."""

from __future__ import annotations

import copy
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pom_export import StreamingSession
from pom_export.errors import InputError
from tests.streaming_graphs import VOCABULARY, running_sum_model

IDS = np.random.default_rng(3).integers(0, VOCABULARY, (1, 12))
_SECONDS = 60


@pytest.fixture(params=[False, True], ids=["sums", "hybrid"])
def session(request: pytest.FixtureRequest, tmp_path: Path) -> StreamingSession:
    session = StreamingSession(running_sum_model(tmp_path / "m.onnx", attention=request.param))
    session.prefill(IDS[:, :5])
    return session


def in_a_fork(check: Callable[[], None]) -> None:
    """Run a check in a forked process, which must not hang."""
    process = os.fork()
    if not process:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(_SECONDS)
        try:
            check()
        except BaseException as error:  # noqa: BLE001 (said by the parent's failure)
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
            os._exit(1)
        os._exit(0)
    assert os.waitpid(process, 0)[1] == 0


@contextmanager
def in_a_call(session: StreamingSession, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keep a stream in the middle of a call, in another thread."""
    inside, go_on = threading.Event(), threading.Event()
    run = session._backend.run

    def slow(*arguments: Any) -> Any:
        inside.set()
        assert go_on.wait(_SECONDS)
        return run(*arguments)

    monkeypatch.setattr(session._backend, "run", slow)
    thread = threading.Thread(target=session.prefill, args=(IDS,))
    thread.start()
    assert inside.wait(_SECONDS)
    yield
    go_on.set()
    thread.join()


def test_a_stream_goes_on_in_a_fork(session: StreamingSession) -> None:
    expected = session.fork().prefill(IDS[:, 5:])

    def check() -> None:
        np.testing.assert_array_equal(session.fork().prefill(IDS[:, 5:]), expected)
        np.testing.assert_array_equal(session.prefill(IDS[:, 5:]), expected)

    in_a_fork(check)
    np.testing.assert_array_equal(session.prefill(IDS[:, 5:]), expected)


def test_a_fork_in_the_middle_of_a_call_has_the_state_before_it(
    session: StreamingSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, twin = session.model.path, session.fork()
    expected = twin.prefill(IDS[:, 5:])

    def check() -> None:
        for stream in (session, twin):
            for call in (lambda: stream.step([1]), lambda: stream.prefill(IDS), stream.fork):  # noqa: B023
                with pytest.raises(InputError, match="was forked while another thread ran the model"):
                    call()
        assert (session.length, twin.length) == (5, 12)
        other = StreamingSession(path)
        other.restore(session.snapshot())
        np.testing.assert_array_equal(other.prefill(IDS[:, 5:]), expected)
        session.reset()
        assert session.length == 0
        session.restore(other.snapshot())
        assert session.length == 12

    with in_a_call(session, monkeypatch):
        in_a_fork(check)
    assert session.length == 17


def test_a_stream_is_not_copied_but_its_snapshot_is(session: StreamingSession) -> None:
    for call in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(InputError, match=r"cannot be copied or pickled. Use fork\(\), or send its snapshot\(\)"):
            call(session)
    session.restore(pickle.loads(pickle.dumps(session.snapshot())))
    assert session.length == 5
