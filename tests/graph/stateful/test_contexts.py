"""What depends on a context alone is computed in the first call, and kept; or the context is given to every call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pom_export import PolynomialMixer
from pom_export.graph.programs.own_stateful import context_inputs, one_pass_program, with_context_limits
from pom_export.graph.tracing import trace
from tests.causal_models import MODELS, WIDTH
from tests.graph.stateful.streaming import difference, one_pass, program_of, streamed
from tests.slow_cases import slow_cases

SAME = 2e-6


class Decoder(nn.Module):
    """A causal mixer, to every token of which the last token of an encoder that a test chooses is added."""

    def __init__(self, encode: Callable[[Any, Tensor], Tensor], layer: nn.Module) -> None:
        super().__init__()
        self.tokens, self.encode, self.layer = nn.Embedding(11, WIDTH), encode, layer
        self.mixer = PolynomialMixer(WIDTH, 2, 2)

    def forward(self, tgt: Tensor, memory: Tensor) -> Tensor:
        return self.mixer(self.tokens(tgt) + self.encode(self.layer, memory)[:, -1:], mask="causal")


def test_tokens_are_picked_from_what_the_first_call_gets() -> None:
    torch.manual_seed(0)
    make, examples = MODELS["picked source"]
    model, feed = make().eval(), examples()
    program = program_of(model, feed)
    # The sum of the first and the last token; all tokens, from which others are picked; and their ids.
    kept = {tuple(tensor.shape[1:]) for name, tensor in program.inputs.items() if name.startswith("past_context")}
    assert kept == {(1, WIDTH), (3, WIDTH), (3,)}
    assert difference(streamed(program, feed, (2, 5)), one_pass(model, feed)) < SAME


ENCODERS: dict[str, tuple[Callable[[Any, Tensor], Tensor], Callable[[], nn.Module]]] = {
    "positions for each of its tokens": (lambda layer, x: x + layer.weight, lambda: nn.Embedding(7, WIDTH)),
    "a convolution": (
        lambda layer, x: layer(x.transpose(1, 2)).transpose(1, 2),
        lambda: nn.Conv1d(WIDTH, WIDTH, 3, padding=1),
    ),
    "a recurrent layer": (lambda layer, x: layer(x)[0], lambda: nn.GRU(WIDTH, WIDTH, batch_first=True)),
}


@pytest.mark.parametrize("name", slow_cases(list(ENCODERS), lambda name: not name.startswith("positions"), str))
def test_an_encoder_that_needs_tokens_gets_its_context_in_every_call(name: str) -> None:
    encode, layer = ENCODERS[name]
    model = Decoder(encode, layer()).eval()
    feed = {"tgt": torch.randint(0, 11, (2, 9)), "memory": torch.randn(2, 7, WIDTH)}
    program = program_of(model, feed)
    assert (context_inputs(program), list(program.inputs)[:3]) == ([], ["tgt", "memory", "past_state"])
    assert "memory is given to every call" in "".join(program.notes)
    assert difference(streamed(program, feed, (2, 5)), one_pass(model, feed)) < SAME


class WithEncoderOutput(nn.Module):
    """Returns the encoder's output beside the logits, as Hugging Face's encoder-decoders do."""

    def __init__(self) -> None:
        super().__init__()
        self.model = MODELS["encoder-decoder"][0]()

    def forward(self, src: Tensor, tgt: Tensor) -> dict[str, Tensor]:
        return {"logits": self.model(src, tgt), "encoder": self.model.encoder(self.model.source(src))}


def test_an_output_of_the_context_alone_is_left_out() -> None:
    torch.manual_seed(0)
    model, feed = WithEncoderOutput().eval(), MODELS["encoder-decoder"][1]()
    program = program_of(model, feed)
    assert [name for name in program.outputs if not name.startswith("present")] == ["logits"]
    assert "the output encoder does not depend on the tokens and is not in the file" in program.notes
    assert difference(streamed(program, feed, (2, 5)), one_pass(model, feed)) < SAME
    (one,) = one_pass_program(model, feed).module(**feed)
    assert difference(one, one_pass(model, feed)) < SAME


def test_the_end_of_an_encoders_positions_is_a_limit() -> None:
    torch.manual_seed(0)
    model = Decoder(lambda layer, x: x + layer(torch.arange(x.shape[1])), nn.Embedding(12, WIDTH)).eval()
    program = program_of(model, {"tgt": torch.randint(0, 11, (2, 9)), "memory": torch.randn(2, 7, WIDTH)})
    limited = with_context_limits(program, trace(program, 20).bounds)
    assert limited.limits.sizes == {"memory_tokens": (0, 12)}
    assert '"sizes":{"memory_tokens":[0,12]}' in limited.properties["limits"]
