"""Replace a model's attention with PoM, in place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from pom_export.attention.costs import PomShape
from pom_export.attention.multihead import MultiheadPolynomialMixer
from pom_export.attention.recognition import FUNCTION, TIMM, Found, find_attention
from pom_export.attention.start import start_from_values
from pom_export.attention.vision import VisionPolynomialMixer
from pom_export.errors import InputError, only_ours
from pom_export.values import is_whole

STARTS = ("values", "fresh")
_NORMS = ("q_norm", "k_norm", "norm")


@dataclass(frozen=True)
class Replaced:
    """A layer that was replaced.

    Attributes:
        name: its path.
        old: class of the attention.
        new: the layer that replaces it.
        parameters_before: number of parameters of the attention.
        parameters_after: number of parameters of the new layer.
        notes: deviations from what was requested, if any.
    """

    name: str
    old: str
    new: nn.Module
    parameters_before: int
    parameters_after: int
    notes: str


@dataclass(frozen=True)
class Kept:
    """An attention layer that was not replaced, and the reason."""

    name: str
    old: str
    reason: str


@dataclass(frozen=True)
class ReplacementReport:
    """The result of `replace_attention`; its text is a summary."""

    replaced: list[Replaced]
    kept: list[Kept]

    @property
    def parameters_before(self) -> int:
        """Number of parameters of the layers that were replaced."""
        return sum(one.parameters_before for one in self.replaced)

    @property
    def parameters_after(self) -> int:
        """Number of parameters of their replacements."""
        return sum(one.parameters_after for one in self.replaced)

    def __str__(self) -> str:
        rows = [
            ("replaced", one.name, f"{one.old}, {one.parameters_before:,} parameters, now {one.parameters_after:,}"
             + (f"; {one.notes}" if one.notes else ""))
            for one in self.replaced
        ]  # fmt: skip
        rows += [("kept", one.name, f"{one.old}: {one.reason}") for one in self.kept]
        width = max((len(name) for _, name, _ in rows), default=0)
        lines = [f"{what:8}  {name:<{width}}  {text}" for what, name, text in rows]
        total = f"{len(self.replaced)} replaced, {len(self.kept)} kept; parameters of the replaced layers: "
        return "\n".join([*lines, f"{total}{self.parameters_before:,} before, {self.parameters_after:,} after"])


@only_ours
def replace_attention(
    model: nn.Module,
    *,
    degree: int = 3,
    expand: int = 2,
    n_groups: int = 1,
    filter: Callable[[str, nn.Module], bool] | None = None,  # noqa: A002 (the usual name)
    keep_every: int | None = None,
    start: str = "values",
) -> ReplacementReport:
    """Replace a model's attention layers with PoM, in place.

    `nn.MultiheadAttention` becomes a `MultiheadPolynomialMixer` with the same arguments, device and type; a timm-style
    block (`qkv`, `proj`, `num_heads`, `forward(x)`) becomes a `VisionPolynomialMixer`. A layer used in several places
    is replaced once and stays shared. Other kinds of attention are reported with advice. Nothing is changed if any
    replacement can't be made. The new layers need training.

    Args:
        model: the model, which must not be an attention layer itself.
        degree: polynomial degree K.
        expand: channels per model dimension.
        n_groups: groups of the context projection.
        filter: called with a layer's name and module; returning False keeps the layer.
        keep_every: keep every n-th attention layer, for a hybrid: of 4 layers, `keep_every=2` keeps the 2nd and 4th.
        start: "values" initialises from attention's value and output projections, so that the layer starts as attention
            with uniform weights; "fresh" initialises randomly.

    Returns:
        The layers that were replaced, and those that were kept with the reasons.

    Raises:
        InputError: the model is itself an attention layer, or a hyper-parameter does not fit a layer.
    """
    if start not in STARTS:
        raise InputError(f"unknown start {start!r}", f"Choose one of {', '.join(STARTS)}")
    if keep_every is not None and not (is_whole(keep_every) and keep_every >= 1):
        what = f"keep_every must be a whole number of at least 1, got {keep_every!r}"
        raise InputError(what, "Leave it out to replace every layer")
    found = find_attention(model)
    if any(one.module is model and one.what.kind != FUNCTION for one in found):
        raise InputError(
            f"the model is itself attention ({type(model).__name__}), which can't be replaced in place",
            "Build a MultiheadPolynomialMixer with the same arguments",
        )
    pom, kept, pairs = PomShape(degree, expand, n_groups), [], []
    for index, one in enumerate(found):
        if reason := _reason_to_keep(one, index, filter, keep_every):
            kept.append(Kept(one.name, type(one.module).__name__, reason))
        else:
            pairs.append((one, _built(one, pom)))
    replaced = [_swap(one, new, start) for one, new in pairs]
    _leave_nested_tensors(model)
    return ReplacementReport(replaced, kept)


def _reason_to_keep(
    one: Found, index: int, chosen: Callable[[str, nn.Module], bool] | None, keep_every: int | None
) -> str:
    if one.what.obstacle:
        return f"found, not replaced: {one.what.obstacle}"
    if chosen is not None and not chosen(one.name, one.module):
        return "filter"
    if keep_every is not None and index % keep_every == keep_every - 1:
        return f"keep_every={keep_every}"
    return ""


def mixer_for(one: Found, pom: PomShape, device: str | None = None) -> MultiheadPolynomialMixer:
    """Return the layer that would replace a recognised one, on the same device unless another is given.

    Raises:
        InputError: a hyper-parameter does not fit; the message names the layer.
    """
    module, shape = one.module, one.what.shape
    assert shape is not None
    weight = next(module.parameters())
    try:
        return MultiheadPolynomialMixer(
            shape.embed_dim, pom.heads_for(shape), _dropout(module), shape.bias,
            kdim=shape.kdim, vdim=shape.kdim, batch_first=getattr(module, "batch_first", True) is True,
            device=device or weight.device, dtype=weight.dtype,
            degree=pom.degree, expand=pom.expand, n_groups=pom.n_groups,
        )  # fmt: skip
    except InputError as error:
        raise InputError(f"{one.name or type(module).__name__}: {error.what}", error.hint) from error


def _dropout(module: nn.Module) -> float:
    """Return the dropout of attention's weights."""
    if isinstance(module, nn.MultiheadAttention):
        return float(module.dropout)
    return float(getattr(getattr(module, "attn_drop", None), "p", 0.0))


def _built(one: Found, pom: PomShape) -> nn.Module:
    mixer = mixer_for(one, pom)
    new = VisionPolynomialMixer(mixer, getattr(one.module, "proj_drop", None)) if one.what.kind == TIMM else mixer
    return new.train(one.module.training)


def _swap(one: Found, new: nn.Module, start: str) -> Replaced:
    notes = []
    shape, mixer = one.what.shape, next(part for part in new.modules() if isinstance(part, MultiheadPolynomialMixer))
    assert shape is not None
    if shape.heads != mixer.num_heads:
        notes.append(f"{shape.heads} heads don't divide the channels: one gate per channel")
    if start == "values" and not _start(one.module, mixer):
        notes.append("started fresh: attention's values do not fit its channels, groups or context")
    if dropped := _norms(one.module):
        notes.append(f"{', '.join(dropped)} dropped: PoM has no scores and no values of its own to normalise")
    for parent, name in one.places:
        parent._modules[name] = new
    if len(one.places) > 1:
        notes.append(f"shared by {len(one.places)} places")
    old, sizes = type(one.module).__name__, [sum(p.numel() for p in m.parameters()) for m in (one.module, new)]
    return Replaced(one.name, old, new, sizes[0], sizes[1], "; ".join(notes))


def _norms(attention: nn.Module) -> list[str]:
    """Return the children of attention that have weights but no counterpart in PoM."""
    named = attention.named_children()
    return [name for name, child in named if name in _NORMS and any(True for _ in child.parameters())]


def _start(attention: Any, new: MultiheadPolynomialMixer) -> bool:
    """Initialise a mixer from attention's values if possible, and return whether it was."""
    if new.context_proj is not None:
        return False
    if isinstance(attention, nn.MultiheadAttention):
        weight, bias, output = attention.in_proj_weight, attention.in_proj_bias, attention.out_proj
    else:
        weight, bias, output = attention.qkv.weight, attention.qkv.bias, attention.proj
    return start_from_values(new.mixer, weight.chunk(3)[2], None if bias is None else bias.chunk(3)[2], output)


def _leave_nested_tensors(model: nn.Module) -> None:
    """Stop every `nn.TransformerEncoder` that contains a mixer from packing padded batches into nested tensors."""
    for part in model.modules():
        if isinstance(part, nn.TransformerEncoder) and any(
            isinstance(layer, MultiheadPolynomialMixer) for layer in part.modules()
        ):
            part.use_nested_tensor = False
