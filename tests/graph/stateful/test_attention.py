"""Attention, however it is written, keeps keys and values, and masks and biases are those of the positions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pom_export.graph.stateful.module import MASK
from tests.attention_models import ATTENTION, TABLE, VOCABULARY
from tests.graph.stateful.streaming import difference, one_pass, program_of, streamed
from tests.slow_cases import slow_cases

SAME = 2e-6
QUICK = ("alibi from the end",)
# Heads and width of what is kept, and how many tokens the model takes.
KEPT = {
    "einsum": ([(4, 8), (4, 8)], TABLE),
    "grouped einsum": ([(2, 8), (2, 8)], TABLE),
    "multi-query einsum": ([(1, 8), (1, 8)], TABLE),
    "complex rotary": ([(2, 8), (2, 8)], TABLE),
    "alibi": ([(4, 8), (4, 8)], None),
    "alibi from the end": ([(4, 8), (4, 8)], None),
    "buckets": ([(4, 8), (4, 8)], None),
    "window": ([(4, 8), (4, 8)], None),
    "relative keys": ([(4, 8), (4, 8)], None),
    "merged heads": ([(1, 8), (1, 8)], TABLE),
    "sinks and pairs": ([(4, 8), (1, 1), (4, 8)], TABLE),
}


def _ids(rows: int, tokens: int) -> dict[str, Tensor]:
    return {"idx": torch.randint(0, VOCABULARY, (rows, tokens), generator=torch.Generator().manual_seed(0))}


@pytest.mark.parametrize("name", slow_cases(list(ATTENTION), lambda name: name not in QUICK, str))
def test_calls_give_what_one_pass_gives(name: str) -> None:
    torch.manual_seed(0)
    model, feed = ATTENTION[name]().eval(), _ids(2, 9)
    program = program_of(model, feed)
    kept = [tuple(program.inputs[each].shape[1:]) for each in program.inputs if each.startswith("past_key_values.")]
    assert ([(heads, width) for heads, _, width in kept], program.limits.tokens) == KEPT[name]
    expected = one_pass(model, feed)
    for cuts in ((), (4,), tuple(range(1, 9))):
        assert difference(streamed(program, feed, cuts), expected) < SAME
    long = _ids(1, TABLE)
    assert difference(streamed(program, long, (1, 2, 37)), one_pass(model, long)) < SAME


@pytest.mark.parametrize("name", slow_cases(["window", "complex rotary"], lambda name: name != "window", str))
def test_rows_of_different_lengths(name: str) -> None:
    torch.manual_seed(0)
    model, feed = ATTENTION[name]().eval(), _ids(2, 9)
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[0, [3, 4, 7, 8]] = False
    found = streamed(program_of(model, feed, masked=True), {**feed, MASK: mask}, (5,))
    assert difference(found[:1, mask[0]], one_pass(model, {"idx": feed["idx"][:1, mask[0]]})) < SAME
    assert difference(found[1:], one_pass(model, {"idx": feed["idx"][1:]})) < SAME


class _LongWindow(nn.Module):
    """A window that is longer than any sequence that is tried."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, 4)

    def forward(self, idx: Tensor) -> Tensor:
        x = self.tokens(idx)[:, None]
        place = torch.arange(idx.shape[1])
        away = place[:, None] - place
        return functional.scaled_dot_product_attention(x, x, x, attn_mask=(away >= 0) & (away < 6000))[:, 0]


def test_a_window_beyond_what_is_tried() -> None:
    torch.manual_seed(0)
    model, feed = _LongWindow().eval(), _ids(1, 9)
    program = program_of(model, feed)
    (name,) = (each for each in program.inputs if each.startswith("past_key_values."))
    keys = torch.randn(1, 1, 7000, 4)
    past = {"past_length": torch.tensor([7000]), "past_key_values": {name.partition(".")[2]: keys}}
    with torch.no_grad():
        found = program.module(idx=feed["idx"][:, :1], **past)[0][0, 0]
        query = model.tokens(feed["idx"][:1, :1])[0]
        seen = torch.cat([keys[0, 0], query])[-6000:]
        expected = functional.scaled_dot_product_attention(query[None], seen[None], seen[None])[0, 0]
    assert difference(found, expected) < SAME
