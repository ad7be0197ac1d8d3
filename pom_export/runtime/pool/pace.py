"""How many tokens of prompts are read between two steps of the streams that are generating."""

from __future__ import annotations

from typing import Final

# Tokens of prompts in a call: enough for full speed, few enough to save memory.
MOST_TOKENS: Final = 2048
# Fewer tokens in a call would read the model's weights for little.
_FEWEST_TOKENS: Final = 16
# Time for prompts, by the time of a step: the time between two tokens of a stream is then at most 2.5 times the usual.
_SHARE: Final = 1.5
# Weight of the newest measurement in a running mean.
_NEWEST: Final = 0.2


class Pace:
    """Gives prompts a time in proportion to the others' steps, so that these never take much longer than usual.

    Args:
        most_tokens: the most tokens of prompts in a call.
    """

    def __init__(self, most_tokens: int = MOST_TOKENS) -> None:
        self._most = max(1, min(most_tokens, MOST_TOKENS))
        self._step_s = 0.0
        self._token_s = 0.0

    def stepped(self, seconds: float) -> None:
        """Record the time of a call with one token of each stream."""
        self._step_s = _mean(self._step_s, seconds)

    def read(self, tokens: int, seconds: float) -> None:
        """Record the time of a call with this many tokens of prompts, of all its rows together."""
        self._token_s = _mean(self._token_s, seconds / tokens)

    def tokens(self, *, others_wait: bool) -> int:
        """Return how many tokens of prompts to read now.

        Args:
            others_wait: whether streams wait for their next step meanwhile.
        """
        if not others_wait:
            return self._most
        fitting = int(_SHARE * self._step_s / self._token_s) if self._token_s else 0
        return min(max(fitting, _FEWEST_TOKENS), self._most)


def _mean(before: float, newest: float) -> float:
    return newest if not before else (1 - _NEWEST) * before + _NEWEST * newest
