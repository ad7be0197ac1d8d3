"""The language model: shapes, causality, and a state dict that determines all hyper-parameters."""

from __future__ import annotations

import pytest
import torch

from pom_export.checkpoint.recognition import recognise
from pom_export.checkpoint.spec import spec_of
from pom_export.errors import InputError
from pom_export.mixer import MixerConfig
from pom_export.models import LanguageModel, LanguageModelConfig

CONFIGS = [
    LanguageModelConfig(11, 2, 3, 20, MixerConfig(8, 3, 2)),
    LanguageModelConfig(256, 1, 1, 7, MixerConfig(8, 1, 1, n_groups=2, n_sel_heads=4, bias=True)),
]


def make_model(config: LanguageModelConfig) -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(config).eval().requires_grad_(requires_grad=False)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize(("batch", "tokens"), [(1, 1), (3, 10)])
def test_gives_the_logits_of_every_token(config: LanguageModelConfig, batch: int, tokens: int) -> None:
    logits = make_model(config)(torch.zeros(batch, tokens, dtype=torch.int64))

    assert logits.shape == (batch, tokens, config.vocab_size)
    assert logits.isfinite().all()


@pytest.mark.parametrize("config", CONFIGS)
def test_a_token_changes_no_earlier_logits(config: LanguageModelConfig) -> None:
    model = make_model(config)
    ids = torch.arange(10).remainder(config.vocab_size).unsqueeze(0)
    changed = ids.clone()
    changed[0, 6] = 0

    before, after = model(ids), model(changed)

    assert torch.equal(before[:, :6], after[:, :6])
    # Every later token sees the change, through the mixer.
    assert (before[:, 6:] != after[:, 6:]).any(-1).all()


def test_knows_the_order_of_earlier_tokens() -> None:
    model = make_model(CONFIGS[0])
    one, other = torch.tensor([[1, 2, 3, 4]]), torch.tensor([[2, 1, 3, 4]])

    assert not torch.allclose(model(one)[0, 2], model(other)[0, 2])


@pytest.mark.parametrize("config", CONFIGS)
def test_the_state_dict_says_the_hyper_parameters(config: LanguageModelConfig) -> None:
    model = make_model(config)

    spec = recognise(model.state_dict()).spec

    assert spec.config == config
    assert spec == spec_of(model)


@pytest.mark.parametrize("name", ["vocab_size", "n_layers", "window", "mlp_width"])
def test_refuses_sizes_below_1(name: str) -> None:
    arguments = {"vocab_size": 8, "n_layers": 1, "window": 1, "mlp_width": 8, name: 0}

    with pytest.raises(InputError, match=f"{name} .*0"):
        LanguageModelConfig(**arguments, mixer=MixerConfig(8, 3, 2))
