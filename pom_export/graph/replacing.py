"""Replace official-style mixers inside a user's module with ours, which are traced as the op.

They are recognised by their parameters and attributes, not by their class, so their code is never imported. For a class
of their own, users can provide an adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from pom_export.checkpoint.families import MIXER
from pom_export.checkpoint.hints import Hints
from pom_export.checkpoint.layouts import with_joined_projections
from pom_export.checkpoint.recognition import recognise
from pom_export.checkpoint.spec import empty_model
from pom_export.errors import CheckpointError, InputError, kind_of, reason_of
from pom_export.graph.effective_weights import effective_state, fold_weights
from pom_export.graph.hidden_modules import hidden_modules
from pom_export.graph.stand_in import ADAPT, MixerStandIn, stand_in
from pom_export.mixer import Mixer

Adapters = Mapping[type[nn.Module], Callable[[Any], nn.Module]]
_IN_EVERY_MIXER = "ag_proj"
_UNHOOK = "accelerate.hooks.remove_hook_from_module(model, recurse=True) gives it back."


@dataclass(frozen=True)
class ReplacedMixers:
    """The result of `replace_mixers`.

    Attributes:
        module: the module, or its replacement if it is itself a mixer.
        replaced: names of the mixers that were replaced, without duplicates.
        near_misses: modules that look like mixers but were not replaced, with the reason.
        folded: for replaced mixers, the weights that are computed from others; the file stores their computed values.
    """

    module: nn.Module
    replaced: list[str] = field(default_factory=list)
    near_misses: dict[str, CheckpointError] = field(default_factory=dict)
    folded: dict[str, list[str]] = field(default_factory=dict)


def replace_mixers(module: nn.Module, adapters: Adapters | None = None) -> ReplacedMixers:
    """Replace every official-style mixer in a module, and those that have an adapter, in place.

    Each replacement shares the weights of the module that it replaces, and a module that is used twice gets one
    replacement. Elsewhere, weights that are computed from others are replaced by their computed values.

    Args:
        module: a copy that may be changed.
        adapters: functions by class, which take an instance and return one of our mixers, or a module that contains
            one.

    Raises:
        InputError: an adapter fails, returns no mixer, or is for a class that does not occur in the module.
    """
    replacements: dict[int, nn.Module] = {}
    result = ReplacedMixers(module)
    unused = set(adapters or ())
    inside: set[int] = set()
    for name, part in list(module.named_modules()):
        if id(part) in inside or isinstance(part, (Mixer, MixerStandIn)):
            continue
        try:
            adapted_class = next((kind for kind in type(part).__mro__ if kind in (adapters or ())), None)
            if adapted_class is not None:
                unused.discard(adapted_class)
                replacements[id(part)] = _adapted(part, name, (adapters or {})[adapted_class])
            elif _looks_like_mixer(part):
                replacements[id(part)] = _official(part, result, name)
            else:
                continue
            result.replaced.append(name)
            inside.update(map(id, part.modules()))
        except CheckpointError as error:
            result.near_misses[name] = error
    if unused:
        raise InputError(
            f"mixers has an adapter for {_names(unused)}, and the model contains no such module", "Check the class"
        )
    result.near_misses.update(_out_of_reach(module))
    _put_in_place(module, replacements)
    root = replacements.get(id(module), module)
    fold_weights(root)
    return replace(result, module=root)


def has_mixers(module: nn.Module) -> bool:
    """Return whether a module contains any of our mixers, including replacements."""
    return any(isinstance(part, (Mixer, MixerStandIn)) for part in module.modules())


def _put_in_place(module: nn.Module, replacements: Mapping[int, nn.Module]) -> None:
    for parent in list(module.modules()):
        # named_children() would skip the second name of a module.
        for name, child in list(parent._modules.items()):
            if id(child) in replacements:
                setattr(parent, name, replacements[id(child)])


def _looks_like_mixer(module: nn.Module) -> bool:
    # hasattr() would not work, because wrappers forward it to the module inside.
    if isinstance(module, torch.jit.ScriptModule):
        return hasattr(module, _IN_EVERY_MIXER)
    return _IN_EVERY_MIXER in module._modules


def _official(module: nn.Module, result: ReplacedMixers, name: str) -> MixerStandIn:
    """Return the replacement of an official-style mixer, and note which of its weights were computed.

    Raises:
        CheckpointError: it is not a mixer, or its forward is not the official one.
    """
    if isinstance(module, torch.jit.ScriptModule):
        raise CheckpointError("it is a TorchScript module", "Export the Python module that it was scripted from")
    if "forward" in vars(module):
        hint = f"{_UNHOOK} " if "_hf_hook" in vars(module) else ""
        raise CheckpointError(
            f"the forward of this {type(module).__name__} was replaced",
            hint + ADAPT.format(kind=_kind(module)),
        )
    effective, folded = effective_state(module)
    # The official classes call the degree `order`; others call it `degree`.
    degrees = [getattr(module, attribute, None) for attribute in ("order", "degree")]
    hints = Hints(degree=next((degree for degree in degrees if isinstance(degree, int)), None))
    try:
        state, _ = with_joined_projections(effective)
        recognised = recognise(state, hints)
    except CheckpointError as error:
        # Hints for checkpoints do not apply to modules.
        raise CheckpointError(error.what, _remedy(module, hints)) from error
    if recognised.spec.architecture != MIXER or recognised.prefix:
        raise CheckpointError("it contains a mixer, but is not one itself")
    mixer = empty_model(recognised.spec)
    mixer.load_state_dict(state, strict=True, assign=True)
    replacement = stand_in(mixer, module)
    if folded:
        result.folded[name] = folded
    return replacement


def _remedy(module: nn.Module, hints: Hints) -> str:
    adapt = ADAPT.format(kind=_kind(module))
    if hints.degree is None and not hasattr(module, "po_coeff"):
        return f"Give it an attribute `order`, its degree, if it is the official class. {adapt}"
    return adapt


def _adapted(module: nn.Module, name: str, adapter: Callable[[Any], nn.Module]) -> nn.Module:
    """Return an adapter's result for a module, with the module's type and device.

    Raises:
        CheckpointError: no mixer of ours can stand in for a module with this signature.
        InputError: the adapter fails, or its result neither is nor contains one of our mixers.
    """
    what = f"the adapter for {_kind(module)}" + (f" ({name})" if name else "")
    try:
        made = adapter(module)
    except Exception as error:
        raise InputError(f"{what} fails: {reason_of(error)}", "It is called with one argument, the instance") from error
    if not isinstance(made, nn.Module) or not has_mixers(made):
        raise InputError(
            f"{what} returns {kind_of(made)} without a mixer of ours",
            "Return a PolynomialMixer, a ProductMixer, a RotaryPolynomialMixer, or a module that holds one",
        )
    like = next((p for p in module.parameters() if p.is_floating_point()), None)
    if like is not None:
        made = made.to(device=like.device, dtype=like.dtype)
    if isinstance(made, Mixer):
        try:
            return stand_in(made, module)
        except CheckpointError as error:
            raise InputError(
                f"{what} returns a mixer, but {error.what}",
                f"Return a module with the forward of {_kind(module)}, which calls the mixer",
            ) from error
    return made.eval()


def _out_of_reach(module: nn.Module) -> dict[str, CheckpointError]:
    """Return the mixers that torch does not know about, with advice."""
    found = {}
    for name, part, holder in hidden_modules(module):
        if _looks_like_mixer(part):
            hint = "Assign it to the module" if holder == "a function" else "Use nn.ModuleList or nn.ModuleDict"
            found[name] = CheckpointError(f"it is stored in {holder}, where torch does not see it", hint)
    return found


def _kind(module: nn.Module) -> str:
    """Return the name of a module's class as the user wrote it."""
    kind = type(module)
    # torch derives a new class from the one whose weights it parametrizes.
    return kind.__name__.removeprefix("Parametrized") if hasattr(module, "parametrizations") else kind.__name__


def _names(kinds: Iterable[type]) -> str:
    return ", ".join(sorted(kind.__name__ for kind in kinds))
