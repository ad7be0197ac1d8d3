"""The drop-in layer: it is called like attention, takes the same masks, and refuses what has no meaning for it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pom_export.attention import MultiheadPolynomialMixer
from pom_export.errors import InputError

DIM, HEADS, BATCH, TOKENS, CONTEXT = 8, 2, 3, 5, 4
PADDING = torch.tensor([[0, 0, 0, 0, 0], [0, 0, 0, 1, 1], [1, 0, 1, 0, 1]], dtype=torch.bool)
CAUSAL = torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(1)


@pytest.fixture
def layer() -> MultiheadPolynomialMixer:
    torch.manual_seed(0)
    return MultiheadPolynomialMixer(DIM, HEADS, batch_first=True)


@pytest.fixture
def x() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(BATCH, TOKENS, DIM)


def as_float(mask: Tensor) -> Tensor:
    return torch.zeros(mask.shape).masked_fill(mask, -torch.inf)


def mixed(layer: MultiheadPolynomialMixer, x: Tensor, mask: Any = None, context: Tensor | None = None) -> Tensor:
    return layer.mixer(x, context, mask)


def test_its_arguments_are_attentions() -> None:
    theirs, ours = (
        kind.__init__.__code__.co_varnames[: kind.__init__.__code__.co_argcount]
        for kind in (nn.MultiheadAttention, MultiheadPolynomialMixer)
    )
    assert ours == theirs
    theirs, ours = (
        kind.forward.__code__.co_varnames[: kind.forward.__code__.co_argcount]
        for kind in (nn.MultiheadAttention, MultiheadPolynomialMixer)
    )
    assert ours == theirs


def test_returns_an_output_and_no_weights(layer: MultiheadPolynomialMixer, x: Tensor) -> None:
    y, weights = layer(x, x, x, need_weights=True, average_attn_weights=False)
    assert weights is None
    torch.testing.assert_close(y, mixed(layer, x))
    assert layer.mixer.config.n_sel_heads == HEADS


def test_layouts_agree(layer: MultiheadPolynomialMixer, x: Tensor) -> None:
    tokens_first = copy.deepcopy(layer)
    tokens_first.batch_first = False
    y = layer(x, x, x, key_padding_mask=PADDING)[0]
    swapped = x.transpose(0, 1)
    torch.testing.assert_close(tokens_first(swapped, swapped, swapped, key_padding_mask=PADDING)[0], y.transpose(0, 1))
    for either in (layer, tokens_first):
        alone = either(x[1], x[1], x[1], key_padding_mask=PADDING[1])[0]
        torch.testing.assert_close(alone, y[1])


def test_cross_mixing(layer: MultiheadPolynomialMixer, x: Tensor) -> None:
    context = torch.randn(BATCH, CONTEXT, DIM)
    y = layer(x, context, context.clone())[0]
    torch.testing.assert_close(y, mixed(layer, x, context=context))
    assert not torch.allclose(y, mixed(layer, x))


@pytest.mark.parametrize("convert", [lambda mask: mask, as_float], ids=["bool", "float"])
def test_padding_counts_for_nothing(layer: MultiheadPolynomialMixer, x: Tensor, convert: Any) -> None:
    y = layer(x, x, x, key_padding_mask=convert(PADDING))[0]
    torch.testing.assert_close(y, mixed(layer, x, ~PADDING))
    other = torch.where(PADDING.unsqueeze(-1), 100 * torch.randn_like(x), x)
    torch.testing.assert_close(layer(other, other, other, key_padding_mask=convert(PADDING))[0][~PADDING], y[~PADDING])
    assert not torch.allclose(layer(other, other, other)[0][~PADDING], y[~PADDING])


@pytest.mark.parametrize("convert", [lambda mask: mask, as_float], ids=["bool", "float"])
@pytest.mark.parametrize("hint", [False, True])
@pytest.mark.parametrize("rank", [2, 3])
def test_causal_masks_run_in_linear_form(
    layer: MultiheadPolynomialMixer, x: Tensor, convert: Any, hint: bool, rank: int
) -> None:
    mask = convert(CAUSAL)
    mask = mask if rank == 2 else mask.expand(BATCH * HEADS, -1, -1)
    calls: list[Any] = []
    layer.mixer.register_forward_pre_hook(lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True)
    y = layer(x, x, x, attn_mask=mask, is_causal=hint)[0]
    assert calls[0][1] == {"causal": True}
    assert calls[0][0][1:] == (None, None), "one fused projection, and no L x L mask"
    torch.testing.assert_close(y, mixed(layer, x, ~CAUSAL.expand(BATCH, -1, -1)))


@pytest.mark.parametrize("hint", [False, True])
def test_a_triangle_of_other_sizes_takes_the_general_form(
    layer: MultiheadPolynomialMixer, x: Tensor, hint: bool
) -> None:
    context, forbidden = torch.randn(BATCH, CONTEXT, DIM), CAUSAL[:, :CONTEXT]
    y = layer(x, context, context, attn_mask=forbidden, is_causal=hint)[0]
    torch.testing.assert_close(y, mixed(layer, x, ~forbidden.expand(BATCH, -1, -1), context))


def test_causal_without_a_mask(layer: MultiheadPolynomialMixer, x: Tensor) -> None:
    y = layer(x, x, x, is_causal=True)[0]
    torch.testing.assert_close(y, layer(x, x, x, attn_mask=CAUSAL)[0])
    assert not torch.allclose(y, layer(x, x, x)[0])


def test_causal_and_padding_together(layer: MultiheadPolynomialMixer, x: Tensor) -> None:
    y = layer(x, x, x, attn_mask=CAUSAL, key_padding_mask=PADDING)[0]
    torch.testing.assert_close(y, mixed(layer, x, ~CAUSAL & ~PADDING.unsqueeze(1)))


def test_any_mask_by_query(layer: MultiheadPolynomialMixer, x: Tensor) -> None:
    forbidden = torch.rand(BATCH, TOKENS, TOKENS) < 0.5
    by_head = forbidden.repeat_interleave(HEADS, 0)
    y = layer(x, x, x, attn_mask=by_head, key_padding_mask=PADDING)[0]
    torch.testing.assert_close(y, mixed(layer, x, ~forbidden & ~PADDING.unsqueeze(1)))


def test_a_fully_masked_row_gives_the_bias(layer: MultiheadPolynomialMixer, x: Tensor) -> None:
    everything = torch.ones(BATCH, TOKENS, dtype=torch.bool)
    y = layer(x, x, x, key_padding_mask=everything)[0]
    assert torch.equal(y, layer.out_proj.bias.expand_as(y))


def test_a_context_of_another_width(x: Tensor) -> None:
    layer = MultiheadPolynomialMixer(DIM, HEADS, kdim=6, vdim=6, batch_first=True)
    context = torch.randn(BATCH, CONTEXT, 6)
    y = layer(x, context, context)[0]
    torch.testing.assert_close(y, mixed(layer, x, context=layer.context_proj(context)))


def test_dropout_leaves_out_tokens_of_the_mean(x: Tensor) -> None:
    layer = MultiheadPolynomialMixer(DIM, HEADS, dropout=0.5, batch_first=True)
    torch.manual_seed(3)
    trained = layer(x, x, x, key_padding_mask=PADDING)[0]
    torch.manual_seed(3)
    lucky = torch.rand(BATCH, TOKENS) >= 0.5
    assert 0 < lucky.sum() < lucky.numel()
    torch.testing.assert_close(trained, mixed(layer, x, ~PADDING & lucky))
    layer.eval()
    torch.testing.assert_close(layer(x, x, x, key_padding_mask=PADDING)[0], mixed(layer, x, ~PADDING))
    layer.train().dropout = 1.0
    y = layer(x, x, x, attn_mask=CAUSAL)[0]
    assert torch.equal(y, layer.out_proj.bias.expand_as(y))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"add_bias_kv": True}, "add_bias_kv=True has no meaning"),
        ({"add_zero_attn": True}, "add_zero_attn=True has no meaning"),
        ({"kdim": 6}, "kdim is 6 and vdim is 8"),
        ({"dropout": 1.5}, "got 1.5"),
        ({"num_heads": 3}, "must divide expand . dim = 16, got 3"),
        ({"num_heads": 0}, "num_heads must be at least 1, got 0"),
        ({"degree": 17}, "got 17"),
    ],
)
def test_refuses_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        MultiheadPolynomialMixer(**{"embed_dim": DIM, "num_heads": HEADS, **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"attn_mask": torch.full((TOKENS, TOKENS), 0.25)}, "attn_mask adds 0.25 to a score"),
        ({"attn_mask": torch.full((TOKENS, TOKENS), torch.nan)}, "attn_mask adds nan"),
        ({"attn_mask": CAUSAL.int()}, "attn_mask is torch.int32"),
        ({"attn_mask": CAUSAL[:3]}, r"shape \(3, 5\), expected \(5, 5\) or \(6, 5, 5\)"),
        ({"attn_mask": torch.rand(BATCH * HEADS, TOKENS, TOKENS) < 0.5}, "differs from head to head"),
        ({"attn_mask": ~CAUSAL, "is_causal": True}, "is not causal"),
        ({"key_padding_mask": PADDING.T}, r"shape \(5, 3\), expected \(3, 5\)"),
        ({"key_padding_mask": as_float(PADDING) - 1e9}, "key_padding_mask adds -1e.09"),
        ({"key": torch.zeros(BATCH, TOKENS, DIM)}, "key and value differ"),
        ({"value": torch.zeros(BATCH, CONTEXT, DIM)}, r"shapes \(3, 5, 8\) and \(3, 4, 8\)"),
        ({"key": torch.zeros(3, 4, DIM), "value": torch.zeros(3, 4, DIM), "is_causal": True}, "5 query tokens and 4"),
        ({"query": torch.zeros(1, BATCH, TOKENS, DIM)}, "an input has shape"),
    ],
)
def test_refuses_inputs(layer: MultiheadPolynomialMixer, x: Tensor, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        layer(**{"query": x, "key": x, "value": x, **arguments})


def test_state_dict_and_copies(layer: MultiheadPolynomialMixer, x: Tensor) -> None:
    other = MultiheadPolynomialMixer(DIM, HEADS, batch_first=True)
    assert not torch.allclose(other(x, x, x)[0], layer(x, x, x)[0])
    other.load_state_dict(layer.state_dict())
    for same in (other, copy.deepcopy(layer)):
        assert torch.equal(same(x, x, x)[0], layer(x, x, x)[0])


def test_device_and_dtype() -> None:
    layer = MultiheadPolynomialMixer(DIM, HEADS, device="meta", dtype=torch.float64, kdim=4, vdim=4)
    assert {(p.device.type, p.dtype) for p in layer.parameters()} == {("meta", torch.float64)}


class Calls(nn.Module):
    """Self-mixing with masks as inputs, for tracing."""

    def __init__(self, layer: MultiheadPolynomialMixer, is_causal: bool) -> None:
        super().__init__()
        self.layer, self.is_causal = layer, is_causal

    def forward(self, x: Tensor, padding: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        return self.layer(x, x, x, key_padding_mask=padding, attn_mask=mask, is_causal=self.is_causal)[0]


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("convert", [lambda mask: mask, as_float], ids=["bool", "float"])
def test_exports_with_dynamic_sizes(layer: MultiheadPolynomialMixer, is_causal: bool, convert: Any) -> None:
    x, auto = torch.randn(BATCH, TOKENS, DIM), torch.export.Dim.AUTO
    program = torch.export.export(
        Calls(layer.eval(), is_causal),
        (x, convert(PADDING), convert(CAUSAL)),
        dynamic_shapes=({0: auto, 1: auto},) * 3,
        strict=False,
    )
    modes = [node.args[3] for node in program.graph.nodes if "polynomial_aggregation" in str(node.target)]
    assert modes == ["causal" if is_causal else "features"], "a hint is believed; other masks take the general form"
    longer, mask = torch.randn(2, 7, DIM), torch.ones(7, 7, dtype=torch.bool).triu(1)
    padding = torch.rand(2, 7) < 0.3
    expected = layer(longer, longer, longer, key_padding_mask=padding, attn_mask=mask)[0]
    torch.testing.assert_close(program.module()(longer, convert(padding), convert(mask)), expected)


def test_tracing_refuses_two_tensors(layer: MultiheadPolynomialMixer, x: Tensor) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x, x, x + 0)[0]

    with pytest.raises(InputError, match="while tracing"):
        torch.export.export(Two(), (x,), strict=False)
