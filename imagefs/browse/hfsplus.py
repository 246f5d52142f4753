"""The trees of an HFS+ volume as they lie on the disk: an attribute and the resource fork of a file by its number.

The Sleuth Kit 4.15 shows no attribute and no fork of a file that macOS compressed in a way it does not know, or
that its build has no zlib for. Source: Apple's Technical Note TN1150, "HFS Plus Volume Format". Knows nothing of TSK.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from itertools import chain, pairwise
from typing import NamedTuple

from imagefs.browse.content import MappedReader, Piece, damaged
from imagefs.errors import ImagefsError
from imagefs.interfaces import Reader

_HEADER, _HEADER_SIZE = 1024, 512
_EXTENTS, _CATALOG, _ATTRIBUTES = 192, 272, 352
_FORK_SIZE = 80
_LEAF, _INDEX = 0xFF, 0
_NODE_SIZES = frozenset(1 << bits for bits in range(9, 16))
_MAX_DEPTH, _KEPT_NODES = 16, 256
_FILE, _FILE_THREAD, _INLINE = b"\0\2", 4, 0x10
_FIXED_INDEX_KEYS = 4
#: Of a record of a file: its resource fork.
_FORK_AT = 168


class _Node(NamedTuple):
    kind: int
    next: int
    records: list[bytes]


class _Tree:
    """A B-tree in ``content``. Whatever it says, no search takes more steps than it has nodes."""

    def __init__(self, content: MappedReader) -> None:
        head = content.read_at(0, 14 + 106)
        self._content = content
        self._root = struct.unpack_from(">I", head, 16)[0] if len(head) == 120 else 0
        self._size, self._longest = struct.unpack_from(">HH", head, 32) if len(head) == 120 else (0, 0)
        self._fixed = len(head) < 120 or not struct.unpack_from(">I", head, 14 + 38)[0] & _FIXED_INDEX_KEYS
        if self._size not in _NODE_SIZES:
            raise damaged(content.label, 0, "its tree makes no sense")
        self._count = content.size // self._size
        self._node = lru_cache(maxsize=_KEPT_NODES)(self._read)

    def after(self, is_before: Callable[[bytes], bool]) -> Iterator[tuple[bytes, bytes]]:
        """(key, data) of the leaves in order, but those whose keys are before what is wanted."""
        number = self._root
        for _ in range(_MAX_DEPTH):
            node = self._node(number)
            if node.kind != _INDEX:
                break
            below = [record for record in node.records if is_before(_key(record))] or node.records[:1]
            if not below:
                return
            number = self._child(below[-1])
        for _ in range(self._count):
            if node.kind != _LEAF:
                raise damaged(self._content.label, number * self._size, "its tree makes no sense")
            for record in node.records:
                key = _key(record)
                if not is_before(key):
                    yield key, record[2 + len(key) :]
            if not node.next:
                return
            number = node.next
            node = self._node(number)

    def _child(self, record: bytes) -> int:
        at = 2 + (self._longest if self._fixed else len(_key(record)))
        return int.from_bytes(record[at : at + 4], "big")

    def _read(self, number: int) -> _Node:
        if not 0 < number < self._count:
            raise damaged(self._content.label, number * self._size, "its tree makes no sense")
        raw = self._content.read_at(number * self._size, self._size)
        following, _, kind, _, count = struct.unpack_from(">IIBBH", raw)
        if 2 * count + 2 > self._size - 14:
            raise damaged(self._content.label, number * self._size, "its tree makes no sense")
        ends = struct.unpack_from(f">{count + 1}H", raw, self._size - 2 * count - 2)[::-1]
        return _Node(kind, following, [raw[a:b] for a, b in pairwise(ends)])


def _key(record: bytes) -> bytes:
    return record[2 : 2 + int.from_bytes(record[:2], "big")]


class HfsPlus:
    """Reads ``volume``, which stays the caller's. Made by ``open_trees``."""

    def __init__(self, volume: Reader, header: bytes) -> None:
        self._volume = volume
        self._header = header
        self._block = int.from_bytes(header[40:44], "big")
        self._tree = lru_cache(maxsize=3)(self._open)
        self._forks = lru_cache(maxsize=1)(self._forks_in)

    def attribute(self, number: int, name: bytes) -> bytes | None:
        """An attribute of a file that lies in its record; None where there is none. ``name`` is ASCII."""
        text = name.decode("ascii").encode("utf-16-be")
        if not int.from_bytes(self._header[_ATTRIBUTES : _ATTRIBUTES + 8], "big"):
            return None
        for key, data in self._tree(_ATTRIBUTES, "the tree of attributes").after(
            lambda key: (key[2:6], key[12:]) < (number.to_bytes(4, "big"), text)
        ):
            if (key[2:6], key[12:]) != (number.to_bytes(4, "big"), text) or len(data) < 16:
                return None
            kind, size = struct.unpack_from(">I8xI", data)
            return data[16 : 16 + size] if kind == _INLINE and 16 + size <= len(data) else None
        return None

    def resource_fork(self, number: int, label: str) -> MappedReader | None:
        """None where the file has none."""
        folder = self._folder_of(number)
        fork = self._forks(folder).get(number) if folder is not None else None
        return None if fork is None else self._fork(fork, label, self._more(number))

    def _folder_of(self, number: int) -> int | None:
        wanted = number.to_bytes(4, "big")
        for key, data in self._tree(_CATALOG, "the catalog").after(lambda key: key[:4] < wanted):
            kind, _, folder = struct.unpack_from(">HHI", data.ljust(8, b"\0"))
            return folder if key[:4] == wanted and kind == _FILE_THREAD else None
        return None

    def _forks_in(self, folder: int) -> dict[int, bytes]:
        """The resource forks of the files of a folder. Names are in an order of Apple's, so all are looked at."""
        wanted, found = folder.to_bytes(4, "big"), dict[int, bytes]()
        for key, data in self._tree(_CATALOG, "the catalog").after(lambda key: key[:4] < wanted):
            if key[:4] != wanted:
                break
            fork = data[_FORK_AT : _FORK_AT + _FORK_SIZE]
            if data[:2] == _FILE and len(fork) == _FORK_SIZE and any(fork[:8]):
                found[int.from_bytes(data[8:12], "big")] = fork
        return found

    def _more(self, number: int) -> Iterator[bytes]:
        """The extents of a resource fork that its record has no room for, eight at a time."""
        wanted = number.to_bytes(4, "big")
        for key, data in self._tree(_EXTENTS, "the tree of extents").after(
            lambda key: (key[2:6], key[:1]) < (wanted, b"\xff")
        ):
            if (key[2:6], key[:1]) != (wanted, b"\xff"):
                return
            yield data[:64]

    def _open(self, fork: int, label: str) -> _Tree:
        return _Tree(self._fork(self._header[fork : fork + _FORK_SIZE], label))

    def _fork(self, fork: bytes, label: str, more: Iterable[bytes] = ()) -> MappedReader:
        size, blocks = struct.unpack_from(">Q4xI", fork)
        pieces, start, end = list[Piece](), 0, min(size, blocks * self._block)
        for row in chain([fork[16:]], more):
            for first, count in struct.iter_unpack(">II", row[: len(row) & ~7]):
                length = min(count * self._block, end - start)
                if length > 0:
                    pieces.append(Piece(start, length, first * self._block))
                    start += length
            if start >= end:
                break
        return MappedReader(self._volume, size, pieces, label=label)


def open_trees(volume: Reader) -> HfsPlus | None:
    """None of what is no HFS+, or lies in a wrapper of the older HFS."""
    try:
        header = volume.read_at(_HEADER, _HEADER_SIZE)
    except ImagefsError:
        return None
    block = int.from_bytes(header[40:44], "big")
    good = header[:2] in (b"H+", b"HX") and len(header) == _HEADER_SIZE and 512 <= block <= 1 << 20
    return HfsPlus(volume, header) if good else None
