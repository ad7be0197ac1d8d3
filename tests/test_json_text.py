"""JSON in files is parsed within bounds."""

from __future__ import annotations

import json

import pytest

from pom_export.json_text import parse_json


def test_parses_what_json_does() -> None:
    value = {"a": [1, -2.5, 1e300, True, None, 'text, [with] {signs}: \\ "'], "b": {"é": "\ud800"}}
    assert parse_json(json.dumps(value)) == value
    assert parse_json(json.dumps(value).encode()) == value


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "Expecting value"),
        ("{", "Expecting"),
        (b"\xff", "codec can't decode"),
        ("[" * 10_000 + "]" * 10_000, "nested too deeply"),
        ('{"a":' * 10_000 + "1" + "}" * 10_000, "nested too deeply"),
        ("[" + "[]," * 200_000 + "[]]", "200,000 are read"),
        ('{"a": 1, "a": 2}', "a duplicate name"),
        ("[NaN]", "the number NaN"),
        ("-Infinity", "the number -Infinity"),
        ("1e999", "the number 1e999"),
        ("9" * 5000, "the number 9999"),
        ("0." + "1" * 5000, "the number 0.1111"),
    ],
)  # fmt: skip
def test_refuses(text: str | bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=r".") as error:
        parse_json(text)
    assert reason in str(error.value)


def test_infinite_numbers_where_they_are_asked_for() -> None:
    assert parse_json("[0.0, Infinity, -Infinity]", infinite=True) == [0.0, float("inf"), float("-inf")]
    assert str(parse_json(b"NaN", infinite=True)) == "nan"
    with pytest.raises(ValueError, match="1e999"):
        parse_json("1e999", infinite=True)


def test_signs_inside_text_are_no_values() -> None:
    many = ",[{:" * 1_000_000
    assert parse_json(json.dumps([many])) == [many]
