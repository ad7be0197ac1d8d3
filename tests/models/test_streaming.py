"""Language models that continue from a state: any split into calls, ragged or not, gives what one pass gives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pom_export.mixer import MixerConfig
from pom_export.models import GPT, GPTConfig, LanguageModel, LanguageModelConfig

MIXER = MixerConfig(8, 3, 2, n_sel_heads=4)
MODELS = {
    "language model": lambda: LanguageModel(LanguageModelConfig(17, 2, 4, 32, MIXER)),
    "one-token window": lambda: LanguageModel(LanguageModelConfig(17, 2, 1, 32, MIXER)),
    "gpt": lambda: GPT(GPTConfig(17, 3, 2, 16, 2, 4, 2, 2, 32)),
    "hybrid": lambda: GPT(GPTConfig(17, 3, 2, 16, 2, 4, 2, 2, 32, (1,))),
    "attention alone": lambda: GPT(GPTConfig(17, 2, 2, 16, 2, 4, 2, 2, 32, (0, 1))),
}


@pytest.fixture(params=MODELS, ids=lambda name: name)
def model(request: pytest.FixtureRequest) -> LanguageModel | GPT:
    torch.manual_seed(0)
    made: LanguageModel | GPT = MODELS[request.param]().double().eval().requires_grad_(requires_grad=False)
    return made


def make_ids(batch: int, tokens: int) -> Tensor:
    return torch.randint(0, 17, (batch, tokens), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("sizes", [[23], [1] * 23, [1, 5, 1, 10, 6], [20, 1, 2]])
def test_any_split_gives_one_pass(model: LanguageModel | GPT, sizes: list[int]) -> None:
    ids = make_ids(3, 23)
    state, logits = model.empty_state(3), []
    for part in ids.split(sizes, dim=1):
        given, state = model.stream(part, state)
        logits.append(given)
    torch.testing.assert_close(torch.cat(logits, 1), model(ids), rtol=1e-9, atol=1e-9)
    assert state.length.tolist() == [23] * 3


def test_rows_of_ragged_calls_go_on_each_by_itself(model: LanguageModel | GPT) -> None:
    ids, expected = make_ids(3, 20), model(make_ids(3, 20))
    state, seen = model.empty_state(3), [0, 0, 0]
    for taken in ([5, 2, 1], [1, 1, 1], [0, 6, 3], [4, 1, 0], [1, 1, 1]):
        width = max(taken) + 1  # at least one token of padding
        call = torch.full((3, width), 16)
        for row, count in enumerate(taken):
            call[row, :count] = ids[row, seen[row] : seen[row] + count]
        mask = torch.arange(width) < torch.tensor(taken)[:, None]
        logits, state = model.stream(call, state, mask)
        for row, count in enumerate(taken):
            # v1 adds 1e-7 to masked counts, as the official code does.
            wanted = expected[row, seen[row] : seen[row] + count]
            torch.testing.assert_close(logits[row, :count], wanted, rtol=1e-6, atol=1e-6)
            seen[row] += count
    assert state.length.tolist() == seen


def test_a_state_is_as_large_after_many_tokens() -> None:
    model = MODELS["language model"]().eval()
    with torch.no_grad():
        _, few = model.stream(make_ids(1, 3), model.empty_state(1))
        _, many = model.stream(make_ids(1, 500), model.empty_state(1))
    assert few.sums is not None
    assert many.sums is not None
    assert few.sums.shape == many.sums.shape
    assert few.convolution["0"].shape == many.convolution["0"].shape
