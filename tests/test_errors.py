"""How messages describe a value."""

import re
from pathlib import Path

import pytest
from torch import nn

import pom_export
from pom_export.errors import kind_of, with_article

_AN = ("int", "array", "Embedding", "MLP", "LSTM", "RMSNorm", "UninitializedParameter")
_A = ("str", "list", "Linear", "GPT", "UNet", "UserDict", "uint8", "OneHot")


@pytest.mark.parametrize("word", [*_AN, *_A])
def test_an_article_follows_the_pronunciation(word: str) -> None:
    assert with_article(word) == f"{'an' if word in _AN else 'a'} {word}"


def test_a_value_is_called_by_its_class_and_nothing_by_its_name() -> None:
    assert [kind_of(value) for value in (3, [], nn.Linear(1, 1), None)] == ["an int", "a list", "a Linear", "None"]


def test_no_message_writes_an_article_before_the_name_of_a_class() -> None:
    """Any class may occur there: `is a {type(x).__name__}` says "a int"."""
    written = re.compile(r"\ban? \{[^}]*(__name__|kind)")
    files = Path(pom_export.__file__).parent.rglob("*.py")
    found = [f"{file}: {match[0]}" for file in files for match in written.finditer(file.read_text(encoding="utf-8"))]
    assert not found
