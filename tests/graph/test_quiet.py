"""What torch says of itself does not come before our one line."""

from __future__ import annotations

import io
import logging
import sys

import pytest
import torch
from torch import nn

from pom_export.errors import InputError
from pom_export.graph.own_program import module_program
from pom_export.graph.quiet import quiet_failure, quiet_torch


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


def test_a_module_of_torch_fx_fails_without_its_trace(capfd: pytest.CaptureFixture[str]) -> None:
    class Fixed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(2, 3)

    traced = torch.fx.symbolic_trace(Fixed())
    assert module_program(traced, {"x": torch.ones(6)})
    with pytest.raises(InputError, match="fails on the example inputs: shape"):
        module_program(traced, {"x": torch.ones(7)})
    assert capfd.readouterr().err == ""
