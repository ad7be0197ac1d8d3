"""The published algorithm, written for comparison, computes what our mixers compute."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import pom_export
from benchmarks.layer.official import OfficialMixer, with_official_mixers
from pom_export.mixer import Mixer

pytestmark = pytest.mark.slow

BYTE_LM = Path(__file__).parents[2] / "samples" / "checkpoints" / "byte_lm.safetensors"
MIXERS = {
    "one gate per channel": lambda: pom_export.PolynomialMixer(8, 3, 2),
    "heads": lambda: pom_export.PolynomialMixer(8, 4, 2, n_sel_heads=4),
    "groups": lambda: pom_export.PolynomialMixer(8, 2, 2, n_groups=2, bias=True),
    "rotary": lambda: pom_export.RotaryPolynomialMixer(8, 3, 2, max_seq_len=16),
    "v1": lambda: pom_export.ProductMixer(8, 3, 2),
    "v1, grouped": lambda: pom_export.ProductMixer(8, 2, 2, n_head=4),
}


def some_mixer(name: str) -> Mixer:
    torch.manual_seed(1)
    mixer = MIXERS[name]().double().eval()
    for parameter in mixer.parameters():
        torch.nn.init.normal_(parameter)
    return mixer


@pytest.mark.parametrize("mask", ["none", "causal", "padding", "full"])
@pytest.mark.parametrize("name", MIXERS)
def test_equals_our_mixer(name: str, mask: str) -> None:
    mixer = some_mixer(name)
    x = torch.randn(2, 7, 8, dtype=torch.float64)
    masks = {"causal": "causal", "padding": torch.rand(2, 7) + 0.1, "full": torch.rand(2, 7, 7) + 0.1}
    with torch.no_grad():
        expected = mixer(x, mask=masks.get(mask))
        torch.testing.assert_close(OfficialMixer(mixer)(x, mask=masks.get(mask)), expected, rtol=1e-6, atol=1e-6)


def test_a_causal_mask_goes_with_no_other() -> None:
    with pytest.raises(ValueError, match="no other"):
        OfficialMixer(some_mixer("heads"))(torch.ones(1, 2, 8).double(), mask=torch.ones(1, 2), causal=True)


def test_every_mixer_of_a_copy_is_replaced_and_the_model_is_left_alone() -> None:
    model = pom_export.load_checkpoint(BYTE_LM)
    copied = with_official_mixers(model)
    assert sum(isinstance(part, OfficialMixer) for part in copied.modules()) == 4
    assert not any(isinstance(part, OfficialMixer) for part in model.modules())
    ids = torch.randint(0, 256, (2, 9))
    with torch.no_grad():
        torch.testing.assert_close(copied(ids), model(ids), rtol=1e-4, atol=1e-4)
