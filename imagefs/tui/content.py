"""The content of a file as text and in hex, without a screen: which encoding it seems to be in, lines, rows."""

from __future__ import annotations

import codecs
from collections.abc import Iterator

#: What is read of a file to be shown as text; all of it is shown in hex, and taken out.
TEXT_BYTES = 8 << 20
#: What the guess is made from.
SAMPLE = 64 << 10
#: A longer line goes on in the next, so that one of a gigabyte costs no more than others.
LINE = 1000
TAB = 8
HEX_ROW = 16
#: What a user can choose from where the guess is wrong.
ENCODINGS = (
    "utf-8",
    "utf-16-le",
    "utf-16-be",
    "cp1252",
    "cp437",
    "cp1251",
    "shift_jis",
    "euc_kr",
    "gb18030",
    "big5",
)
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
#: Control characters that texts have: tab, line ends, form feed, escape (of coloured logs).
_OF_TEXT = frozenset(b"\t\n\r\f\x1b\x08")


def guess_encoding(sample: bytes) -> str:
    """The encoding of a text by its first bytes; empty for what is no text.

    A byte order mark decides; else valid UTF-8; else UTF-16 without a mark, by where its zeros are; else Windows'
    Western European code page, in which every byte but five is a character.
    """
    for mark, name in _MARKS:
        if sample.startswith(mark):
            return name
    if b"\0" in sample:
        return _utf16(sample)
    try:
        codecs.getincrementaldecoder("utf-8")().decode(
            sample
        )  # a character cut off at the end is none the worse
        return "utf-8" if _is_text(sample) else ""
    except UnicodeDecodeError:
        return "cp1252" if _is_text(sample) else ""


def _is_text(sample: bytes) -> bool:
    controls = sum(byte < 0x20 and byte not in _OF_TEXT for byte in sample[:4096])
    return controls * 50 <= min(len(sample), 4096)


def _utf16(sample: bytes) -> str:
    """Western text in UTF-16 has zeros in nearly all of its odd or its even bytes, and none in the others."""
    pairs = len(sample) // 2
    zeros = [sample[start : pairs * 2 : 2].count(0) for start in (0, 1)]
    for few, many, name in ((zeros[0], zeros[1], "utf-16-le"), (zeros[1], zeros[0], "utf-16-be")):
        if pairs and many >= pairs * 0.7 and few <= pairs * 0.02:
            text = sample[: pairs * 2].decode(name, "replace").encode("utf-8", "replace")
            return name if _is_text(text) else ""
    return ""


def next_encoding(current: str) -> str:
    """The one after ``current`` that a user may try."""
    at = ENCODINGS.index(current) + 1 if current in ENCODINGS else 0
    return ENCODINGS[at % len(ENCODINGS)]


def text_lines(data: bytes, encoding: str, *, width: int = LINE) -> list[str]:
    """Lines without their ends, tabs as spaces; longer ones than ``width`` characters go on in the next.

    What is no character of the encoding stands as surrogates where that can be, for ``text_pieces``, else as �.
    """
    for mark, name in _MARKS:
        if name == encoding and data.startswith(mark):
            data = data[len(mark) :]
            break
    errors = "surrogateescape" if encoding in ("utf-8", "cp1252", "cp437", "cp1251") else "replace"
    lines: list[str] = []
    for line in data.decode(encoding, errors).split("\n"):
        line = line.removesuffix("\r").expandtabs(TAB)
        lines.append(line[:width])
        lines += [line[at : at + width] for at in range(width, len(line), width)]
    if len(lines) > 1 and not lines[-1]:
        lines.pop()  # what ends in a line end has no line behind it
    return lines


def digits_of(size: int) -> int:
    """Hex digits that the offsets of a file of this size need, eight at least."""
    return max(8, (max(size - 1, 0).bit_length() + 3) // 4)


def hex_row(offset: int, data: bytes, digits: int) -> tuple[str, str, str]:
    """(offset, hex, characters) of up to 16 bytes, as ``hexdump -C`` writes them."""
    halves = (data[:8].hex(" "), data[8:].hex(" "))
    shown = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in data)
    return f"{offset:0{digits}x}", f"{halves[0]:<23}  {halves[1]:<23}", shown


def hex_lines(data: bytes, *, size: int) -> Iterator[str]:
    """Rows of the beginning of a file, each as one text."""
    for offset in range(0, len(data), HEX_ROW):
        yield "  ".join(hex_row(offset, data[offset : offset + HEX_ROW], digits_of(size)))


def find_line(lines: list[str], wanted: str, after: int) -> int | None:
    """The number of the next line that has ``wanted`` in it, without case, round the end; None where none has."""
    needle = wanted.casefold()
    for step in range(1, len(lines) + 1):
        number = (after + step) % len(lines)
        if needle in lines[number].casefold():
            return number
    return None
