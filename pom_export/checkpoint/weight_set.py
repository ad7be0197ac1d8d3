"""A set of weights in a file, and what the words in its path say about it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from torch import Tensor

# Matches whole words in names, however the words are separated.
_WORD: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
AVERAGES: Final = frozenset(
    {
        "ema",
        "emas",
        "phema",
        "average",
        "averages",
        "averaged",
        "averaging",
        "avg",
        "swa",
        "shadow",
        "polyak",
        "smoothed",
    }
)
"""Words that indicate an average."""
NOT_AVERAGED: Final = frozenset({"online", "raw", "current", "backup", "collected", "stored"})
"""Words that indicate the weights themselves, or a copy of them kept beside an average."""
# Names in the state dict of a mixer or of a model with mixers, including quantized ones.
MARKS: Final = ("ag_proj.weight", "ag_proj.qweight", "_packed_params")
_WITHOUT_DOTS: Final = "ag_projweight"


@dataclass(frozen=True)
class WeightSet:
    """A set of weights in a file.

    Attributes:
        path: the keys that lead to it, joined by dots; "" for a bare state dict.
        tensors: tensors by name, without prefixes of wrappers, and whatever else is among them; empty for a list.
        values: the tensors of a list without names, in order; None for a state dict.
        average: whether it is an average of weights over training.
        preferred: whether the file's layout shows that it is the one to use.
        alias: a short name for it: "model", "ema", "ema1"; "" if there is none.
        other_paths: other places of the same tensors.
        is_model: whether its names are those of a whole architecture, not of a mixer or something unknown.
        contains: whether it contains networks that are sets too, among other things.
    """

    path: str
    tensors: Mapping[str, Any] = field(default_factory=dict)
    values: Sequence[Tensor] | None = None
    average: bool = False
    preferred: bool = False
    alias: str = ""
    other_paths: tuple[str, ...] = ()
    is_model: bool = False
    contains: bool = False

    @property
    def name(self) -> str:
        """The name by which it is chosen."""
        return self.alias or self.path or "model"

    @property
    def label(self) -> str:
        """Its name, and its path if that is different."""
        return f"{self.name} ({self.path})" if self.path not in {"", self.name} else self.name

    @property
    def depth(self) -> int:
        """The number of keys that lead to it."""
        return self.path.count(".")

    @property
    def has_mixers(self) -> bool:
        """Whether its names are those of a model with mixers."""
        return any(name.endswith((*MARKS, _WITHOUT_DOTS)) for name in self.tensors)

    def lies_in(self, other: WeightSet) -> bool:
        """Return whether it is part of another set."""
        return self is not other and (not other.path or self.path.startswith(f"{other.path}."))


def words(text: str) -> set[str]:
    """Return the words in a name, in lower case."""
    return {word.lower() for word in _WORD.findall(text)}


def is_average(path: str) -> bool:
    """Return whether the keys of a path indicate an average; the last conclusive one decides."""
    for key in reversed(path.split(".")):
        found = words(key)
        if found & AVERAGES:
            return True
        if found & NOT_AVERAGED:
            return False
    return False
