"""Copies of modules share whatever need not change."""

from __future__ import annotations

from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from torch import nn

from pom_export.errors import InputError
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


class Merging(nn.Linear):
    """An adapter that is added to the weight in evaluation."""

    def train(self, mode: bool = True) -> Merging:
        if self.training and not mode:
            self.weight.data += 1
        return super().train(mode)


def test_a_change_of_weights_in_evaluation_is_the_copys_alone() -> None:
    model = nn.Sequential(Merging(2, 2), nn.Linear(2, 2))
    before = model[0].weight.clone()
    copied = copy_module(model)
    assert torch.equal(model[0].weight, before)
    assert torch.equal(copied[0].weight, before + 1)
    assert copied[1].weight is model[1].weight


class Restored(nn.Module):
    """Defines itself how it is copied."""

    def __init__(self, **restored: object) -> None:
        super().__init__()
        self.restored = restored
        self.register_buffer("scale", torch.ones(2))
        self.times, self.shift = 3, torch.zeros(2)

    def __setstate__(self, state: dict[str, object]) -> None:
        super().__setstate__(state)
        for name, value in self.restored.items():
            setattr(self, name, value)


@pytest.mark.parametrize(("name", "value"), [("scale", torch.zeros(2)), ("times", 4), ("shift", torch.ones(2))])
def test_a_copy_of_other_values_is_refused(name: str, value: object) -> None:
    with pytest.raises(InputError, match=rf"a copy of 0 \(Restored\) has a different {name} from the original"):
        copy_module(nn.Sequential(Restored(**{name: value})))


def test_a_copy_that_is_made_anew_need_not_know_that_it_is_in_evaluation() -> None:
    """einops's layers are copied in this way."""
    model = nn.Sequential(Restored(training=True)).eval()
    assert not copy_module(model)[0].training
    assert not model[0].training


def test_a_copy_may_lack_what_the_model_makes_again() -> None:
    assert copy_module(Restored(shift=None, scale=torch.ones(2)), torch.float64).shift is None


def test_what_closes_something_at_its_end_is_not_copied() -> None:
    class Connection:
        """Like multiprocessing's, whose handle copy.deepcopy copies."""

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
