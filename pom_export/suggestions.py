"""Suggest what a user likely meant by an unknown name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

_MOST: Final = 3


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a question that suggests the most similar known names; empty if none is similar.

    Args:
        name: the given name.
        known: the known names.
    """
    from difflib import get_close_matches  # only needed after mistakes

    by_lower = {each.lower(): each for each in known}
    near = [repr(by_lower[match]) for match in get_close_matches(name.lower(), by_lower, _MOST)]
    if not near:
        return ""
    *others, last = near
    return f"Did you mean {', '.join(others)} or {last}?" if others else f"Did you mean {last}?"
