"""The float64 reference: one result, whether weights are copied or widened on the fly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pom_export.checkpoint import load_checkpoint
from pom_export.graph.copying import copy_module
from pom_export.graph.reference import Float64Module
from pom_export.mixer import PolynomialMixer


def test_reproduces_the_official_float64_outputs(golden_gpt: Any) -> None:
    module = Float64Module(load_checkpoint(golden_gpt.checkpoint))
    logits = module(torch.from_numpy(golden_gpt.arrays["input_ids"])).numpy()
    assert logits.dtype == np.float64
    wanted = golden_gpt.arrays["logits"]
    # The official run rounded its angles to float32, and nothing else.
    assert np.abs(logits - wanted).max() < 1e-6 * np.abs(wanted).max()


class Awkward(nn.Module):
    """What users do with types and devices: new tensors, conversions, writes, half-precision weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mixer = PolynomialMixer(8, 3, 2)
        self.narrow = nn.Linear(8, 8, bias=False).half()
        self.norm = nn.BatchNorm1d(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.zeros(x.shape, dtype=torch.float32)
        y[:, 1:] = self.mixer(x)[:, :-1]
        y.add_(x)
        y = y + (y.float() @ self.narrow.weight.to(y.dtype).T).relu_()
        y = self.norm(y.transpose(1, 2)).transpose(1, 2)
        return y + self.attention(y, y, y, need_weights=False)[0]


def test_every_step_is_in_float64() -> None:
    module = Awkward()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    wide = Awkward().eval().double()
    expected = torch.zeros_like(x)
    expected[:, 1:] = wide.mixer(x)[:, :-1]
    expected = expected + x
    expected = expected + (expected @ wide.narrow.weight.T).relu()
    expected = wide.norm(expected.transpose(1, 2)).transpose(1, 2)
    expected = expected + wide.attention(expected, expected, expected, need_weights=False)[0]

    with torch.no_grad():
        y = Float64Module(module)(x)

    assert y.dtype == torch.float64
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)
    assert module.training
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


def test_layers_that_check_types_themselves_are_copied() -> None:
    torch.manual_seed(0)
    module = nn.LSTM(8, 8, batch_first=True)
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    with torch.no_grad():
        y, _ = Float64Module(module)(x)
    assert module.weight_ih_l0.dtype == torch.float32
    torch.testing.assert_close(y, copy_module(module, torch.float64)(x)[0].detach())


def test_errors_of_the_module_are_its_own() -> None:
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        Float64Module(nn.Linear(3, 3))(torch.ones(2, 4, dtype=torch.float64))


class Keeping(nn.Module):
    """Writes its result to a slice of a buffer, and counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mixer = PolynomialMixer(8, 2, 1)
        self.register_buffer("cache", torch.zeros(4, 16, 8))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.cache[: x.shape[0], : x.shape[1]] = self.mixer(x)
        return self.cache[: x.shape[0]].sum(1) + self.calls


def test_what_is_written_to_buffers_counts_within_a_call_and_not_beyond_it() -> None:
    module = Keeping()
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    wanted = copy_module(module, torch.float64)(x).detach()
    reference = Float64Module(module)
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(reference(x), wanted, rtol=0, atol=1e-12)
    assert module.calls == 0


def test_new_tensors_hold_the_least_number_of_the_inputs_type() -> None:
    class Filled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.full((2, 2), torch.finfo(x.dtype).min).triu(1) + x

    y = Float64Module(Filled())(torch.zeros(2, 2, dtype=torch.float64))
    assert y[0, 1] == torch.finfo(torch.float64).min
    assert torch.get_default_dtype() == torch.float32
