"""Find the attention in a model, and estimate what replacing it would cost and save."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from pom_export.attention.costs import Cost, PomShape, cost
from pom_export.attention.recognition import Found, find_attention
from pom_export.attention.replacement import mixer_for
from pom_export.errors import InputError, only_ours
from pom_export.values import is_whole

DEFAULT_TOKENS = (1024, 4096)


@dataclass(frozen=True)
class Finding:
    """An attention layer.

    Attributes:
        name: its path in the model; "" for the model itself.
        type: its class.
        kind: what it was recognised as; see `recognition`.
        layer: class of the torch.nn layer that it is part of, or "".
        embed_dim: width, or None if unknown.
        heads: number of heads, or None if unknown.
        parameters: number of parameters.
        parameters_after: number of parameters that the PoM would have, or None.
        replaceable: whether `replace_attention` replaces it.
        note: why not, and what to do.
        costs: costs for each number of tokens; see `costs` for the formulas.
    """

    name: str
    type: str
    kind: str
    layer: str
    embed_dim: int | None
    heads: int | None
    parameters: int
    parameters_after: int | None
    replaceable: bool
    note: str
    costs: tuple[Cost, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the finding as JSON-serialisable values."""
        return asdict(self)


@only_ours
def scan(
    model: nn.Module,
    *,
    tokens: Sequence[int] = DEFAULT_TOKENS,
    degree: int = 3,
    expand: int = 2,
    n_groups: int = 1,
) -> list[Finding]:
    """List a model's attention layers, without running or changing anything.

    Args:
        model: any module.
        tokens: sequence lengths to compute costs for.
        degree: polynomial degree of the PoM that would replace each layer.
        expand: its channels per model dimension.
        n_groups: groups of its context projection.

    Returns:
        One finding per layer, in the model's order; the list may be empty.

    Raises:
        InputError: a number of tokens is less than 1, or a hyper-parameter does not fit a layer.
    """
    if not isinstance(tokens, Sequence) or not all(is_whole(count) and count >= 1 for count in tokens):
        raise InputError(f"tokens must be whole numbers of at least 1, got {tokens!r}", "Example: tokens=(1024, 4096)")
    pom = PomShape(degree, expand, n_groups)
    return [_finding(one, pom, tokens) for one in find_attention(model)]


def _finding(one: Found, pom: PomShape, tokens: Sequence[int]) -> Finding:
    shape = one.what.shape
    after = None
    if shape is not None:
        after = sum(parameter.numel() for parameter in mixer_for(one, pom, device="meta").parameters())
    return Finding(
        name=one.name,
        type=type(one.module).__name__,
        kind=one.what.kind,
        layer=one.layer,
        embed_dim=shape.embed_dim if shape else None,
        heads=(shape.heads or None) if shape else None,
        parameters=sum(parameter.numel() for parameter in one.module.parameters()),
        parameters_after=after,
        replaceable=not one.what.obstacle,
        note=one.what.obstacle,
        costs=tuple(cost(shape, pom, count) for count in tokens) if shape else (),
    )
