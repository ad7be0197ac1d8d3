"""The state before a stop text, so that the state after an answer leaves the stop out, as the answer does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

from pom_export.runtime.streaming.state import State

Array = npt.NDArray[Any]


@dataclass
class Since:
    """What has been chosen since some text began to be held back, as it may be the beginning of a stop.

    Attributes:
        state: the model's state before.
        logits: the logits after it (1, V).
        before: number of the answer's tokens before.
        start: number of characters of their text.
        tokens: the tokens since, and where the text of each begins.
        text: their text.
    """

    state: State
    logits: Array
    before: int
    start: int
    tokens: list[tuple[int, int]] = field(default_factory=list)
    text: str = ""

    def shown_tokens(self, shown: int, encode: Callable[[str], list[int]]) -> tuple[int, ...]:
        """Return the tokens of the text that is shown.

        Args:
            shown: number of the answer's characters that are shown.
            encode: encodes the shown part of a token that has text of a stop too.
        """
        visible = [(token, offset) for token, offset in self.tokens if offset < shown]
        ends = [offset for _, offset in self.tokens[len(visible) :]]
        end = ends[0] if ends else self.start + len(self.text)
        if not visible or end <= shown:
            return tuple(token for token, _ in visible)
        # The last ones complete a text of which a part is shown.
        split = visible[-1][1]
        part = self.text[split - self.start : shown - self.start]
        return (*(token for token, offset in visible if offset < split), *encode(part))
