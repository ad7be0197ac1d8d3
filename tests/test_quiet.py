"""Messages of torch are not printed before our one line."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import threading
import warnings

import pytest
import torch
from torch import nn

from pom_export.errors import InputError
from pom_export.graph.own_program import module_program
from pom_export.quiet import quiet_failure, quiet_polygraphy, quiet_torch, quiet_warnings


def test_loggers_with_levels_of_their_own_are_silent_too() -> None:
    said = io.StringIO()
    handler = logging.StreamHandler(said)
    logger = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    logger.addHandler(handler)
    level = logger.level
    try:
        logger.setLevel(logging.WARNING)
        with quiet_torch():
            logger.critical("of torch")
            logging.getLogger("torch.made.meanwhile").error("of torch")
        logger.warning("ours")
        assert said.getvalue() == "ours\n"
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def test_what_a_block_prints_is_given_out_unless_it_fails(capsys: pytest.CaptureFixture[str]) -> None:
    with quiet_failure():
        print("of the model", file=sys.stderr)
    assert capsys.readouterr().err == "of the model\n"

    def fail() -> None:
        with quiet_failure():
            print("a trace", file=sys.stderr)
            raise ValueError("of the block")

    with pytest.raises(ValueError, match="of the block"):
        fail()
    assert capsys.readouterr().err == ""


def test_other_threads_say_what_they_say(capsys: pytest.CaptureFixture[str]) -> None:
    """Texts, warnings and logs of other threads are kept, while one thread is silent and after it."""
    inside, leave, heard = threading.Event(), threading.Event(), []
    logger = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    handler = logging.StreamHandler(io.StringIO())
    logger.addHandler(handler)

    def speak(who: str) -> None:
        print(who, file=sys.stderr)
        logger.critical(who)
        with pytest.warns(UserWarning, match=who) if who != "silent" else contextlib.nullcontext():
            warnings.warn(who, stacklevel=1)
        heard.append(who)

    def silent() -> None:
        with quiet_torch(), quiet_torch():
            inside.set()
            leave.wait(60)
            speak("silent")

    stderr, filters = sys.stderr, list(warnings.filters)
    thread = threading.Thread(target=silent)
    thread.start()
    try:
        assert inside.wait(60)
        speak("other")
        leave.set()
        thread.join()
        speak("after")
        assert handler.stream.getvalue() == "other\nafter\n"
        assert not handler.filters
    finally:
        leave.set()
        logger.removeHandler(handler)
    assert heard == ["other", "silent", "after"]
    assert capsys.readouterr().err.split() == ["other", "after"]
    assert sys.stderr is stderr
    assert warnings.filters == filters


def test_a_warning_that_would_be_an_error_is_ignored() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with quiet_warnings(FutureWarning):
            warnings.warn("later", FutureWarning, stacklevel=1)
            with pytest.raises(UserWarning):
                warnings.warn("now", UserWarning, stacklevel=1)
        with pytest.raises(FutureWarning):
            warnings.warn("later", FutureWarning, stacklevel=1)


def test_polygraphy_is_silent_until_the_last_block_ends(capsys: pytest.CaptureFixture[str]) -> None:
    from polygraphy.logger import G_LOGGER

    before = G_LOGGER.module_severity.get()
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with quiet_polygraphy():
            inside.set()
            leave.wait(60)

    thread = threading.Thread(target=other)
    with quiet_polygraphy():
        thread.start()
        assert inside.wait(60)
    G_LOGGER.error("of polygraphy")
    leave.set()
    thread.join()
    assert "of polygraphy" not in "".join(capsys.readouterr())
    assert G_LOGGER.module_severity.get() == before
    G_LOGGER.error("of polygraphy")
    assert "of polygraphy" in "".join(capsys.readouterr())


def test_a_process_without_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    with quiet_failure():
        print("to nobody", file=sys.stderr)
    assert sys.stderr is None


def test_a_module_of_torch_fx_fails_without_its_trace(capfd: pytest.CaptureFixture[str]) -> None:
    class Fixed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(2, 3)

    traced = torch.fx.symbolic_trace(Fixed())
    assert module_program(traced, {"x": torch.ones(6)})
    with pytest.raises(InputError, match="fails on the example inputs: shape"):
        module_program(traced, {"x": torch.ones(7)})
    assert capfd.readouterr().err == ""
