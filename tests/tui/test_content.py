"""Texts and bytes as they are shown: encodings guessed, lines cut, rows of hex."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagefs.tui.content import (
    ENCODINGS,
    digits_of,
    find_line,
    guess_encoding,
    hex_lines,
    hex_row,
    next_encoding,
    text_lines,
)
from tests.support.oracles import tool_text

TEXT = "Größe: 5 € für Übung №\nzweite Zeile\n"


@pytest.mark.parametrize(
    ("data", "encoding"),
    [
        (b"plain\n", "utf-8"),
        (TEXT.encode(), "utf-8"),
        (b"\xef\xbb\xbf" + TEXT.encode(), "utf-8"),
        ("Größe: 5 € für Übung\n".encode("cp1252"), "cp1252"),
        (b"\xff\xfe" + TEXT.encode("utf-16-le"), "utf-16-le"),
        (b"\xfe\xff" + TEXT.encode("utf-16-be"), "utf-16-be"),
        (b"\xff\xfe\0\0" + TEXT.encode("utf-32-le"), "utf-32-le"),
        ("Windows without a mark\r\n".encode("utf-16-le"), "utf-16-le"),
        ("Java without a mark\n".encode("utf-16-be"), "utf-16-be"),
        ("日本語の文章\n".encode(), "utf-8"),
        (b"\x1b[31mred log\x1b[0m\n" * 9, "utf-8"),
        (b"", "utf-8"),
        (b"\x7fELF\2\1\1\0\0\0\0\0", ""),
        (bytes(range(256)) * 8, ""),
        (b"\1\2\3\4\5\6", ""),
        (b"\xff\xd8\xff\xe0" + bytes(range(1, 30)) * 40, ""),
    ],
)
def test_encodings_are_guessed(data: bytes, encoding: str) -> None:
    assert guess_encoding(data) == encoding


@given(st.text(min_size=1, max_size=80).filter(lambda text: "\0" not in text and text.isprintable()))
def test_what_is_utf8_is_found_to_be(text: str) -> None:
    assert guess_encoding(text.encode("utf-8", "replace")) == "utf-8"


@given(st.binary(max_size=300), st.sampled_from([*ENCODINGS, "utf-32-le"]), st.integers(1, 40))
def test_any_bytes_can_be_shown_in_any_encoding(data: bytes, encoding: str, width: int) -> None:
    lines = text_lines(data, encoding, width=width)
    assert lines
    assert all(len(line) <= width for line in lines)
    guess_encoding(data)


def test_lines() -> None:
    assert text_lines(b"a\r\nb\n", "utf-8") == ["a", "b"]
    assert text_lines(b"\tx", "utf-8") == ["        x"]
    assert text_lines(b"abcdef", "utf-8", width=4) == ["abcd", "ef"]
    assert text_lines(b"\xff\xfe" + "ä\n".encode("utf-16-le"), "utf-16-le") == ["ä"]
    assert text_lines(b"bad \xff", "utf-8") == ["bad \udcff"]
    assert next_encoding("utf-8") == "utf-16-le"
    assert next_encoding(ENCODINGS[-1]) == "utf-8"
    assert find_line(["one", "two", "Two more"], "two", 1) == 2
    assert find_line(["one", "two"], "two", 1) == 1
    assert find_line(["one"], "three", -1) is None


def test_hex_is_that_of_hexdump(tmp_path: Path) -> None:
    """Against hexdump of bsdextrautils, which writes the characters between bars."""
    data = bytes(range(256)) + b"tail"
    path = tmp_path / "data"
    path.write_bytes(data)
    theirs = tool_text("hexdump", "-v", "-C", path)
    ours = []
    for offset in range(0, len(data), 16):
        place, digits, shown = hex_row(offset, data[offset : offset + 16], 8)
        ours.append(f"{place}  {digits}  |{shown}|")
    assert ours == theirs.splitlines()[:-1]
    assert next(hex_lines(b"ab", size=1 << 40)).startswith("0000000000  61 62 ")
    assert digits_of(1 << 32) == 8
    assert digits_of((1 << 32) + 1) == 9
