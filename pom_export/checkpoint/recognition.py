"""Say which model a state dict is, and with which hyper-parameters, from its names and shapes alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import torch
from torch import Size, Tensor, nn

from pom_export.checkpoint.spec import FAMILY_V2, LANGUAGE_MODEL, MIXER, ModelSpec
from pom_export.errors import CheckpointError, InputError
from pom_export.mixer import MixerConfig, PolynomialMixer
from pom_export.models import LanguageModel, LanguageModelConfig

Shapes = Mapping[str, Size]
_T = TypeVar("_T")
_KNOWN = "a bare v2 mixer (qc_proj.weight or po_proj.weight, po_coeff, ag_proj.weight) or this toolkit's language model"


def recognise(tensors: Mapping[str, Tensor]) -> ModelSpec:
    """Return the spec of a state dict.

    Raises:
        CheckpointError: its names or shapes are of no known model; the nearest one and the difference are named.
    """
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    if "embedding.weight" in shapes and any(name.startswith("blocks.0.mixer.") for name in shapes):
        spec = ModelSpec(LANGUAGE_MODEL, FAMILY_V2, _explained(_language_model_config, shapes))
    elif "po_coeff" in shapes:
        spec = ModelSpec(MIXER, FAMILY_V2, _explained(_mixer_config, shapes))
    else:
        raise CheckpointError(f"no known model: its keys are {_some(shapes)}", f"Expected {_KNOWN}")
    _check_names_and_shapes(spec, shapes)
    return spec


def build_model(spec: ModelSpec) -> nn.Module:
    """Return the model of a spec, in evaluation mode, with fresh weights."""
    if isinstance(spec.config, LanguageModelConfig):
        return LanguageModel(spec.config).eval()
    config = spec.config
    mixer = PolynomialMixer(config.dim, config.degree, config.expand, config.n_groups, config.n_sel_heads, config.bias)
    return mixer.eval()


def _some(names: Iterable[str], limit: int = 4) -> str:
    """Return the first few names, and how many more there are."""
    listed = sorted(names)
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + more


def _explained(derive: Callable[[Shapes], _T], shapes: Shapes) -> _T:
    """Derive a config; a missing key or an impossible shape becomes one clear line."""
    try:
        return derive(shapes)
    except KeyError as error:
        raise CheckpointError(f"key {error.args[0]} is missing", f"Expected {_KNOWN}") from error
    except IndexError as error:
        raise CheckpointError("a weight has too few dimensions", f"Expected {_KNOWN}") from error
    except InputError as error:
        raise CheckpointError(f"the weights' shapes fit no PoM: {error.what}", "Is the file whole?") from error


def _mixer_config(shapes: Shapes) -> MixerConfig:
    channels, degree = shapes["po_coeff"][0], shapes["po_coeff"][1]
    dim = shapes["ag_proj.weight"][0]
    if dim == 0 or channels % dim:
        raise InputError(f"po_coeff has {channels} channels, not a multiple of ag_proj.weight's width {dim}")
    if "qc_proj.weight" in shapes:
        groups, gates = 1, shapes["se_bias"][0]
    else:
        inputs = shapes["po_proj.weight"][1]
        groups, gates = dim // inputs if inputs else 0, shapes["se_proj.weight"][0]
    heads = 1 if gates == channels else gates
    return MixerConfig(dim, degree, channels // dim, groups, heads, bias="ag_proj.bias" in shapes)


def _language_model_config(shapes: Shapes) -> LanguageModelConfig:
    block = "blocks.0.mixer."
    mixer = {name.removeprefix(block): shape for name, shape in shapes.items() if name.startswith(block)}
    # Distinct numbers, not the largest: one absurd key must not become a million blocks.
    indices = {name.split(".")[1] for name in shapes if name.startswith("blocks.")}
    return LanguageModelConfig(
        vocab_size=shapes["embedding.weight"][0],
        n_layers=sum(index.isdecimal() for index in indices),
        window=shapes["convolution.weight"][2],
        mlp_width=shapes["blocks.0.mlp_up.weight"][0],
        mixer=_mixer_config(mixer),
    )


def _check_names_and_shapes(spec: ModelSpec, shapes: Shapes) -> None:
    """Compare with the state dict that the spec's model has."""
    with torch.device("meta"):
        expected = {name: tensor.shape for name, tensor in build_model(spec).state_dict().items()}
    if missing := expected.keys() - shapes.keys():
        raise CheckpointError(f"missing keys for a {spec.summary()}: {_some(missing)}", "Is the file whole?")
    if unknown := shapes.keys() - expected.keys():
        raise CheckpointError(
            f"unknown keys for a {spec.summary()}: {_some(unknown)}", "Remove them or check the model"
        )
    for name, shape in expected.items():
        if shapes[name] != shape:
            raise CheckpointError(
                f"{name} is {tuple(shapes[name])}, expected {tuple(shape)} for a {spec.summary()}", "Is the file whole?"
            )
