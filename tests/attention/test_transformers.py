"""The drop-in layer inside torch's own Transformer modules, whose fast paths must leave it alone."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pom_export.attention import MultiheadPolynomialMixer, replace_attention
from pom_export.errors import InputError

DIM, HEADS, BATCH, TOKENS = 8, 2, 3, 5
# Padding on the right: nn.TransformerEncoder would pack the rest into a nested tensor.
PADDING = torch.tensor([[0, 0, 0, 0, 0], [0, 0, 0, 1, 1], [0, 0, 0, 0, 1]], dtype=torch.bool)
CAUSAL = nn.Transformer.generate_square_subsequent_mask(TOKENS)
FLOAT_PADDING = torch.zeros(PADDING.shape).masked_fill(PADDING, -torch.inf)
MASKS: dict[str, dict[str, Tensor]] = {
    "none": {},
    "padding": {"src_key_padding_mask": PADDING},
    "causal": {"mask": CAUSAL},
    "both": {"mask": CAUSAL, "src_key_padding_mask": FLOAT_PADDING},
}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def encoder(batch_first: bool = True, norm_first: bool = False, nested: bool = False) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(DIM, HEADS, 16, 0.0, batch_first=batch_first, norm_first=norm_first)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested)


def both_modes(model: nn.Module, *inputs: Tensor, **masks: Any) -> Tensor:
    """Return the output, which is the same in training and in evaluation (with and without gradients)."""
    trained = model.train()(*inputs, **masks)
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(model(*inputs, **masks), trained)
    torch.testing.assert_close(model(*inputs, **masks), trained)
    return trained


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("masks", MASKS.values(), ids=MASKS)
def test_encoder(batch_first: bool, norm_first: bool, masks: dict[str, Tensor]) -> None:
    model = encoder(batch_first, norm_first)
    replace_attention(model)
    x = torch.randn(BATCH, TOKENS, DIM)
    y = both_modes(model, x if batch_first else x.transpose(0, 1), **masks)
    y = y if batch_first else y.transpose(0, 1)

    changed = x.clone()
    changed[1, 3:] += torch.randn(
        2, DIM
    )  # the padding, if there is a padding mask, and with a causal mask the future of tokens 0 to 2
    other = model(changed if batch_first else changed.transpose(0, 1), **masks)
    other = other if batch_first else other.transpose(0, 1)
    same = torch.allclose(other[1, :3], y[1, :3], atol=1e-6)
    assert same == bool(masks)


def test_encoder_never_packs_nested_tensors() -> None:
    x = torch.randn(BATCH, TOKENS, DIM)
    hybrid = encoder(nested=True)
    report = replace_attention(hybrid, keep_every=2)
    assert [one.name for one in report.replaced] == ["layers.0.self_attn"]
    both_modes(hybrid, x, src_key_padding_mask=PADDING)

    second = encoder(nested=True)
    replace_attention(second, filter=lambda name, _: name.startswith("layers.1"))
    assert isinstance(second.layers[0].self_attn, nn.MultiheadAttention)
    second.eval()
    with torch.no_grad():
        y = second(x, src_key_padding_mask=PADDING)
    torch.testing.assert_close(second(x, src_key_padding_mask=PADDING), y)


def test_a_layer_put_in_by_hand_is_safe_too() -> None:
    model = encoder(nested=True)
    assert model.use_nested_tensor
    for layer in model.layers:
        layer.self_attn = MultiheadPolynomialMixer(DIM, HEADS, batch_first=True)
    both_modes(model, torch.randn(BATCH, TOKENS, DIM), src_key_padding_mask=PADDING)


def test_nested_tensors_are_refused() -> None:
    layer = MultiheadPolynomialMixer(DIM, HEADS, batch_first=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the API of nested tensors is a prototype, and warns
        x = torch.nested.nested_tensor([torch.zeros(2, DIM), torch.zeros(3, DIM)])
    with pytest.raises(InputError, match="enable_nested_tensor=False"):
        layer(x, x, x)


@pytest.mark.parametrize("norm_first", [True, False])
def test_decoder_layer(norm_first: bool) -> None:
    layer = nn.TransformerDecoderLayer(DIM, HEADS, 16, 0.0, batch_first=True, norm_first=norm_first)
    replace_attention(layer)
    target, memory = torch.randn(BATCH, 4, DIM), torch.randn(BATCH, TOKENS, DIM)
    masks = {"tgt_mask": nn.Transformer.generate_square_subsequent_mask(4), "memory_key_padding_mask": PADDING}
    y = both_modes(layer, target, memory, tgt_is_causal=True, **masks)
    memory[1, 3:] += torch.randn(2, DIM)
    target[:, 2:] += torch.randn(2, DIM)
    torch.testing.assert_close(layer(target, memory, **masks)[1, :2], y[1, :2])
    assert not torch.allclose(layer(target, memory)[1, :2], y[1, :2])


def test_a_whole_transformer_trains() -> None:
    model = nn.Transformer(DIM, HEADS, 1, 1, 16, 0.1, batch_first=True)
    report = replace_attention(model)
    assert len(report.replaced) == 3
    assert not any(isinstance(part, nn.MultiheadAttention) for part in model.modules())
    source, target = torch.randn(BATCH, TOKENS, DIM), torch.randn(BATCH, 4, DIM)
    model(source, target, tgt_mask=nn.Transformer.generate_square_subsequent_mask(4)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_an_encoder_clones_its_layers() -> None:
    layer = nn.TransformerEncoderLayer(DIM, HEADS, 16, 0.0, batch_first=True)
    layer.self_attn = MultiheadPolynomialMixer(DIM, HEADS, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    first, second = (part.self_attn.mixer.po_coeff for part in model.layers)
    assert first is not second
    assert torch.equal(first, second)
