"""A causal mask that a model gets as an input is none of the file's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pom_export import PolynomialMixer
from pom_export.errors import InputError
from pom_export.graph.programs.own_stateful import one_pass_program, stateful_program
from tests.causal_models import WIDTH
from tests.graph.stateful.streaming import difference, one_pass, program_of, streamed

IDS = torch.randint(0, 11, (2, 9), generator=torch.Generator().manual_seed(0))
LOWER = torch.ones(9, 9, dtype=torch.bool).tril()


class Masked(nn.Module):
    """A mixer that sees what a mask says."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.mixer = nn.Embedding(11, WIDTH), PolynomialMixer(WIDTH, 2, 2)

    def forward(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        x = self.tokens(input_ids)
        return x + self.mixer(x, mask=mask)


def test_a_causal_mask_is_made_for_each_call() -> None:
    model, feed = Masked().eval(), {"input_ids": IDS, "mask": LOWER.float().expand(2, -1, -1)}
    program = program_of(model, feed)
    assert [*program.inputs] == ["input_ids", "past_state", "past_length"]
    assert "mask is no input of the file: a token sees itself and all before it" in program.notes
    expected = one_pass(model, feed)
    assert difference(streamed(program, {"input_ids": IDS}, (2, 5)), expected) < 2e-6
    whole = one_pass_program(model, feed)
    assert difference(whole.module(input_ids=IDS)[0], expected) < 2e-6


@pytest.mark.parametrize(
    "mask", [LOWER[None] & (torch.arange(9) != 3), LOWER.tril(-1)[None], LOWER.flip(0, 1)[None], LOWER.triu(-2)[None]]
)
def test_other_masks_are_refused(mask: Tensor) -> None:
    with pytest.raises(InputError, match=r"must be a causal mask, .* and the example of mask is another one, 1x9x9"):
        stateful_program(Masked(), {"input_ids": IDS, "mask": mask})


def test_a_mask_of_another_sequence_needs_another_name() -> None:
    class Pooled(Masked):
        def forward(self, input_ids: Tensor, mask: Tensor) -> Tensor:
            return super().forward(input_ids, "causal") + mask.float().mean(1)[:, None, None]

    with pytest.raises(InputError, match=r"the model's is another one. Rename it, such as src_mask"):
        stateful_program(Pooled(), {"input_ids": IDS, "mask": torch.ones(2, 4)})
