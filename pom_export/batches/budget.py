"""How large a call may be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pom_export.errors import InputError
from pom_export.values import is_whole

MOST_TOKENS: Final = 8192
"""Tokens in a call, padding included, if the caller does not say."""
MOST_ROWS: Final = 256
"""Sequences in a call, if the caller does not say."""


@dataclass(frozen=True)
class Budget:
    """How large a batch may be. A sequence that exceeds it is a batch by itself.

    Attributes:
        batch: the most sequences.
        max_tokens: the most tokens, padding included.
    """

    batch: int = MOST_ROWS
    max_tokens: int = MOST_TOKENS

    def __post_init__(self) -> None:
        for name in ("batch", "max_tokens"):
            value = getattr(self, name)
            if not (is_whole(value) and value >= 1):
                raise InputError(
                    f"`{name}` is {value!r}, not a whole number of at least 1", "Leave it out, or raise it"
                )
