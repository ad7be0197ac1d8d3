"""Copies that share what need not change."""

from __future__ import annotations

from types import SimpleNamespace
from typing import ClassVar

import torch
from torch import nn

from pom_export.graph.copying import copy_module
from pom_export.models import GPT, GPTConfig


def test_a_copy_of_the_same_type_shares_every_parameter_and_leaves_the_model_in_training() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).train()
    copied = copy_module(model, torch.float32)
    assert model.training
    assert not copied.training
    for name, parameter in model.named_parameters():
        assert copied.get_parameter(name) is parameter


class Counting(nn.Module):
    """Writes to a buffer, and keeps what it computed."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.register_buffer("calls", torch.zeros(()))
        self.last = torch.zeros(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.last = self.linear(x)
        return self.last


def test_calls_of_the_copy_leave_the_model_as_it_was() -> None:
    model = Counting()
    model(torch.ones(1, 3))  # what it keeps has a history, which deepcopy alone refuses
    copied = copy_module(model)
    copied(torch.ones(2, 3))
    assert copied.calls == 2
    assert model.calls == 1
    assert model.last.shape == (1, 3)


def test_a_copy_of_another_type_has_weights_of_its_own() -> None:
    model = nn.Linear(3, 3)
    copied = copy_module(model, torch.float64)
    assert copied.weight.dtype == torch.float64
    assert model.weight.dtype == torch.float32
    assert torch.equal(copied.weight, model.weight.double())


def test_tied_weights_stay_tied() -> None:
    copied = copy_module(GPT(GPTConfig(11, 1, 2, 8, 2, 2, 2, 1, mlp_width=8)), torch.float64)
    assert copied.lm_head.weight is copied.transformer["wte"].weight


def test_what_closes_something_at_its_end_is_not_copied() -> None:
    class Connection:
        """As multiprocessing's: copy.deepcopy copies its handle."""

        closed: ClassVar[list[int]] = []

        def __del__(self) -> None:
            self.closed.append(id(self))

    model = nn.Linear(2, 2)
    model.held = {"queue": [SimpleNamespace(reader=Connection())]}
    copied = copy_module(model)
    assert copied.held["queue"][0] is not model.held["queue"][0]
    assert copied.held["queue"][0].reader is model.held["queue"][0].reader
    del copied
    assert not Connection.closed
