"""How large a call may be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from pom_export.errors import InputError
from pom_export.values import is_whole

MOST_TOKENS: Final = 1024
"""Tokens in a call on the CPU, if the caller does not say; more would no longer fit into its caches."""
MOST_TOKENS_ON_DEVICES: Final = 16384
"""The same on other devices, which compute many at once."""
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

    @classmethod
    def for_session(cls, session: Any, batch: int, max_tokens: int | None) -> Budget:
        """Return the budget that a caller gave, or else that of the devices of an onnxruntime.InferenceSession."""
        on_cpu = set(session.get_providers()) <= {"CPUExecutionProvider"}
        default = MOST_TOKENS if on_cpu else MOST_TOKENS_ON_DEVICES
        return cls(batch, default if max_tokens is None else max_tokens)

    def __post_init__(self) -> None:
        for name in ("batch", "max_tokens"):
            value = getattr(self, name)
            if not (is_whole(value) and value >= 1):
                raise InputError(
                    f"`{name}` is {value!r}, not a whole number of at least 1", "Leave it out, or raise it"
                )
