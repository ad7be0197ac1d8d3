"""Replace official-style mixers inside a user's module by ours, which the exporter turns into the op.

They are recognised by their parameters and attributes, not by their class: nothing of theirs is imported.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pom_export.checkpoint.hints import Hints
from pom_export.checkpoint.recognition import recognise
from pom_export.checkpoint.spec import MIXER, build_model
from pom_export.errors import CheckpointError
from pom_export.mixer import PolynomialMixer, ProductMixer, RotaryPolynomialMixer


class OfficialMixer(nn.Module):
    """One of our mixers behind the official signature; attributes of the module that it stands for stay readable."""

    def __init__(self, mixer: nn.Module, original: nn.Module) -> None:
        super().__init__()
        self.mixer = mixer
        # In a tuple, so that it is no submodule.
        self._original = (original,)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattribute__("_original")[0], name)

    def forward(
        self,
        xq: Tensor,
        xc: Tensor | None = None,
        mask: Any = None,
        positions: Tensor | None = None,
        ctx_positions: Tensor | None = None,
        positions_hw: Tensor | None = None,
        ctx_positions_hw: Tensor | None = None,
    ) -> Tensor:
        """Mix as the official module does; arguments are those of its `forward`."""
        context = None if xc is xq else xc
        if not isinstance(self.mixer, RotaryPolynomialMixer):
            return self.mixer(xq, context, mask)
        if self.mixer.rotary.blocks > 1:
            positions, ctx_positions = positions_hw, ctx_positions_hw
        return self.mixer(xq, context, mask, positions, ctx_positions)


def lower_mixers(module: nn.Module) -> nn.Module:
    """Replace every official-style mixer in a module, in place, and return the module.

    Each replacement shares the weights of what it replaces; a module that is used twice is replaced by one. A module
    that is itself such a mixer is returned replaced.

    Args:
        module: a copy that may be changed.
    """
    replacements: dict[int, nn.Module] = {}
    for parent in list(module.modules()):
        if _is_ours(parent) or id(parent) in replacements:
            continue
        for name, child in list(parent.named_children()):
            if (lowered := _lowered(child, replacements)) is not None:
                setattr(parent, name, lowered)
    return _lowered(module, replacements) or module


def has_mixers(module: nn.Module) -> bool:
    """Return whether a module holds a mixer of ours, as it does after lowering."""
    return any(_is_ours(part) for part in module.modules())


def _is_ours(module: nn.Module) -> bool:
    return isinstance(module, (PolynomialMixer, ProductMixer, OfficialMixer))


def _lowered(module: nn.Module, replacements: dict[int, nn.Module]) -> nn.Module | None:
    """Return what replaces an official-style mixer, or None for any other module."""
    if id(module) not in replacements and (mixer := _mixer_like(module)) is not None:
        replacements[id(module)] = OfficialMixer(mixer, module).eval()
    return replacements.get(id(module))


def _mixer_like(module: nn.Module) -> nn.Module | None:
    """Return a mixer of ours with a module's weights, or None where it is no official-style mixer."""
    if _is_ours(module) or not hasattr(module, "ag_proj"):
        return None
    state = module.state_dict(keep_vars=True)
    # What the official constructors call the degree.
    degree = getattr(module, "order", None)
    hints = Hints(degree=degree if isinstance(degree, int) else None)
    try:
        recognised = recognise(state, hints)
    except CheckpointError:
        return None
    if recognised.spec.architecture != MIXER or recognised.prefix:
        return None
    with torch.device("meta"):
        mixer = build_model(recognised.spec)
    mixer.load_state_dict(state, strict=True, assign=True)
    return mixer
