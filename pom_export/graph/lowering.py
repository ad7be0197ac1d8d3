"""Replace official-style mixers inside a user's module by ours, which the exporter turns into the op.

They are recognised by their parameters and attributes, not by their class: nothing of theirs is imported.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from pom_export.checkpoint.hints import Hints
from pom_export.checkpoint.recognition import recognise
from pom_export.checkpoint.spec import MIXER, empty_model
from pom_export.errors import CheckpointError
from pom_export.mixer import Mixer, RotaryPolynomialMixer


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


@dataclass(frozen=True)
class Lowered:
    """What `lower_mixers` did.

    Attributes:
        module: the module, or what stands for it where it is itself a mixer.
        replaced: names of the mixers that were replaced, each once.
        near_misses: modules that look like mixers and are none that is known, with the reason.
    """

    module: nn.Module
    replaced: list[str] = field(default_factory=list)
    near_misses: dict[str, str] = field(default_factory=dict)


def lower_mixers(module: nn.Module) -> Lowered:
    """Replace every official-style mixer in a module, in place.

    Each replacement shares the weights of what it replaces; a module that is used twice is replaced by one.

    Args:
        module: a copy that may be changed.
    """
    replacements: dict[int, nn.Module] = {}
    result = Lowered(module)
    for name, part in list(module.named_modules()):
        if _is_ours(part) or not hasattr(part, "ag_proj"):
            continue
        try:
            replacements[id(part)] = OfficialMixer(_mixer_like(part), part).eval()
            result.replaced.append(name)
        except CheckpointError as error:
            result.near_misses[name] = error.what
    for parent in list(module.modules()):
        # Not named_children(), which leaves out the second name of a module.
        for name, child in list(parent._modules.items()):
            if id(child) in replacements:
                setattr(parent, name, replacements[id(child)])
    return replace(result, module=replacements.get(id(module), module))


def has_mixers(module: nn.Module) -> bool:
    """Return whether a module holds a mixer of ours, as it does after lowering."""
    return any(_is_ours(part) for part in module.modules())


def _is_ours(module: nn.Module) -> bool:
    return isinstance(module, (Mixer, OfficialMixer))


def _mixer_like(module: nn.Module) -> nn.Module:
    """Return a mixer of ours with a module's weights.

    Raises:
        CheckpointError: it is no official-style mixer.
    """
    state = module.state_dict(keep_vars=True)
    # What the official classes call the degree, and what others do.
    degrees = [getattr(module, name, None) for name in ("order", "degree")]
    hints = Hints(degree=next((degree for degree in degrees if isinstance(degree, int)), None))
    recognised = recognise(state, hints)
    if recognised.spec.architecture != MIXER or recognised.prefix:
        raise CheckpointError("it holds a mixer, and is none")
    mixer = empty_model(recognised.spec)
    mixer.load_state_dict(state, strict=True, assign=True)
    return mixer
