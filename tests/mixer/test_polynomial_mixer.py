"""The layer against the official code's outputs, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pom_export.checkpoint import load_checkpoint
from pom_export.errors import InputError
from pom_export.mixer import PolynomialMixer
from pom_export.parity.comparison import difference
from pom_export.parity.tolerances import GOLDEN

MASKS = ("none", "causal", "2d", "3d")


@pytest.fixture
def mixer() -> PolynomialMixer:
    torch.manual_seed(0)
    mixer = PolynomialMixer(dim=8, degree=3, expand=2, n_sel_heads=4)
    with torch.no_grad():
        mixer.se_bias.fill_(1.0)
    return mixer.requires_grad_(requires_grad=False)


@pytest.mark.parametrize("mask_name", MASKS)
def test_equals_the_official_code(golden: Any, mask_name: str) -> None:
    arrays = golden.arrays
    if mask_name not in golden.config["masks"]:
        assert f"y_{mask_name}" not in arrays
        return
    context = torch.from_numpy(arrays["xc"]) if golden.config["cross"] else None
    positions = () if golden.positions is None else (torch.from_numpy(golden.positions),)
    masks: dict[str, Any] = {"none": None, "causal": "causal"}
    mask = masks[mask_name] if mask_name in masks else torch.from_numpy(arrays[f"mask{mask_name}"])

    y = load_checkpoint(golden.checkpoint)(torch.from_numpy(arrays["xq"]), context, mask, *positions)

    assert y.dtype == torch.float32
    found = difference(y.numpy(), arrays[f"y_{mask_name}"], GOLDEN)
    assert found, found


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_a_fully_masked_row_gives_zero(mixer: PolynomialMixer, dtype: torch.dtype) -> None:
    x = torch.randn(2, 5, 8)
    padding = torch.ones(2, 5, dtype=dtype)
    padding[1] = 0
    full = torch.ones(2, 5, 5, dtype=dtype)
    full[0, 3] = 0

    y_padding, y_full = mixer(x, mask=padding), mixer(x, mask=full)

    assert y_padding[1].eq(0).all()
    assert y_padding[0].ne(0).all()
    assert y_full[0, 3].eq(0).all()
    assert y_full[0, 2].ne(0).all()


@pytest.mark.parametrize("shape", [(1, 5), (1, 4, 5)])
def test_a_mask_of_batch_1_broadcasts(mixer: PolynomialMixer, shape: tuple[int, ...]) -> None:
    query, context = torch.randn(3, 4, 8), torch.randn(3, 5, 8)
    mask = torch.rand(shape)

    y = mixer(query, context, mask)

    torch.testing.assert_close(y, mixer(query, context, mask.expand(3, *shape[1:])))
    assert not torch.equal(y, mixer(query, context))


def test_fractional_weights_scale_out(mixer: PolynomialMixer) -> None:
    x, weights = torch.randn(2, 5, 8), torch.rand(2, 5)

    torch.testing.assert_close(mixer(x, mask=weights), mixer(x, mask=3 * weights))


@pytest.mark.parametrize("shape", [(5,), (2, 1, 5, 5)])
def test_refuses_a_mask_of_another_rank(mixer: PolynomialMixer, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=str(shape[0])):
        mixer(torch.randn(2, 5, 8), mask=torch.ones(shape))


def test_refuses_a_mask_word_that_it_does_not_know(mixer: PolynomialMixer) -> None:
    with pytest.raises(ValueError, match="'casual'"):
        mixer(torch.randn(2, 5, 8), mask="casual")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dim", 0),
        ("degree", 0),
        ("degree", 17),
        ("expand", 0),
        ("n_groups", 0),
        ("n_groups", 3),
        ("n_sel_heads", -1),
        ("n_sel_heads", 5),
    ],
)
def test_refuses_hyper_parameters_out_of_range(name: str, value: int) -> None:
    arguments = {"dim": 8, "degree": 3, "expand": 2, name: value}

    with pytest.raises(InputError, match=rf"{name}`? .*{value}"):
        PolynomialMixer(**arguments)
