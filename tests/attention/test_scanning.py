"""`scan`: what counts as attention, and costs compared with counts made by other means."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pom_export.attention import MultiheadPolynomialMixer, replace_attention, scan
from pom_export.errors import InputError
from pom_export.mixer import PolynomialMixer
from tests.attention import zoo

DIM, HEADS = zoo.DIM, zoo.HEADS


@pytest.mark.parametrize(
    ("block", "kind", "heads", "replaceable"),
    [
        (nn.MultiheadAttention(DIM, HEADS), "torch", HEADS, True),
        (zoo.OwnAttention(DIM, HEADS), "torch", HEADS, False),
        (zoo.TimmAttention(), "timm-style", HEADS, True),
        (zoo.WindowAttention(), "timm-style", HEADS, False),
        (zoo.LlamaAttention(), "hugging-face-style", 4, False),
        (zoo.BertSelfAttention(), "hugging-face-style", HEADS, False),
        (zoo.GPTAttention(), "fused c_attn", HEADS, False),
        (zoo.GPT2Attention(), "fused c_attn", HEADS, False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_recognises(block: nn.Module, kind: str, heads: int, replaceable: bool) -> None:
    (finding,) = scan(nn.ModuleDict({"block": block}))
    assert (finding.name, finding.type, finding.kind) == ("block", type(block).__name__, kind)
    assert (finding.embed_dim, finding.heads, finding.replaceable) == (DIM, heads, replaceable)
    assert finding.parameters == sum(p.numel() for p in block.parameters())
    assert bool(finding.note) != replaceable


def test_recognises_code_of_unknown_size() -> None:
    (finding,) = scan(zoo.FunctionalAttention())
    assert (finding.name, finding.kind, finding.embed_dim, finding.heads) == ("", "function", None, None)
    assert (finding.parameters_after, finding.costs, finding.replaceable) == (None, (), False)


@pytest.mark.parametrize(
    "model", [zoo.Lookalikes(), nn.Linear(DIM, DIM), PolynomialMixer(DIM, 2, 2), MultiheadPolynomialMixer(DIM, HEADS)]
)
def test_finds_nothing_where_nothing_is(model: nn.Module) -> None:
    assert scan(nn.Sequential(model, nn.ReLU())) == []


def test_names_the_layers_of_a_transformer() -> None:
    model = zoo.transformer()
    findings = scan(model)
    assert [(finding.name, finding.layer) for finding in findings] == [
        ("encoder.layers.0.self_attn", "TransformerEncoderLayer"),
        ("decoder.layers.0.self_attn", "TransformerDecoderLayer"),
        ("decoder.layers.0.multihead_attn", "TransformerDecoderLayer"),
    ]
    report = replace_attention(model)
    assert [one.parameters_after for one in report.replaced] == [finding.parameters_after for finding in findings]
    assert scan(model) == []


def multiply_adds(layer: nn.Module, tokens: int) -> int:
    """Return the multiply-adds of a call's matrix products, as torch counts them."""
    x = torch.zeros(1, tokens, DIM)
    with FlopCounterMode(display=False) as counter:
        layer(x, x, x)  # if weights are returned, the scores are matrix products that torch counts
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("tokens", [16, 48])
@pytest.mark.parametrize(("heads", "groups"), [(HEADS, 1), (1, 1), (HEADS, 2)])
def test_costs_agree_with_torchs_counts(tokens: int, heads: int, groups: int) -> None:
    attention = nn.MultiheadAttention(DIM, heads, batch_first=True)
    (finding,) = scan(nn.ModuleList([attention]), tokens=[tokens], degree=4, expand=3, n_groups=groups)
    (cost,) = finding.costs
    assert cost.tokens == tokens
    assert cost.attention_macs == multiply_adds(attention, tokens)
    pom = MultiheadPolynomialMixer(DIM, heads, batch_first=True, degree=4, expand=3, n_groups=groups)
    elementwise = tokens * 3 * DIM * (4 + 2)
    assert cost.pom_macs == multiply_adds(pom, tokens) + elementwise
    assert cost.cache_bytes == tokens * 2 * DIM * 4
    assert cost.state_bytes == 2 * 3 * DIM * 4 + 8


def test_says_that_an_output_projection_is_elsewhere() -> None:
    notes = [scan(block)[0].note for block in (zoo.BertSelfAttention(), zoo.LlamaAttention())]
    assert ["output projection is elsewhere" in note for note in notes] == [True, False]


def test_the_replacement_has_biases_where_attention_has() -> None:
    block = zoo.LlamaAttention()
    (plain,) = scan(block)
    block.o_proj = nn.Linear(DIM, DIM)
    assert scan(block)[0].parameters_after == (plain.parameters_after or 0) + DIM


def test_grouped_keys_make_a_smaller_cache() -> None:
    (finding,) = scan(nn.ModuleList([zoo.LlamaAttention().half()]), tokens=[10])
    assert finding.costs[0].cache_bytes == 10 * DIM * 2
    assert finding.costs[0].attention_macs == 10 * 3 * DIM * DIM + 2 * 100 * DIM


def test_attention_grows_with_the_square_and_pom_does_not() -> None:
    first, second = scan(zoo.transformer(), tokens=[1000, 2000])[0].costs
    assert second.pom_macs == 2 * first.pom_macs
    assert second.attention_macs > 3.9 * first.attention_macs
    assert (second.cache_bytes, second.state_bytes) == (2 * first.cache_bytes, first.state_bytes)


@pytest.mark.parametrize("tokens", [5, "5", [1.5], [True], [5, 0]])
def test_token_counts_are_whole_numbers(tokens: Any) -> None:
    with pytest.raises(InputError, match="tokens must be whole numbers of at least 1, got"):
        scan(zoo.transformer(), tokens=tokens)


@pytest.mark.parametrize("function", [scan, replace_attention])
def test_what_is_no_module_is_named(function: Any) -> None:
    with pytest.raises(InputError, match=r"the model is None\. Give an nn\.Module"):
        function(None)


def test_refuses() -> None:
    with pytest.raises(InputError, match=r"encoder.layers.0.self_attn: `n_groups` must divide dim, got 3 and 8"):
        scan(zoo.transformer(), n_groups=3)
