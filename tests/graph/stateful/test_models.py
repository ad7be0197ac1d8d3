"""Users' causal models give the same in any number of calls as in one pass."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor, nn

from pom_export.graph.program import Program
from pom_export.graph.stateful.module import MASK
from tests.causal_models import LAST_TOKEN, MODELS, TABLE, VOCABULARY, LastToken
from tests.graph.stateful.streaming import difference, one_pass, program_of, streamed
from tests.slow_cases import slow_cases

# The hybrid, whose rows below have different lengths, has most kinds of states; the others run in `make test-all`.
QUICK = ("own layer", "packed mask")
# Sums in another order, in float32.
SAME = 2e-6


@functools.cache
def _made(name: str) -> tuple[nn.Module, dict[str, Tensor], Program]:
    """Return a model, example inputs and its stateful program, which takes long to find out."""
    torch.manual_seed(0)
    make, examples = MODELS[name]
    model, feed = make().eval(), examples()
    return model, feed, program_of(model, feed)


# PyTorch can't split the heads of an empty source, as a file does in all calls but the first.
ONLY_AS_FILES = ("masked source", "masked source, named as hugging face does")


@pytest.mark.parametrize("name", slow_cases(sorted(MODELS.keys() - ONLY_AS_FILES), lambda name: name not in QUICK, str))
def test_calls_give_what_one_pass_gives(name: str) -> None:
    model, feed, program = _made(name)
    expected = one_pass(model, feed)
    for cuts in ((), (4,), tuple(range(1, expected.shape[1]))):
        assert difference(streamed(program, feed, cuts), expected) < SAME
    # At other sizes than those of the example, and one row.
    long = {key: torch.cat([tensor[:1]] * 2, dim=1) for key, tensor in feed.items()}
    assert difference(streamed(program, long, (1, 2, 11)), one_pass(model, long)) < SAME


def test_ids_that_are_reshaped_have_a_vocabulary() -> None:
    limits = _made("packed mask")[2].limits
    assert limits is not None
    assert limits.values == {"input_ids": (VOCABULARY,)}


@pytest.mark.slow
def test_given_positions_are_those_that_count() -> None:
    model, feed = MODELS["packed mask"][0]().eval(), MODELS["packed mask"][1]()
    feed["position_ids"] = torch.arange(9).repeat(2, 1)
    found = streamed(program_of(model, feed), feed, (1, 2, 7))
    assert difference(found, one_pass(model, feed)) < SAME
    assert difference(found, one_pass(model, {"input_ids": feed["input_ids"]})) < SAME


@pytest.mark.parametrize("way", slow_cases(list(LAST_TOKEN), lambda name: name != "list", str))
def test_a_model_of_the_last_token_gives_every_token(way: str) -> None:
    torch.manual_seed(0)
    model, feed = LastToken(LAST_TOKEN[way]).eval(), MODELS["learned positions"][1]()
    program = program_of(model, feed)
    found = streamed(program, feed, (2, 7))
    for length in (1, 5, 9):
        expected = one_pass(model, {"idx": feed["idx"][:, :length]})
        assert difference(found[:, length - 1], expected.reshape(2, -1)) < SAME


STATES = {
    "learned positions": ["past_state", "past_length"],
    "own layer": ["past_state", "past_layer.average.average", "past_length"],
    "cross attention": ["past_state.0", "past_state.1", "past_context.0", "past_context.1", "past_length"],
    "encoder-decoder": ["past_state", "past_context.0", "past_length"],
}


@pytest.mark.parametrize("name", slow_cases(list(STATES), lambda name: name not in QUICK, str))
def test_state_holds_what_the_model_needs(name: str) -> None:
    _, _, program = _made(name)
    assert [each for each in program.inputs if each.startswith("past_")] == STATES[name]


@pytest.mark.slow
def test_limits_are_those_of_tables_and_vocabularies() -> None:
    limits = _made("learned positions")[2].limits
    assert (limits.tokens, limits.values) == (TABLE, {"idx": (50,)})


def test_rows_of_different_lengths() -> None:
    torch.manual_seed(0)
    make, examples = MODELS["hybrid"]
    model, feed = make().eval(), examples()
    program = program_of(model, feed, masked=True)
    ids = feed["input_ids"]
    # Of 9 places in two calls, the first row keeps 3 and 2, the second all.
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[0, [3, 4, 7, 8]] = False
    found = streamed(program, {"input_ids": ids, MASK: mask}, (5,))
    short = one_pass(model, {"input_ids": ids[:1, mask[0]]})
    assert difference(found[:1, mask[0]], short) < SAME
    assert difference(found[1:], one_pass(model, {"input_ids": ids[1:]})) < SAME
