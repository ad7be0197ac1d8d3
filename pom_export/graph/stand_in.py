"""Wrap one of our mixers in the signature of the module that it replaces."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from pom_export.errors import CheckpointError, InputError
from pom_export.graph.effective_weights import is_reparametrization
from pom_export.mixer import RotaryPolynomialMixer

ADAPT = "Say what it computes with mixers={{{kind}: adapter}}, where the adapter makes a mixer of ours from it"

_OFFICIAL = ("xq", "xc", "mask", "positions", "ctx_positions", "positions_hw", "ctx_positions_hw")
# Other names of the official forward's arguments.
_ROLES = {
    **dict(zip(_OFFICIAL, _OFFICIAL, strict=True)),
    "query": "xq",
    "context": "xc",
    "context_positions": "ctx_positions",
}
_HOOKS = (
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"),
)


class MixerStandIn(nn.Module):
    """One of our mixers with the official signature; attributes of the original module stay readable."""

    def __init__(self, mixer: nn.Module, original: nn.Module) -> None:
        super().__init__()
        self.mixer = mixer
        # In a tuple, so that it does not become a submodule.
        self._original = (original,)
        for name in _HOOKS:
            kept = {key: hook for key, hook in getattr(original, name).items() if not is_reparametrization(hook)}
            getattr(self, name).update(kept)

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
        """Mix like the official module; the arguments are those of its `forward`."""
        context = None if xc is xq else xc
        if not isinstance(self.mixer, RotaryPolynomialMixer):
            return self.mixer(xq, context, mask)
        if self.mixer.rotary.blocks > 1:
            positions, ctx_positions = positions_hw, ctx_positions_hw
        return self.mixer(xq, context, mask, positions, ctx_positions)


def stand_in(mixer: nn.Module, original: nn.Module) -> MixerStandIn:
    """Return a mixer with the signature of the module that it stands in for, in evaluation mode.

    Arguments are matched by name, except for the first, which is the query whatever its name.

    Raises:
        CheckpointError: the module's forward needs an argument that the official one lacks.
    """
    signature = inspect.signature(original.forward)
    roles = _roles(signature, type(original).__name__)
    if roles is None:
        return MixerStandIn(mixer, original).eval()
    kind = type(original).__name__

    def forward(self: MixerStandIn, *args: Any, **kwargs: Any) -> Tensor:
        given = signature.bind(*args, **kwargs).arguments
        return MixerStandIn.forward(self, **_translated(given, signature, roles, kind))

    this = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    parameters = list(signature.parameters.values())
    # torch.export reads the inputs' names from here.
    forward.__signature__ = signature.replace(parameters=[this, *parameters])  # type: ignore[attr-defined]
    return type(kind, (MixerStandIn,), {"forward": forward})(mixer, original).eval()


def _roles(signature: inspect.Signature, kind: str) -> dict[str, str] | None:
    """Return the official name of each argument of a forward; None if it forwards all arguments.

    Raises:
        CheckpointError: an argument has neither a counterpart nor a default.
    """
    parameters = list(signature.parameters.values())
    roles: dict[str, str] = {}
    for index, parameter in enumerate(parameters):
        if parameter.kind is parameter.VAR_POSITIONAL:
            return None
        if parameter.kind is parameter.VAR_KEYWORD:
            continue
        role = "xq" if index == 0 else _ROLES.get(parameter.name)
        if role is not None and role not in roles.values():
            roles[parameter.name] = role
        elif parameter.default is parameter.empty:
            raise CheckpointError(
                f"its forward takes ({', '.join(p.name for p in parameters)}), the official one (xq, xc, mask)",
                ADAPT.format(kind=kind),
            )
    return roles


def _translated(
    given: Mapping[str, Any], signature: inspect.Signature, roles: Mapping[str, str], kind: str
) -> dict[str, Any]:
    """Return the official arguments of a call.

    Raises:
        InputError: an argument without a counterpart differs from its default.
    """
    official: dict[str, Any] = {}
    for name, value in given.items():
        if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            official.update(_translated_keywords(value, kind))
        elif name in roles:
            official[roles[name]] = value
        elif value is not (default := signature.parameters[name].default) and not _equal(value, default):
            raise _no_counterpart(kind, name)
    return official


def _translated_keywords(keywords: Mapping[str, Any], kind: str) -> dict[str, Any]:
    if unknown := [name for name in keywords if name not in _ROLES]:
        raise _no_counterpart(kind, unknown[0])
    return {_ROLES[name]: value for name, value in keywords.items()}


def _equal(value: Any, default: Any) -> bool:
    return type(value) is type(default) and isinstance(value, (bool, int, float, str)) and value == default


def _no_counterpart(kind: str, name: str) -> InputError:
    return InputError(
        f"{kind} is called with {name}, which the official mixer's forward does not have", ADAPT.format(kind=kind)
    )


def stand_in_paths(module: nn.Module) -> dict[str, str]:
    """Return the names by which the user knows the mixers inside stand-ins, by their paths."""
    return {
        f"{name}.mixer".lstrip("."): name for name, part in module.named_modules() if isinstance(part, MixerStandIn)
    }
