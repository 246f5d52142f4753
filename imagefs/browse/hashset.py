"""Sets of digests to look files up in: lists as ``sha256sum``, NSRL and others write them.

A list may have 50 million lines, so digests lie behind one another in one array for each kind, sorted:
16 to 32 bytes each. Knows nothing of file systems.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: Kind of digest by its length in hex digits.
KINDS = {32: "md5", 40: "sha1", 64: "sha256"}
_SIZES = {kind: length // 2 for length, kind in KINDS.items()}
_BLOCK, _MAX_LINE = 1 << 20, 1 << 16
_HEX = rb"([0-9a-fA-F]{32}(?:[0-9a-fA-F]{8}|[0-9a-fA-F]{32})?)(?![0-9a-fA-F])"
#: ``hash  name`` with the backslash that sha256sum puts before an escaped name, or a hash alone; and the lines
#: of ``sha256sum --tag`` and the BSDs.
_PLAIN = re.compile(rb"^\\?" + _HEX, re.MULTILINE)
_TAGGED = re.compile(rb"^\\?[A-Za-z0-9-]+ ?\(.*\) ?= ?" + _HEX)
_NOTHING = re.compile(rb"\s*(#.*|;.*)?\s*", re.DOTALL)
#: Columns of a CSV (NSRL's ``"SHA-1","MD5","CRC32",…``) that hold a digest, the one that is taken first.
_COLUMNS = (b"SHA256", b"SHA1", b"MD5")


class HashSet:
    """Digests of any kinds. Filled first (``add``, ``read``), asked afterwards."""

    def __init__(self, digests: Iterable[str] = ()) -> None:
        self._raw = {kind: bytearray() for kind in KINDS.values()}
        self._sorted: dict[str, NDArray[np.bytes_]] = {}
        for text in digests:
            self.add(text)

    def add(self, text: str) -> None:
        """One digest in hex; ValueError for what is none."""
        if len(text) not in KINDS:
            raise ValueError(f"{text!r} has {len(text)} digits, not 32, 40 or 64")
        self._raw[KINDS[len(text)]] += bytes.fromhex(text)

    def read(self, stream: BinaryIO) -> int:
        """Every digest of a list; how many of its lines hold none, empty ones and comments aside."""
        line = stream.readline(_MAX_LINE).removeprefix(b"\xef\xbb\xbf")
        column = _column(line)
        if column is not None:
            pattern = re.compile(rb'^(?:"[^"\n]*",|[^",\n]*,){%d}"?' % column + _HEX, re.MULTILINE)
            return sum(self._take(block, pattern) for block in _blocks(stream, b""))
        return sum(self._take(block, _PLAIN) for block in _blocks(stream, line))

    @property
    def kinds(self) -> tuple[str, ...]:
        return tuple(kind for kind, raw in self._raw.items() if raw)

    def __len__(self) -> int:
        return sum(len(raw) // _SIZES[kind] for kind, raw in self._raw.items())

    def holds(self, digests: Mapping[str, bytes]) -> bool:
        """Whether one of the digests of a content, by kind, is in the set."""
        return any(self._has(kind, value) for kind, value in digests.items())

    def _has(self, kind: str, digest: bytes) -> bool:
        raw = self._raw[kind]
        if not raw:
            return False
        import numpy as np  # here, since a worker process imports all of this folder and needs none of it

        if kind not in self._sorted:
            found = np.frombuffer(raw, dtype=f"S{_SIZES[kind]}")
            found.sort()  # in place: what was read is not needed in its order
            self._sorted[kind] = found
        found = self._sorted[kind]
        at = int(np.searchsorted(found, np.array([digest], dtype=found.dtype))[0])
        return found[at : at + 1].tobytes() == digest

    def _take(self, block: bytes, pattern: re.Pattern[bytes]) -> int:
        found: list[bytes] = pattern.findall(block)
        lengths = set(map(len, found))
        for length in lengths:
            some = found if len(lengths) == 1 else [each for each in found if len(each) == length]
            self._raw[KINDS[length]] += bytes.fromhex(b"".join(some).decode("ascii"))
        lines = block.count(b"\n") + (not block.endswith(b"\n"))
        return 0 if len(found) == lines else self._others(block, pattern)

    def _others(self, block: bytes, pattern: re.Pattern[bytes]) -> int:
        """The lines that ``pattern`` does not know, one by one: how many hold no digest."""
        unknown = 0
        for line in block.split(b"\n"):
            tagged = _TAGGED.match(line)
            if pattern.match(line) or _NOTHING.fullmatch(line):
                continue
            if tagged:
                self.add(tagged[1].decode("ascii"))
            else:
                unknown += 1
        return unknown


def _column(line: bytes) -> int | None:
    """Which column of a CSV holds its best digests, by the header; None if ``line`` is none."""
    names = [part.strip(b'" \r\n').upper().replace(b"-", b"") for part in line.split(b",")]
    return next((names.index(name) for name in _COLUMNS if name in names), None)


def _blocks(stream: BinaryIO, block: bytes) -> Iterator[bytes]:
    """The rest of a list behind ``block``, in blocks of whole lines."""
    while more := block + stream.read(_BLOCK):
        yield more + stream.readline(_MAX_LINE)
        block = b""
