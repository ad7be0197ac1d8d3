"""Text from tokens, in whole characters only."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pom_export.text.decoding import BytesStream, StopStream, WindowStream
from pom_export.text.tokenizers import ByteTokenizer


def bytes_stream() -> BytesStream:
    return BytesStream(lambda token: bytes([token]))


def test_a_character_appears_with_its_last_byte() -> None:
    stream = bytes_stream()
    assert [stream.push(byte) for byte in "aé€😀".encode()] == ["a", "", "é", "", "", "€", "", "", "", "😀"]
    assert stream.finish() == ""


@given(st.binary(max_size=30), st.integers(0, 30))
def test_any_bytes_are_text_also_when_the_stream_is_continued(data: bytes, cut: int) -> None:
    stream, text = bytes_stream(), ""
    for place, byte in enumerate(data):
        if place == cut:
            stream = BytesStream(lambda token: bytes([token]), stream.held())
        text += stream.push(byte)
    assert text + stream.finish() == data.decode(errors="replace")


def test_bytes_of_arguments_come_through() -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.encode("é\udcff") == [0xC3, 0xA9, 0xFF]


# As word tokenizers do: a space before every word but the first.
WORDS = ["Hello", "world", "again", *(f"<{byte:02x}>" for byte in "€".encode()), "<ff>"]


def decode_words(ids: object) -> str:
    text = b""
    for place, token in enumerate(ids):  # type: ignore[arg-type]  # a sequence of ids
        word = WORDS[token]
        text += bytes.fromhex(word[1:-1]) if word.startswith("<") else (b" " if place else b"") + word.encode()
    return text.decode(errors="replace")


def test_what_tokens_around_say_is_kept() -> None:
    stream = WindowStream(decode_words)
    assert [stream.push(token) for token in (0, 1, 2)] == ["Hello", " world", " again"]
    after_prompt = WindowStream(decode_words, context=[0])
    assert after_prompt.push(1) == " world"
    # More tokens than a window has.
    assert [stream.push(1) for _ in range(20)] == [" world"] * 20


@pytest.mark.parametrize("cut", range(7))
def test_a_window_s_stream_can_be_continued(cut: int) -> None:
    stream, text = WindowStream(decode_words), ""
    for place, token in enumerate([0, 3, 4, 5, 1, 2]):
        if place == cut:
            stream = WindowStream(decode_words, held=stream.held())
        piece = stream.push(token)
        assert "\ufffd" not in piece
        text += piece
    assert text + stream.finish() == "Hello€ world again"


def test_what_never_becomes_a_character_is_not_held_for_ever() -> None:
    stream = WindowStream(decode_words)
    pieces = [stream.push(6) for _ in range(8)]
    assert pieces == ["", "", "", "\ufffd" * 4] * 2
    stream.push(6)
    assert stream.finish() == "\ufffd"
    assert stream.finish() == ""


@pytest.mark.parametrize(
    ("stops", "pieces", "given_out", "rest"),
    [
        (("END",), ["so EN", "DED"], ["so ", ""], ""),
        (("END",), ["so E", "nd"], ["so ", "End"], ""),
        (("END",), ["E", "N"], ["", ""], "EN"),
        (("b", "ab"), ["xab"], ["x"], ""),
        ((), ["all", " of it"], ["all", " of it"], ""),
        (("aab",), ["aa", "ab"], ["", "a"], ""),
    ],
)
def test_text_ends_before_a_stop(stops: tuple[str, ...], pieces: list[str], given_out: list[str], rest: str) -> None:
    stream = StopStream(stops)
    assert [stream.push(piece) for piece in pieces] == given_out
    assert stream.finish() == rest


@given(st.lists(st.text("ab", max_size=3), max_size=8), st.lists(st.text("ab", min_size=1, max_size=3), max_size=2))
def test_pieces_change_nothing(pieces: list[str], stops: list[str]) -> None:
    stream, text = StopStream(stops), ""
    for piece in pieces:
        text += stream.push(piece)
        if stream.stopped:
            break
        held, stream = stream.held, StopStream(stops)
        assert stream.push(held) == ""
    whole = "".join(pieces)
    if stream.stopped:
        seen = [end for stop in stops if (end := whole.find(stop)) >= 0]
        # A stop text that begins earlier may need letters that have not arrived.
        assert text == whole[: len(text)]
        assert min(seen) <= len(text)
    else:
        assert text + stream.finish() == whole
        assert not any(stop in whole for stop in stops)
