"""What a state dict is recognised as, and how a near miss is reported."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pom_export.checkpoint import load_model
from pom_export.checkpoint.families import MIXER, V2
from pom_export.checkpoint.recognition import recognise
from pom_export.checkpoint.spec import build_model
from pom_export.errors import CheckpointError
from pom_export.mixer import MixerConfig, PolynomialMixer, ProductMixerConfig, RotaryConfig
from pom_export.models import LanguageModel, LanguageModelConfig

Tensors = dict[str, Tensor]


def test_recognises_every_golden_case(golden: Any) -> None:
    # The shapes don't show the degree of v1; the case's config.json beside the file does.
    loaded = load_model(golden.checkpoint)

    assert (loaded.spec.architecture, loaded.spec.family) == (MIXER, golden.config["family"])
    assert loaded.spec.config == official_config(golden.config)
    assert not loaded.module.training
    assert not any(parameter.requires_grad for parameter in loaded.module.parameters())


def official_config(config: dict[str, Any]) -> MixerConfig | ProductMixerConfig:
    """Return the hyper-parameters of a golden case."""
    if config["family"] != V2:
        return ProductMixerConfig(
            config["dim"], config["degree"], config["expand"], config.get("n_head"), config["bias"]
        )
    rope = config.get("rope", {})
    grid = {"max_h": rope["max_h"], "max_w": rope["max_w"]} if rope.get("rope_2d") else None
    rotary = RotaryConfig(**grid) if grid else RotaryConfig(rope["max_seq_len"]) if rope else None
    # 0 and 1 selection heads give the same model.
    heads = max(config["n_sel_heads"], 1)
    names = ("dim", "degree", "expand", "n_groups", "bias")
    return MixerConfig(**{name: config[name] for name in names}, n_sel_heads=heads, rotary=rotary)


@pytest.mark.parametrize(
    "config",
    [
        MixerConfig(8, 16, 3, n_groups=8, n_sel_heads=24),
        MixerConfig(6, 1, 1, n_groups=3, n_sel_heads=2, bias=True),
        MixerConfig(1, 2, 1),
    ],
)
def test_recognises_what_it_builds(config: MixerConfig) -> None:
    module = PolynomialMixer(config.dim, config.degree, config.expand, config.n_groups, config.n_sel_heads, config.bias)

    spec = recognise(module.state_dict()).spec
    shapes = {name: tensor.shape for name, tensor in build_model(spec).state_dict().items()}

    assert shapes == {name: tensor.shape for name, tensor in module.state_dict().items()}
    assert isinstance(spec.config, MixerConfig)
    assert spec.config.gate_width == config.gate_width
    assert str(config.degree) in spec.summary()


def drop(name: str) -> Callable[[Tensors], Any]:
    return lambda tensors: tensors.pop(name)


def put(name: str, *shape: int) -> Callable[[Tensors], Any]:
    return lambda tensors: tensors.update({name: torch.ones(shape)})


@pytest.mark.parametrize(
    ("edit", "seen"),
    [
        (put("stranger", 1), "stranger"),
        (put("ag_proj.scale", 1), "ag_proj.scale"),
        (drop("se_bias"), "se_bias"),
        (drop("qc_proj.weight"), "qc_proj.weight is missing"),
        (drop("ag_proj.weight"), "ag_proj.weight"),
        (drop("po_coeff"), "nearest is pom-v2; missing: po_coeff"),
        (put("qc_proj.weight", 32, 9), "(32, 9)"),
        (put("po_coeff", 16, 17), "17"),
        (put("po_coeff", 17, 3), "17"),
        (put("po_coeff", 16), "too few dimensions"),
        (put("po_coeff", 16, 0), "degree"),
        (put("ag_proj.weight", 0, 16), "width 0"),
        (put("ag_proj.bias", 9), "(9,)"),
        (put("se_bias", 3), "3"),
    ],
)
def test_names_what_keeps_a_mixer_from_being_one(edit: Callable[[Tensors], Any], seen: str) -> None:
    tensors = PolynomialMixer(dim=8, degree=3, expand=2).state_dict()
    edit(tensors)

    assert seen in refusal(tensors)


@pytest.mark.parametrize(
    ("edit", "seen"),
    [
        (drop("norm.weight"), "norm.weight"),
        (drop("convolution.weight"), "convolution.weight"),
        (put("head.weight", 1), "head.weight"),
        (put("blocks.one.scale", 1), "blocks.one.scale"),
        (put("blocks.5.mixer.po_coeff", 16, 3), "blocks.2."),
        (put("blocks.1.mixer.po_coeff", 16, 4), "(16, 4)"),
    ],
)
def test_names_what_keeps_a_language_model_from_being_one(edit: Callable[[Tensors], Any], seen: str) -> None:
    config = LanguageModelConfig(11, 2, 3, 20, MixerConfig(8, 3, 2))
    tensors = LanguageModel(config).state_dict()
    edit(tensors)

    assert seen in refusal(tensors)


def refusal(tensors: Tensors) -> str:
    with pytest.raises(CheckpointError) as caught:
        recognise(tensors)
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.hint
    return message
