"""What each input of a causal model is follows from its shape, its values and the model's output."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from pom_export.errors import InputError
from pom_export.graph.stateful.roles import find_roles

IDS = torch.zeros(2, 5, dtype=torch.int64)


def _as_long_as(name: str) -> object:
    return lambda feed: {"logits": torch.zeros(*feed[name].shape[:2], 7)}


def test_masks_and_positions_are_not_tokens() -> None:
    examples = {
        "input_ids": IDS,
        "attention_mask": torch.ones(2, 5, dtype=torch.int64),
        "key_padding_mask": torch.zeros(2, 5, dtype=torch.bool),
        "position_ids": torch.arange(5).expand(2, -1),
        "label": torch.zeros(2, dtype=torch.int64),
    }
    roles = find_roles(examples, _as_long_as("input_ids"))
    assert list(roles.of.values()) == ["tokens", "valid", "valid", "positions", "fixed"]
    assert (roles.main, roles.fills) == ("input_ids", {"attention_mask": 1, "key_padding_mask": False})


@pytest.mark.parametrize("count", [4, 5])
def test_the_output_tells_tokens_from_a_context(count: int) -> None:
    roles = find_roles({"src": torch.zeros(2, count, 3), "tgt": IDS}, _as_long_as("tgt"))
    assert roles.of == {"src": "context", "tgt": "tokens"}


def test_inputs_that_only_change_together_are_all_tokens() -> None:
    def run(feed: Mapping[str, Tensor]) -> Tensor:
        if feed["a"].shape != feed["b"].shape:
            raise InputError("they differ")
        return feed["a"][..., None]

    assert find_roles({"a": IDS, "b": IDS}, run).of == {"a": "tokens", "b": "tokens"}


@pytest.mark.parametrize(
    ("name", "values", "advice"),
    [("attention_mask", [1, 1, 1, 1, 0], "ones"), ("key_padding_mask", [0, 0, 0, 0, 1], "zeros")],
)
def test_masks_that_leave_tokens_out_are_refused(name: str, values: list[int], advice: str) -> None:
    with pytest.raises(InputError, match=f"leaves some out. Give one of {advice}"):
        find_roles({"input_ids": IDS, name: torch.tensor([values, values])}, _as_long_as("input_ids"))


@pytest.mark.parametrize("shape", [(2, 7), (2, 1, 7)])
def test_an_output_of_the_last_token(shape: tuple[int, ...]) -> None:
    roles = find_roles({"idx": IDS, "label": torch.zeros(2)}, lambda _: torch.zeros(shape))
    assert (roles.last, roles.main, roles.count) == (True, "idx", 5)


def test_an_output_without_tokens_is_refused() -> None:
    with pytest.raises(InputError, match="the outputs have 7 tokens, the inputs are input_ids 2x5"):
        find_roles({"input_ids": IDS}, lambda _: torch.zeros(2, 7, 3))


@pytest.mark.parametrize("rows", [1, 2])
def test_rows_that_depend_on_each_other_are_refused(rows: int) -> None:
    def run(feed: Mapping[str, Tensor]) -> Tensor:
        return feed["ids"].float().cumsum(0)[..., None]

    with pytest.raises(
        InputError, match=r"the outputs of a row depend on others\. Let the model take \(batch, tokens\)"
    ):
        find_roles({"ids": torch.arange(rows * 5).view(rows, 5)}, run)


@pytest.mark.parametrize(
    ("count", "advice"), [(2, "the last 2 tokens, give an example of no more"), (3, r"If ids is \(tokens, batch\)")]
)
def test_advice_on_an_output_of_another_length(count: int, advice: str) -> None:
    with pytest.raises(InputError, match=advice):
        find_roles({"ids": torch.zeros(3, 5, dtype=torch.int64)}, lambda _: torch.zeros(3, count, 7))


@pytest.mark.parametrize("count", [4, 5])
def test_a_mask_belongs_to_the_sequence_that_is_as_long(count: int) -> None:
    def run(feed: Mapping[str, Tensor]) -> Tensor:
        if feed["input_ids"].shape != feed["attention_mask"].shape:
            raise InputError("they differ")
        return feed["decoder_input_ids"][..., None]

    mask = torch.ones(2, count, dtype=torch.int64)
    mask[0, -1] = 0
    examples = {"input_ids": IDS[:, :count], "attention_mask": mask, "decoder_input_ids": IDS}
    assert list(find_roles(examples, run).of.values()) == ["context", "context", "tokens"]
