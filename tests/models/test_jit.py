"""The public image model: the official outputs, its initial weights and parts, and that it learns."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pom_export.errors import InputError
from pom_export.models import JiT, JiTConfig
from pom_export.parity.comparison import difference
from pom_export.parity.tolerances import GOLDEN
from tests.small_models import TINY_JIT, fill


def images(batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(batch, TINY_JIT.channels, TINY_JIT.input_size, TINY_JIT.input_size, generator=random)
    return x, torch.rand(batch, generator=random), torch.arange(batch) % (TINY_JIT.num_classes + 1)


@pytest.mark.parametrize(
    ("output", "average"), [("out", None), ("out_ema1", "ema_params1"), ("out_ema2", "ema_params2")]
)
def test_gives_the_official_outputs_for_each_set_of_weights(golden_jit: Any, output: str, average: str | None) -> None:
    content = torch.load(golden_jit.checkpoint, weights_only=True)
    names = {name: value for name, value in golden_jit.config.items() if name != "family"}
    model = JiT(JiTConfig(**names)).eval()
    model.load_state_dict({n.removeprefix("denoiser.net."): tensor for n, tensor in content["state_dict"].items()})
    if average is not None:
        averaged = dict(zip(dict(model.named_parameters()), content[average], strict=True))
        assert not model.load_state_dict(averaged, strict=False).unexpected_keys
    with torch.no_grad():
        image = model(*(torch.from_numpy(golden_jit.arrays[name]) for name in ("x", "t", "y")))
    assert difference(image.numpy(), golden_jit.arrays[output], GOLDEN)


def test_starts_as_the_authors_do() -> None:
    torch.manual_seed(0)
    model = JiT(TINY_JIT)
    assert torch.equal(model(*images()), torch.zeros(2, 3, 8, 8))
    assert not model.pos_embed.requires_grad
    # Column 0 first: patches below each other share one half of their embedding, those beside each other the other
    # half.
    grid = model.pos_embed.unflatten(1, (4, 4))[0]
    assert torch.equal(grid[0, :, :4], grid[3, :, :4])
    assert torch.equal(grid[:, 0, 4:], grid[:, 3, 4:])
    assert not torch.equal(grid[0, 0], grid[0, 1])


def test_learns_an_image_by_its_label() -> None:
    torch.manual_seed(0)
    model = JiT(TINY_JIT)
    clean = torch.randn(3, 3, 8, 8)
    y, noise = torch.arange(3), torch.randn(3, 3, 8, 8)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(100):
        t = torch.rand(3)
        mix = t[:, None, None, None]
        loss = (model(mix * clean + (1 - mix) * noise, t, y) - clean).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters() if p.requires_grad)
    assert losses[-1] < losses[0] / 3


def test_time_label_and_place_make_a_difference() -> None:
    model = JiT(TINY_JIT).eval()
    fill(model)
    x, t, y = images()
    with torch.no_grad():
        base = model(x, t, y)
        assert not torch.allclose(base, model(x, 1 - t, y))
        assert not torch.allclose(base, model(x, t, torch.full_like(y, TINY_JIT.num_classes)))
        # Rotated by 90 degrees, it is another image, not the same one rotated.
        assert not torch.allclose(base.rot90(1, (2, 3)), model(x.rot90(1, (2, 3)), t, y))
        assert torch.allclose(base[1:], model(x[1:], t[1:], y[1:]), atol=1e-6)


def test_a_model_without_tokens_in_context_has_no_weight_of_them() -> None:
    model = JiT(replace(TINY_JIT, in_context_len=0, in_context_start=0))
    assert not hasattr(model, "in_context_posemb")
    assert model(*images()).shape == (2, 3, 8, 8)


class Averaging(nn.Module):
    """A double of another module that mixes tokens."""

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        assert positions.shape == (x.shape[1], 2)
        return x.mean(1, keepdim=True)


def test_another_mixer_takes_the_place_of_pom() -> None:
    model = JiT(TINY_JIT, make_mixer=lambda _: Averaging())
    fill(model)
    assert model(*images()).abs().max() > 0
    assert not any("po_coeff" in name for name in model.state_dict())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"patch_size": 3}, "patch_size must divide input_size, got 3 and 8"),
        ({"depth": 0}, "depth must be at least 1"),
        ({"in_context_start": 2}, "in_context_start must be 0 to 1, got 2"),
        ({"hidden_size": 6}, "multiple of 4, got 6"),
        ({"max_h": 3}, "positions for 3"),
        ({"pom_degree": 17}, "degree"),
        ({"num_heads": 3}, "n_sel_heads must divide"),
    ],
)
def test_impossible_sizes_are_refused(changed: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(TINY_JIT, **changed)
