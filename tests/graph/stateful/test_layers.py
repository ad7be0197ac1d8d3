"""Layers of a user's own that keep a state: which are called and how often, and what they say of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pom_export import PolynomialMixer
from pom_export.errors import InputError
from tests.causal_models import WIDTH, MovingAverage
from tests.graph.stateful.streaming import difference, one_pass, program_of, streamed


class Model(nn.Module):
    """A causal mixer after a layer that is called some times."""

    def __init__(self, times: int = 1, layer: type[MovingAverage] = MovingAverage) -> None:
        super().__init__()
        self.tokens, self.average, self.times = nn.Embedding(11, WIDTH), layer(), times
        self.mixer = PolynomialMixer(WIDTH, 2, 2)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.tokens(input_ids)
        for _ in range(self.times):
            x = torch.tanh(self.average(x))
        return self.mixer(x, mask="causal")


def _examples() -> dict[str, Tensor]:
    return {"input_ids": torch.randint(0, 11, (2, 9), generator=torch.Generator().manual_seed(0))}


def test_each_call_of_a_layer_has_a_state() -> None:
    torch.manual_seed(0)
    model, feed = Model(times=2).eval(), _examples()
    program = program_of(model, feed)
    assert [name for name in program.inputs if name.startswith("past_layer")] == [
        "past_layer.average.average",
        "past_layer.average.average.1",
    ]
    assert difference(streamed(program, feed, (1, 5)), one_pass(model, feed)) < 2e-6


def test_a_mask_is_for_models_that_call_no_such_layer() -> None:
    assert "mask" in program_of(Model(times=0).eval(), _examples(), masked=True).inputs
    with pytest.raises(InputError, match="average keeps a state of its own, which must not take in masked tokens"):
        program_of(Model().eval(), _examples(), masked=True)


class _Fails(MovingAverage):
    def state_shapes(self) -> Any:
        raise KeyError("width")


def _saying(shapes: Any) -> type[MovingAverage]:
    class Layer(MovingAverage):
        def state_shapes(self) -> Any:
            return shapes

    return Layer


def _leaving(present: Any) -> type[MovingAverage]:
    class Layer(MovingAverage):
        def stream(self, x: Tensor, state: Mapping[str, Tensor]) -> Any:  # noqa: ARG002 (the protocol)
            return x, {"average": present}

    return Layer


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (_saying({"average": (2,)}), r"fails on a state of average \(batch, 2\), as state_shapes\(\) says"),
        (_saying({"average": WIDTH}), r"says 'average': 16\. Give the sizes for one row, without the batch"),
        (_saying({"average": "16"}), r"says 'average': '16'\. Give the sizes for one row"),
        (_saying({"average": (-1,)}), r"says 'average': \(-1,\)\. Give the sizes for one row"),
        (_saying({"an average": (WIDTH,)}), "names a part 'an average'"),
        (_saying(None), r"returns None\. Return a mapping"),
        (_Fails, r"state_shapes\(\) of average \(_Fails\) fails: KeyError 'width'"),
        (_leaving(None), "returns None as the state 'average'"),
        (_leaving(torch.zeros(2, 3)), r"returns torch.float32 \(2, 3\) as the state 'average', .* says \(batch, 16\)"),
    ],
)
def test_what_a_layer_says_wrong(layer: type[MovingAverage], message: str) -> None:
    with pytest.raises(InputError, match=message):
        program_of(Model(layer=layer).eval(), _examples())
