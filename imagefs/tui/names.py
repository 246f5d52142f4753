"""Names and text from an image as a terminal can show them: nothing hidden, nothing that acts, columns kept.

A piece is a text and whether it is an escape for something that cannot be shown; screens colour escapes, so
that a name with a real backslash is not taken for one.
"""

from __future__ import annotations

from rich.cells import cell_len, set_cell_size

Piece = tuple[str, bool]
#: Printable by their category, but seen as nothing: fillers, joiners and variation selectors.
_UNSEEN = frozenset(
    [0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x3164, 0xFFA0, *range(0x180B, 0x1810), *range(0xFE00, 0xFE10)]
)
_SPACE = "␠"
_MORE = "…"


def pieces(name: bytes) -> list[Piece]:
    """A name; a space at its beginning or end is an escape too."""
    found = text_pieces(name.decode("utf-8", "surrogateescape"))
    if not found:
        return [("''", True)]
    first, escape = found[0]
    if not escape and first.startswith(" "):
        kept = first.lstrip(" ")
        found[:1] = [(_SPACE * (len(first) - len(kept)), True), (kept, False)]
    last, escape = found[-1]
    if not escape and last.endswith(" "):
        kept = last.rstrip(" ")
        found[-1:] = [(kept, False), (_SPACE * (len(last) - len(kept)), True)]
    return found


def text_pieces(text: str) -> list[Piece]:
    """Text of any kind; bytes that are no characters are in it as ``surrogateescape`` has them."""
    if text.isprintable() and (text.isascii() or not _UNSEEN.intersection(map(ord, text))):
        return [(text, False)] if text else []
    found: list[Piece] = []
    for char in text:
        shown, escape = _shown(char)
        if found and found[-1][1] == escape:
            found[-1] = (found[-1][0] + shown, escape)
        else:
            found.append((shown, escape))
    return found


def _shown(char: str) -> Piece:
    number = ord(char)
    if 0xDC80 <= number <= 0xDCFF:
        return f"\\x{number - 0xDC00:02x}", True
    if char.isprintable() and number not in _UNSEEN and not 0xE0100 <= number <= 0xE01EF:
        return char, False
    return repr(char)[1:-1] if not char.isprintable() else f"\\u{number:04x}", True


def plain(name: bytes) -> str:
    """The pieces as one text, for sentences and titles."""
    return "".join(text for text, _ in pieces(name))


def fitted(found: list[Piece], width: int) -> list[Piece]:
    """Exactly ``width`` cells of it: filled with spaces, or cut with an ellipsis; a wide character is never halved."""
    if width <= 0:
        return []
    length = sum(cell_len(text) for text, _ in found)
    if length <= width:
        return [*found, (" " * (width - length), False)]
    fitting: list[Piece] = []
    left = width - 1
    for text, escape in found:
        size = cell_len(text)
        if size > left:
            text = set_cell_size(text, left)
            size = left
        fitting.append((text, escape))
        left -= size
        if left <= 0:
            break
    return [*fitting, (_MORE, True)]


def middle(text: str, width: int) -> str:
    """``text`` in at most ``width`` cells, the middle left out where it is too long: the end of a path tells most."""
    if cell_len(text) <= width or width < 4:
        return text if cell_len(text) <= width else set_cell_size(text, width)
    head = set_cell_size(text, width // 3).rstrip()
    tail, room = "", width - cell_len(head) - 1
    for char in reversed(text):
        room -= cell_len(char)
        if room < 0:
            break
        tail = char + tail
    return f"{head}{_MORE}{tail}"
