"""Names as they are shown: safe as one part of a path, different within a directory, foldable.

What a disk says about names is never trusted. A name that would mean something else in a path is
rewritten: ``/`` is shown as ``%2F``, NUL as ``%00``, a file called ``.`` or ``..`` as ``%2E`` or
``%2E%2E``, an empty name as ``%``. Names that are equal after that carry ``~<inode>``.
This module knows nothing of file systems.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Set

FOLDED_KINDS = frozenset({"ntfs", "fat12", "fat16", "fat32", "exfat"})


def safe_name(name: bytes) -> bytes:
    """``name`` as exactly one part of a path."""
    if name.isalnum():
        return name
    if name in (b".", b".."):
        return name.replace(b".", b"%2E")
    return name.replace(b"/", b"%2F").replace(b"\0", b"%00") or b"%"


def fold(name: bytes) -> bytes:
    """The key under which names are equal on NTFS, FAT and exFAT: upper case, one character for one."""
    if name.isascii():
        return name.upper()
    text = name.decode("utf-8", "surrogateescape")
    return "".join(_upper(char) for char in text).encode("utf-8", "surrogateescape")


def mac_key(name: bytes, *, folds: bool) -> str:
    """The key under which names are equal for macOS: é in one character or in two is the same, and with ``folds`` case
    does not matter."""
    text = unicodedata.normalize("NFD", name.decode("utf-8", "surrogateescape"))
    return unicodedata.normalize("NFD", text.casefold()) if folds else text


def could_be_short(name: bytes) -> bool:
    """Whether DOS could have had a file of this name: eight characters and three."""
    base, dot, suffix = name.decode("utf-8", "surrogateescape").partition(".")
    return 1 <= len(base) <= 8 and len(suffix) <= 3 and "." not in suffix and bool(suffix) == bool(dot)


def _upper(char: str) -> str:
    upper = char.upper()
    return upper if len(upper) == 1 else char


def repeated(names: Iterable[bytes]) -> frozenset[bytes]:
    """The names that occur more than once."""
    seen: set[bytes] = set()
    twice: set[bytes] = set()
    for name in names:
        (twice if name in seen else seen).add(name)
    return frozenset(twice)


def shown_name(name: bytes, inode: str, *, twice: Set[bytes], taken: Set[bytes] = frozenset()) -> bytes:
    """``name``, with ``~<inode>`` when it is one of ``twice``; never one of ``taken``.

    A directory may hold both two files ``a`` and one that is really called ``a~12``: the suffix is
    then repeated until the result is free.
    """
    if name not in twice:
        return name
    suffix = b"~" + inode.encode("ascii", "replace")
    shown = name + suffix
    while shown in taken:
        shown += suffix
    return shown


def parts(path: bytes) -> list[bytes]:
    """The names of a path; empty ones and ``.`` mean nothing."""
    return [part for part in path.split(b"/") if part not in (b"", b".")]


def join(parent: bytes, name: bytes) -> bytes:
    return parent.rstrip(b"/") + b"/" + name


def printable(path: bytes) -> str:
    """A path for a sentence: Unicode where it is, escapes where it is not; no control characters."""
    text = path.decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
