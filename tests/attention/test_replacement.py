"""`replace_attention`: what it replaces, what it keeps and why, and where the new layers start from."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn

from pom_export.attention import MultiheadPolynomialMixer, VisionPolynomialMixer, replace_attention, scan
from pom_export.errors import InputError
from tests.attention import zoo

DIM, HEADS = zoo.DIM, zoo.HEADS


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def attention(**arguments: Any) -> nn.MultiheadAttention:
    return nn.MultiheadAttention(**{"embed_dim": DIM, "num_heads": HEADS, **arguments})


def test_takes_over_the_arguments() -> None:
    old = attention(dropout=0.25, bias=False, batch_first=True, kdim=6, vdim=6, dtype=torch.float64).eval()
    model = nn.Sequential(nn.Linear(1, 1), nn.ModuleList([old]))
    report = replace_attention(model, degree=4, expand=3, n_groups=2)
    new = model[1][0]
    assert isinstance(new, MultiheadPolynomialMixer)
    assert (new.embed_dim, new.num_heads, new.dropout, new.batch_first, new.kdim) == (DIM, HEADS, 0.25, True, 6)
    config = new.mixer.config
    assert (config.degree, config.expand, config.n_groups, config.n_sel_heads) == (4, 3, 2, HEADS)
    assert new.out_proj.bias is None
    assert {p.dtype for p in new.parameters()} == {torch.float64}
    assert not new.training
    (one,) = report.replaced
    assert (one.name, one.old, one.new) == ("1.0", "MultiheadAttention", new)
    assert one.parameters_before == sum(p.numel() for p in old.parameters())
    assert one.parameters_after == sum(p.numel() for p in new.parameters()) == report.parameters_after
    assert "started fresh" in one.notes


@pytest.mark.parametrize("expand", [2, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_starts_as_attention_with_uniform_weights(expand: int, bias: bool) -> None:
    old = attention(batch_first=True, bias=bias)
    with torch.no_grad():
        old.in_proj_weight[: 2 * DIM] = 0
        if bias:
            old.in_proj_bias[2 * DIM :] = torch.randn(DIM)
            old.out_proj.bias.copy_(torch.randn(DIM))
    model = nn.ModuleDict({"a": old})
    replace_attention(model, expand=expand)
    new, x = model["a"], torch.randn(2, 5, DIM)
    assert not torch.allclose(new(x, x, x)[0], old(x, x, x)[0], atol=1e-5), "the gates are not constant"
    with torch.no_grad():
        new.mixer.qc_proj.weight[-HEADS:] = 0
    torch.testing.assert_close(new(x, x, x)[0], old(x, x, x)[0])


def test_a_fresh_start_is_random() -> None:
    model = nn.ModuleList([attention()])
    report = replace_attention(model, start="fresh")
    assert report.replaced[0].notes == ""
    torch.testing.assert_close(model[0].mixer.po_coeff[0], torch.tensor([1, 1 / 2, 1 / 6]))


def test_shared_layers_stay_shared() -> None:
    shared, block = attention(), nn.ModuleList([attention()])
    model = nn.ModuleDict({"a": shared, "b": nn.ModuleList([shared]), "c": block, "d": block})
    report = replace_attention(model)
    assert [one.name for one in report.replaced] == ["a", "c.0"]
    assert model["a"] is model["b"][0]
    assert isinstance(model["a"], MultiheadPolynomialMixer)
    assert isinstance(model["d"][0], MultiheadPolynomialMixer)
    assert "shared by 2 places" in report.replaced[0].notes
    assert "shared" not in report.replaced[1].notes


def test_filter_and_hybrids() -> None:
    model = nn.ModuleList([attention() for _ in range(5)])
    report = replace_attention(model, filter=lambda name, module: name != "0" and module is not model[2], keep_every=2)
    assert [(one.name, one.reason) for one in report.kept] == [
        ("0", "filter"), ("1", "keep_every=2"), ("2", "filter"), ("3", "keep_every=2"),
    ]  # fmt: skip
    assert [type(layer).__name__ for layer in model] == ["MultiheadAttention"] * 4 + ["MultiheadPolynomialMixer"]


def test_what_has_no_meaning_for_a_pom_is_kept() -> None:
    layers = {
        "bias": attention(add_bias_kv=True),
        "zero": attention(add_zero_attn=True),
        "widths": attention(kdim=4, vdim=6),
        "own": zoo.OwnAttention(DIM, HEADS),
        "swin": zoo.WindowAttention(),
        "eva": zoo.RotaryAttention(),
        "llama": zoo.LlamaAttention(),
        "code": zoo.FunctionalAttention(),
    }
    model = nn.ModuleDict(layers)
    report = replace_attention(model)
    assert report.replaced == []
    assert dict(model.items()) == layers
    reasons = {one.name: one.reason for one in report.kept}
    assert all(reason.startswith("found, not replaced: ") for reason in reasons.values())
    for name, words in {
        "bias": "add_bias_kv", "widths": "keys have width 4 and values 6", "own": "OwnAttention has a forward",
        "swin": "relative_position_bias_table", "eva": "takes x, rope", "code": "scaled_dot_product_attention",
        "llama": "MultiheadPolynomialMixer(8, 4)",
    }.items():  # fmt: skip
        assert words in reasons[name]


def test_vision_blocks() -> None:
    block = zoo.TimmAttention().eval()
    model = nn.ModuleDict({"attn": block})
    report = replace_attention(model)
    new, x = model["attn"], torch.randn(2, 5, DIM)
    assert isinstance(new, VisionPolynomialMixer)
    assert (new.mixer.num_heads, new.mixer.dropout) == (HEADS, 0.25)
    assert new.proj_drop is block.proj_drop
    torch.testing.assert_close(new(x, attn_mask=None, is_causal=False), new.mixer.mixer(x))
    torch.testing.assert_close(new(x, is_causal=True), new.mixer.mixer(x, mask="causal"))
    assert not torch.allclose(new.train()(x), new.mixer.mixer(x))
    assert "started fresh" not in report.replaced[0].notes
    with pytest.raises(InputError, match="a mask of shape"):
        new(x, attn_mask=torch.ones(5, 5))


def test_a_vision_block_starts_as_uniform_attention_too() -> None:
    block = zoo.TimmAttention(inner=6).eval()
    with torch.no_grad():
        block.q_norm.weight.zero_()
    model = nn.ModuleDict({"attn": block})
    replace_attention(model)
    with torch.no_grad():
        model["attn"].mixer.mixer.qc_proj.weight[-HEADS:] = 0
    x = torch.randn(2, 5, DIM)
    torch.testing.assert_close(model["attn"](x), block(x))


def test_heads_that_do_not_divide_become_a_gate_per_channel() -> None:
    model = nn.ModuleDict({"attn": zoo.TimmAttention(heads=3, inner=6)})
    report = replace_attention(model)
    assert model["attn"].mixer.mixer.config.gate_width == 2 * DIM
    assert "3 heads don't divide the channels" in report.replaced[0].notes


def test_a_model_whose_own_code_is_attention_may_hold_others() -> None:
    model = zoo.Outer()
    report = replace_attention(model)
    assert [one.name for one in report.replaced] == ["inner"]
    assert [(one.name, one.old) for one in report.kept] == [("", "Outer")]


def test_summary() -> None:
    model = nn.ModuleDict({"a": attention(), "longer": zoo.LlamaAttention()})
    lines = str(replace_attention(model)).splitlines()
    assert lines[0] == "replaced  a       MultiheadAttention, 288 parameters, now 330"
    assert lines[1].startswith("kept      longer  LlamaAttention: found, not replaced")
    assert lines[2] == "1 replaced, 1 kept; parameters of the replaced layers: 288 before, 330 after"
    assert str(replace_attention(nn.Linear(1, 1))).startswith("0 replaced, 0 kept")


@pytest.mark.parametrize("model", [attention(), zoo.TimmAttention()], ids=["torch", "timm"])
def test_refuses_a_model_that_is_itself_attention(model: nn.Module) -> None:
    with pytest.raises(InputError, match="itself attention"):
        replace_attention(model)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"start": "warm"}, "unknown start 'warm'"),
        ({"keep_every": 0}, "got 0"),
        ({"keep_every": "2"}, "got '2'"),
        ({"n_groups": 3}, "1: `n_groups` must divide dim, got 3 and 8"),
    ],
)
def test_a_refusal_changes_nothing(arguments: dict[str, Any], message: str) -> None:
    model = nn.ModuleList([attention(embed_dim=6), attention()])
    with pytest.raises(InputError, match=message):
        replace_attention(model, **arguments)
    assert all(isinstance(layer, nn.MultiheadAttention) for layer in model)


class Gate(nn.Module):
    """A gate whose one weight starts at 0 in training, and is therefore falsy."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(1))


class Index(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("relative_position_index", torch.arange(4))


def with_child(child: nn.Module) -> zoo.TimmAttention:
    block = zoo.TimmAttention()
    block.extra = child
    return block


def changed(change: Any) -> nn.Module:
    block = zoo.TimmAttention()
    change(block)
    return block


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: with_child(nn.Linear(4, 4)), "it holds extra"),
        (lambda: with_child(Gate()), "it holds extra"),
        (lambda: with_child(Index()), "it holds extra"),
        (lambda: with_child(nn.AvgPool1d(2)), "it holds extra"),
        (lambda: with_child(nn.Sequential(nn.Identity(), nn.Conv2d(2, 2, 1))), "it holds extra"),
        (lambda: changed(lambda b: b.register_parameter("logit_scale", nn.Parameter(torch.ones(2)))), "logit_scale"),
        (lambda: changed(lambda b: b.register_buffer("bias_index", torch.arange(4))), "bias_index"),
        (lambda: changed(lambda b: b.register_forward_hook(lambda *_: None)), "forward hooks"),
        (lambda: changed(lambda b: b.register_forward_pre_hook(lambda *_: None)), "forward hooks"),
        (lambda: changed(lambda b: setattr(b, "forward", lambda x: x)), "a forward that was assigned"),
        (lambda: changed(lambda b: setattr(b, "qkv", zoo.Adapted(b.qkv))), "its qkv is an Adapted: .*merge_and_unload"),
    ],
)
def test_what_a_block_has_beyond_the_plain_one_keeps_it(make: Any, message: str) -> None:
    model = nn.ModuleDict({"odd": make(), "plain": zoo.TimmAttention()})
    findings = scan(model)
    report = replace_attention(model)
    assert [one.name for one in report.replaced] == ["plain"]
    assert [one.name for one in report.kept] == ["odd"]
    assert report.kept[0].reason.startswith("found, not replaced: ")
    assert re.search(message, report.kept[0].reason)
    assert [one.replaceable for one in findings] == [False, True]


def test_children_that_compute_nothing_are_no_obstacle_and_norms_are_named() -> None:
    block = with_child(nn.Identity())
    block.softmax, block.drop = nn.Softmax(-1), nn.Dropout(0.1)
    report = replace_attention(nn.ModuleDict({"a": block}))
    assert "q_norm, k_norm dropped" in report.replaced[0].notes
