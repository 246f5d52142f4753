"""Names that a target can hold: which are changed, and how. Pure.

On FAT, exFAT, NTFS and shares of Windows a character that they cannot hold becomes ``%`` and two hex digits for each
of its bytes (``a:b`` is written as ``a%3Ab``), and so do the last dot or space of a name and the first letter of a
reserved one (``CON.txt`` is ``%43ON.txt``); see "Naming Files, Paths, and Namespaces" in Microsoft's documentation.
A name that is too long is cut before its extension and carries ``~<inode>``, as equal names do.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

NAME_MAX = 255
#: File systems of the kernel and of FUSE that hold what Windows can name.
WINDOWS_TYPES = frozenset(
    {"cifs", "exfat", "fuseblk", "msdos", "ntfs", "ntfs3", "smb2", "smb3", "smbfs", "vfat"}
)
_FORBIDDEN = frozenset('"*:<>?|\\/') | {chr(code) for code in range(32)}
_RESERVED = frozenset(
    {"CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$", "CLOCK$"}
    | {port + digit for port in ("COM", "LPT") for digit in "0123456789¹²³"}
)
#: An extension longer than this is no extension.
_EXTENSION = 16


def holds_windows_names(fstype: str) -> bool:
    """Whether a mounted file system of this type (of mountinfo) is one that Windows reads too."""
    kind, _, program = fstype.partition(".")
    return fstype in WINDOWS_TYPES or (kind == "fuse" and ("fat" in program or "ntfs" in program))


def same_key(name: bytes) -> bytes:
    """Names with different keys are different on any target, also where case or composition do not count."""
    if name.isascii():
        return name.lower()
    text = name.decode("utf-8", "surrogateescape")
    return unicodedata.normalize("NFC", text.casefold()).encode("utf-8", "surrogateescape")


@dataclass(frozen=True, slots=True)
class NameRules:
    """What a target can hold: names of Windows only, and ``limit`` bytes at most."""

    windows: bool = False
    limit: int = NAME_MAX

    def fit(self, name: bytes, inode: str) -> bytes:
        """``name`` as the target can hold it; itself wherever it can."""
        if self.windows:
            name = _for_windows(name)
        if not self._too_long(name):
            return name
        return self._cut(name, b"~" + inode.encode("ascii", "replace"))

    def distinct(self, name: bytes, inode: str) -> bytes:
        """``name~<inode>``, for the second of two names that are one on the target."""
        suffix = b"~" + inode.encode("ascii", "replace")
        return self._cut(name, suffix) if self._too_long(name + suffix) else name + suffix

    def _too_long(self, name: bytes) -> bool:
        if self.windows and len(name) > NAME_MAX:
            units = len(name.decode("utf-8", "surrogateescape").encode("utf-16-le", "surrogatepass")) // 2
            if units > NAME_MAX:
                return True
        return len(name) > self.limit

    def _cut(self, name: bytes, suffix: bytes) -> bytes:
        stem, dot, extension = name.rpartition(b".")
        tail = suffix + dot + extension
        if not stem or len(extension) > _EXTENSION:
            stem, tail = name, suffix
        stem = stem[: max(1, min(self.limit, NAME_MAX) - len(tail))]
        while stem and stem != name and stem[-1] >= 0x80 and not _whole(stem):
            stem = stem[:-1]
        return stem + tail


def _for_windows(name: bytes) -> bytes:
    text = name.decode("utf-8", "surrogateescape")
    if not text.isalnum():
        text = "".join(_encoded(char) if _is_forbidden(char) else char for char in text)
        if text[-1:] in (".", " "):
            text = text[:-1] + _encoded(text[-1])
    if text.partition(".")[0].rstrip(" ").upper() in _RESERVED:
        text = _encoded(text[0]) + text[1:]
    return text.encode("utf-8", "surrogateescape")


def _is_forbidden(char: str) -> bool:
    return char in _FORBIDDEN or 0xD800 <= ord(char) <= 0xDFFF


def _encoded(char: str) -> str:
    return "".join(f"%{byte:02X}" for byte in char.encode("utf-8", "surrogateescape"))


def _whole(stem: bytes) -> bool:
    """Whether ``stem`` does not end inside a character."""
    for length in range(1, min(4, len(stem)) + 1):
        lead = stem[-length]
        if lead >= 0xC0:
            need = 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
            return length >= need
        if lead < 0x80:
            break
    return True  # no character of UTF-8 at all
