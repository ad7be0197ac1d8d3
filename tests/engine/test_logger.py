"""Errors that TensorRT logs: each job gets its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from pom_export.engine.backend import load_backend
from pom_export.engine.logger import collected_errors, errors_here, tensorrt_logger

pytestmark = pytest.mark.usefixtures("tensorrt_rtx")


@pytest.fixture
def log() -> Callable[[str], None]:
    trt: Any = load_backend("tensorrt-rtx").module
    logger = tensorrt_logger(trt)

    def error(text: str) -> None:
        logger.log(trt.ILogger.INFO, f"no error: {text}")
        logger.log(trt.ILogger.ERROR, text)

    return error


def in_thread(work: Callable[[], None]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def test_threads_get_their_own_errors(log: Callable[[str], None]) -> None:
    found: list[list[str]] = []

    def other() -> None:
        with collected_errors() as errors:
            log("of the other")
        found.append(errors)

    with collected_errors() as errors:
        log("of this")
        in_thread(other)
        assert errors_here() == ["of this"]
    assert errors == ["of this"]
    assert found == [["of the other"]]


def test_an_error_from_a_thread_without_a_block_goes_to_all(log: Callable[[str], None]) -> None:
    with collected_errors() as errors:
        in_thread(lambda: log("of a worker"))
    assert errors == ["of a worker"]


def test_nothing_is_kept_for_later(log: Callable[[str], None]) -> None:
    log("of nobody")
    with collected_errors() as errors:
        assert errors_here() == []
    log("too late")
    assert errors == []
    assert errors_here() == []
