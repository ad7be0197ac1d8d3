"""Modes of torch that callers and models switch on do not affect the trace."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import pom_export
from pom_export.torch_modes import default_dtype, no_transforms_left, plain_modes


def computed_type() -> torch.dtype:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return (torch.ones(2, 2) @ torch.ones(2, 2)).dtype


def test_autocast_has_no_effect_and_is_noted() -> None:
    with plain_modes() as modes:
        with torch.autocast("cpu", enabled=False):
            pass
        assert not modes.autocast
        assert computed_type() == torch.float32
        assert modes.autocast
    assert computed_type() == torch.bfloat16
    assert not torch.is_autocast_enabled("cpu")


def test_autocast_of_another_thread_stays() -> None:
    found = []
    with plain_modes():
        thread = threading.Thread(target=lambda: found.append(computed_type()))
        thread.start()
        thread.join()
    assert found == [torch.bfloat16]


def test_threads_take_turns_and_leave_torch_as_it_was() -> None:
    """The default dtype belongs to all threads: one that traces must not see another's."""
    started, found = threading.Event(), []

    def second() -> None:
        started.set()
        with plain_modes():
            found.append((torch.get_default_dtype(), computed_type()))

    thread = threading.Thread(target=second)
    with plain_modes(), default_dtype(torch.float64):
        thread.start()
        assert started.wait(60)
        thread.join(0.05)
        assert not found
    thread.join()
    assert found == [(torch.float32, torch.float32)]
    assert computed_type() == torch.bfloat16
    assert torch.autocast.__enter__.__module__ == "torch.amp.autocast_mode"
    assert torch.get_default_dtype() == torch.float32


def test_what_is_as_it_should_be_is_not_touched() -> None:
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        torch.use_deterministic_algorithms(True, warn_only=True)
        with plain_modes():
            assert not torch.are_deterministic_algorithms_enabled()
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def test_one_inside_another_keeps_what_the_outer_met() -> None:
    with plain_modes() as outer:
        with plain_modes() as inner:
            computed_type()
        assert (outer.autocast, inner.autocast) == (False, True)
        assert computed_type() == torch.float32
        assert outer.autocast


class Head(nn.Module):
    """A mixer, and a head with another precision."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mixer = pom_export.PolynomialMixer(8, 2, 1)
        self.head = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.mixer(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = self.head(y)
        return y.float()


def test_autocast_in_a_part_of_a_model_is_reported(tmp_path: Path) -> None:
    model, x = Head().eval(), torch.randn(2, 5, 8)
    result = pom_export.export(model, tmp_path / "m.onnx", example_inputs=(x,))
    assert result.notes == ["the model's torch.autocast has no effect: the file computes in float32, as dtype says"]
    assert result.checked


@pytest.mark.parametrize("layers", [["vmap"], ["grad"], ["vmap", "vmap"], ["vmap", "grad"], ["grad", "vmap"]])
def test_transforms_that_a_failure_left_are_ended(layers: list[str]) -> None:
    functorch = torch._C._functorch
    enter = {"vmap": lambda: functorch._vmap_increment_nesting(3, "error"), "grad": functorch._grad_increment_nesting}
    with contextlib.suppress(ValueError), no_transforms_left():
        for layer in layers:
            enter[layer]()
        raise ValueError("in the model")
    assert functorch.get_dynamic_layer_stack_depth() == 0
    assert torch.vmap(torch.func.grad(lambda x: x * x))(torch.ones(3)).tolist() == [2, 2, 2]
