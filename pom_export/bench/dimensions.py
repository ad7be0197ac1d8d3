"""Dynamic dimensions of an exported file at a given size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from pom_export.graph.dimensions import BATCH, CONTEXT_TOKENS, TOKENS

DIMENSIONS: Final = (BATCH, TOKENS, CONTEXT_TOKENS)


def sizes_of(batch: int, tokens: int) -> dict[str, int]:
    """Return the sizes of the dynamic dimensions; a context is as long as the query."""
    return {BATCH: batch, TOKENS: tokens, CONTEXT_TOKENS: tokens}


def resolve_axes(axes: Sequence[str | int], sizes: Mapping[str, int]) -> tuple[int, ...]:
    """Return a shape at given sizes of the dynamic dimensions."""
    return tuple(sizes[axis] if isinstance(axis, str) else axis for axis in axes)
