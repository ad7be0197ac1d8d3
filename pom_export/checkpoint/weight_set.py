"""A set of weights in a file, and what the words in its path say about it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from torch import Tensor

# What names tell: a whole word in them, however words are set apart.
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
"""Words that say that what they name is an average."""
NOT_AVERAGED: Final = frozenset({"online", "raw", "current", "backup", "collected", "stored"})
"""Words that say that it is none, but the weights themselves, or a copy of them that waits beside an average."""
# Names that a state dict of a mixer or of a model of mixers has, quantized ones included.
MARKS: Final = ("ag_proj.weight", "ag_proj.qweight", "_packed_params")
_WITHOUT_DOTS: Final = "ag_projweight"


@dataclass(frozen=True)
class WeightSet:
    """One set of weights in a file.

    Attributes:
        path: where it lies: the keys that lead to it, joined by dots; "" for a bare state dict.
        tensors: by name, prefixes of wrappers removed, and what else lies among them; none of a list.
        values: those of a list without names, in its order; None of a state dict.
        average: whether it is an average of the weights that training went through.
        preferred: whether the file's own layout says that it is the one to use.
        alias: a short name for it: "model", "ema", "ema1"; "" where there is none.
        other_paths: where the same tensors lie besides.
        is_model: whether its names are of a whole architecture, not of a mixer or of something unknown.
        contains: whether networks lie in it that are sets as well, beside other things.
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
        """What it is asked for by."""
        return self.alias or self.path or "model"

    @property
    def label(self) -> str:
        """Its name, and where it lies in the file where that is another."""
        return f"{self.name} ({self.path})" if self.path not in {"", self.name} else self.name

    @property
    def depth(self) -> int:
        """How many keys lead to it."""
        return self.path.count(".")

    @property
    def has_mixers(self) -> bool:
        """Whether its names are of a model that has mixers."""
        return any(name.endswith((*MARKS, _WITHOUT_DOTS)) for name in self.tensors)

    def lies_in(self, other: WeightSet) -> bool:
        """Return whether it is a part of another set."""
        return self is not other and (not other.path or self.path.startswith(f"{other.path}."))


def words(text: str) -> set[str]:
    """Return the words that a name is made of, in lower case."""
    return {word.lower() for word in _WORD.findall(text)}


def is_average(path: str) -> bool:
    """Return whether the keys that lead somewhere say that an average lies there; the last that tells counts."""
    for key in reversed(path.split(".")):
        found = words(key)
        if found & AVERAGES:
            return True
        if found & NOT_AVERAGED:
            return False
    return False
