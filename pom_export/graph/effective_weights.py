"""Find the weights that a mixer's layers compute with: plain, parametrized, pruned, normalised or adapted.

A projection is a linear map. If it is not a plain torch layer, the map is determined from the layer's outputs: zeros
give the bias, and unit vectors the columns of the weight.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from pom_export.errors import CheckpointError, kind_of, reason_of
from pom_export.graph.copying import copy_module

FOLD = (
    "Fold it into the weight first: merge_and_unload (peft), torch.nn.utils.parametrize.remove_parametrizations, "
    "torch.nn.utils.remove_weight_norm or prune.remove"
)
_LAYERS = ("qc_proj", "po_proj", "se_proj", "ag_proj")
_PLAIN = (nn.Linear, nn.Conv1d, nn.modules.linear.NonDynamicallyQuantizableLinear)
# Suffixes of the tensors from which older reparametrizations and pruning, both of them hooks, compute a weight.
_PARTS = ("_orig", "_mask", "_g", "_v", "_u")
_Reparametrization = BasePruningMethod | SpectralNorm | WeightNorm
# Rounding error of float64 arithmetic, relative to the largest value.
_ROUNDING = 1e-9


def effective_state(mixer: nn.Module) -> tuple[dict[str, Tensor], list[str]]:
    """Return a mixer's state dict as if all of its layers were plain, and the names of those that are not.

    Tensors of plain layers are the mixer's own. Unrecognised entries keep their names.

    Raises:
        CheckpointError: a layer in place of a projection does not compute a linear map.
    """
    state: dict[str, Tensor] = mixer.state_dict(keep_vars=True)
    folded = []
    for name in _reparametrized(mixer):
        state = {key: value for key, value in state.items() if not _is_part_of(key, name)}
        state[name] = getattr(mixer, name)
        folded.append(name)
    for name in _LAYERS:
        layer = mixer._modules.get(name)
        if layer is None or _is_plain(layer):
            continue
        state = {key: value for key, value in state.items() if not key.startswith(f"{name}.")}
        weight, bias = _linear_map(name, layer)
        state[f"{name}.weight"] = weight
        if bias is not None:
            state[f"{name}.bias"] = bias
        folded.append(name)
    return {name: _as_parameter(value) for name, value in state.items()}, folded


def fold_weights(module: nn.Module) -> None:
    """Replace every weight of a copy that is computed from others by its current value, which is all that a file needs.

    ONNX lacks operators for some of these computations, such as that of an orthogonal matrix from its reflections.
    """
    for part in list(module.modules()):
        try:
            values = {name: getattr(part, name).detach() for name in _reparametrized(part)}
        except Exception:  # noqa: BLE001, S112 (calling the model will report the cause)
            continue
        if _is_parametrized(part):
            # remove_parametrizations would change a class that the caller's module shares.
            part.__class__ = parametrize.type_before_parametrizations(part)
            del part._modules["parametrizations"]
        for key in [key for key, hook in part._forward_pre_hooks.items() if is_reparametrization(hook)]:
            del part._forward_pre_hooks[key]
        for name, value in values.items():
            vars(part).pop(name, None)
            for suffix in _PARTS:
                part._parameters.pop(name + suffix, None)
                part._buffers.pop(name + suffix, None)
            setattr(part, name, nn.Parameter(value, requires_grad=False))


def is_reparametrization(hook: Any) -> bool:
    """Return whether a forward pre-hook of a module only computes one of its weights."""
    return isinstance(hook, _Reparametrization)


def _as_parameter(value: Tensor) -> Tensor:
    return value if value.is_leaf else value.detach()


def _is_plain(layer: nn.Module) -> bool:
    hooked = layer._forward_pre_hooks or layer._forward_hooks or "forward" in vars(layer)
    return type(layer) in _PLAIN and not hooked


def _is_parametrized(module: nn.Module) -> bool:
    # torch's is_parametrized does not work here: a mixer's stand-in forwards the attribute lookup to the mixer.
    return "parametrizations" in module._modules


def _reparametrized(module: nn.Module) -> list[str]:
    """Return the names of a module's own tensors that are computed from others, after updating them."""
    names: list[str] = []
    if _is_parametrized(module):
        names += module.get_submodule("parametrizations")._modules
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, _Reparametrization):
            # The result is out of date if the weights were changed since the last call.
            with torch.no_grad():  # a tensor with a gradient history can't be copied
                hook(module, ())
            names.append(hook._tensor_name if isinstance(hook, BasePruningMethod) else hook.name)
    return names


def _is_part_of(key: str, name: str) -> bool:
    return key.startswith(f"parametrizations.{name}.") or key in {name, *(name + part for part in _PARTS)}


def _linear_map(name: str, layer: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Return the weight and the bias of a module that is used as a projection, shaped as in a plain layer.

    Raises:
        CheckpointError: it does not compute a linear map, or its width is unknown.
    """
    kind = kind_of(layer)
    # An adapter's own layers may have another width than the layer that it adapts.
    wide_parts = [part for part in layer.modules() if _width(part)]
    base = next((part for part in wide_parts if isinstance(part, _PLAIN)), next(iter(wide_parts), None))
    if base is None:
        raise CheckpointError(f"{name} is {kind}, whose width cannot be determined", FOLD)
    dtype = next((p.dtype for p in layer.parameters() if p.is_floating_point()), torch.float32)
    wide, width, convolution = copy_module(layer, torch.float64), _width(base), hasattr(base, "in_channels")

    def call(x: Tensor) -> Tensor:
        y = wide(x.mT).mT if convolution else wide(x)
        return y.double()

    try:
        with torch.no_grad():
            bias = call(torch.zeros(1, 1, width, dtype=torch.float64))
            weight = (call(torch.eye(width, dtype=torch.float64)[None]) - bias)[0].mT
            x = torch.randn(1, 3, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
            y = call(x)
            error = (x @ weight.mT + bias - y).abs().max()
    except Exception as failure:
        raise CheckpointError(f"{name} is {kind}, which fails by itself: {reason_of(failure)}", FOLD) from failure
    if not error <= _ROUNDING * (1 + y.abs().max()):
        raise CheckpointError(f"{name} is {kind}, which does not compute a linear map of its input", FOLD)
    if convolution:
        weight = _by_group(name, kind, weight, int(getattr(base, "groups", 1)))[..., None]
    has_bias = isinstance(getattr(base, "bias", None), Tensor) or bool(bias.any())
    return weight.to(dtype).contiguous(), bias[0, 0].to(dtype) if has_bias else None


def _width(part: nn.Module) -> int:
    """Return the input width of a linear layer or convolution; 0 for other modules."""
    width = getattr(part, "in_features", getattr(part, "in_channels", 0))
    return width if isinstance(width, int) else 0


def _by_group(name: str, kind: str, weight: Tensor, groups: int) -> Tensor:
    """Return the blocks (C, d / groups) of a weight (C, d) in which each group of rows only uses its own columns."""
    rows, columns = weight.shape[0] // groups, weight.shape[1] // groups
    blocks = [weight[i * rows : (i + 1) * rows, i * columns : (i + 1) * columns] for i in range(groups)]
    # Compares norms: everything outside of the blocks must be 0.
    if not torch.isclose(torch.cat(blocks).norm(), weight.norm(), rtol=_ROUNDING):
        raise CheckpointError(f"{name} is {kind}, which mixes the {groups} groups of its convolution", FOLD)
    return torch.cat(blocks)
