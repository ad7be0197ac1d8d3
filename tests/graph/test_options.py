"""Options of an export that are refused by themselves, or for what is exported."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from torch import nn

from pom_export.checkpoint.families import FAMILIES, JIT, LANGUAGE_MODEL, MIXER
from pom_export.errors import InputError
from pom_export.graph.claims import MASKS
from pom_export.graph.options import GraphOptions, check_options
from pom_export.graph.programs import program_of
from pom_export.mixer import MixerConfig, PolynomialMixer
from pom_export.models import LanguageModel, LanguageModelConfig
from tests.small_models import image_model

MODELS: dict[str, Callable[[], nn.Module]] = {
    MIXER: lambda: PolynomialMixer(8, 2, 2),
    LANGUAGE_MODEL: lambda: LanguageModel(LanguageModelConfig(20, 1, 3, 16, MixerConfig(8, 2, 2))),
    JIT: image_model,
}
OPTIONS = [
    GraphOptions(mask, cross=cross, stateful=stateful, block_causal=block_causal)
    for mask in (None, *MASKS)
    for cross, stateful, block_causal in itertools.product((False, True), repeat=3)
]


def is_refused(check: Callable[..., object], *arguments: object) -> bool:
    try:
        check(*arguments)
    except InputError:
        return True
    return False


@pytest.mark.parametrize("kind", MODELS)
def test_a_program_is_made_of_what_is_not_refused(kind: str) -> None:
    model = MODELS[kind]()
    refused = [is_refused(check_options, options, kind) for options in OPTIONS]

    assert refused == [is_refused(program_of, model, options) for options in OPTIONS]
    assert 0 < sum(refused) < len(OPTIONS)


def test_what_is_refused_of_an_unknown_model_is_refused_of_all() -> None:
    refused = [options for options in OPTIONS if is_refused(check_options, options)]

    assert len(refused) > len(OPTIONS) // 2
    for kind, options in itertools.product((MIXER, *FAMILIES), refused):
        with pytest.raises(InputError):
            check_options(options, kind)
