"""Names of dynamic dimensions: those of an export, and substitutes for names that were lost.

Other tools drop names, or write -1, "?" or "None" instead. An input's dimensions are then identified by position.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

# Used in the file, and in every shape that a user gives.
BATCH: Final = "batch"
TOKENS: Final = "tokens"
CONTEXT_TOKENS: Final = "context_tokens"
PAST_TOKENS: Final = "past_tokens"

_CONTEXT: Final = "context"
# Placeholder for the tokens that a mask or position belongs to: the context's if there is a context.
_SOURCE: Final = "source"
# Dimensions of inputs, by name and rank. Inputs of the past that are not listed begin with the batch.
_PLACES: Final = {
    ("x", 3): (BATCH, TOKENS),
    ("input_ids", 2): (BATCH, TOKENS),
    ("x", 4): (BATCH,),
    ("t", 1): (BATCH,),
    ("y", 1): (BATCH,),
    (_CONTEXT, 3): (BATCH, CONTEXT_TOKENS),
    ("mask", 2): (BATCH, _SOURCE),
    ("mask", 3): (BATCH, TOKENS, _SOURCE),
    ("positions", 1): (TOKENS,),
    ("positions", 2): (TOKENS,),
    ("context_positions", 1): (CONTEXT_TOKENS,),
    ("context_positions", 2): (CONTEXT_TOKENS,),
}
_PAST: Final = "past_"
_KEY_VALUES: Final = "past_key_values."
_KEY_VALUE_PLACES: Final = (BATCH, "", PAST_TOKENS)
_NO_NAMES: Final = {"", "?", "*", "-1", "None", "unknown"}


def is_name(text: str) -> bool:
    """Return whether a text identifies a dimension."""
    return text not in _NO_NAMES


def name_by_place(value: str, rank: int, axis: int, inputs: Collection[str]) -> str:
    """Return a name for an unnamed dimension: the export's name if the input is known, else one based on its position.

    Args:
        value: name of the input or output.
        rank: its number of dimensions.
        axis: the dimension's position.
        inputs: names of all inputs.
    """
    places = _PLACES.get((value, rank), ())
    if value.startswith(_PAST):
        places = _KEY_VALUE_PLACES if value.startswith(_KEY_VALUES) else (BATCH,)
    name = places[axis] if axis < len(places) else ""
    if name == _SOURCE:
        name = CONTEXT_TOKENS if _CONTEXT in inputs else TOKENS
    return name or f"{value}_{axis}"
