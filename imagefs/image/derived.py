"""What was worked out of a set and may be kept for the next time: tails of images, tables of chains.

No format: nobody but the version that wrote it reads it, and whatever does not hold is made again. A
table names the seals it was made from, and the view it shows; tails go through the same checks as those
that are read from an image; both carry a digest of their own.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Sequence

import numpy as np

from imagefs.errors import ImagefsError
from imagefs.format.codec import digest_of
from imagefs.format.extents import I64
from imagefs.image.runs import RunTable
from imagefs.image.tail import ImageInfo, Tail, tail_of
from imagefs.interfaces import DerivedCache, ObjectInfo, State

#: Larger ones are neither kept nor read.
MAX_TABLE = 256 << 20
MAX_TAILS = 64 << 20

_DIGEST = 32
_TABLE_MAGIC = b"imgruns1"
_TABLE = struct.Struct("<8s32s32sQQQ")
_COLUMNS = (("first", "<i8"), ("count", "<i8"), ("row", "<i8"), ("layer", "<i4"), ("state", "u1"))
_RUN = sum(np.dtype(kind).itemsize for _, kind in _COLUMNS)

_TAILS_MAGIC = b"imgtail1"
_ROW = struct.Struct("<HHHHQqQ")
#: An object that changed so shortly before could change again without its time telling.
_SETTLED_NS = 2 * 10**9


# -- what a chain resolves to ---------------------------------------------------------------------


def load_table(cache: DerivedCache, infos: Sequence[ImageInfo]) -> RunTable | None:
    """The table of the chain ``infos`` (full first), None when it is not kept or does not hold."""
    data = cache.get(_table_name(infos), MAX_TABLE)
    if data is None:
        return None
    head = _table_head(infos, runs=(len(data) - _TABLE.size - _DIGEST - 32 * len(infos)) // _RUN)
    body = memoryview(data)[:-_DIGEST]
    if not data.startswith(head) or digest_of(body) != data[-_DIGEST:]:
        return None
    table = _decode_columns(body[len(head) :])
    return table if table is not None and _holds(table, infos) else None


def keep_table(cache: DerivedCache, infos: Sequence[ImageInfo], table: RunTable) -> None:
    """Keep the table of a chain of more than one layer; a single one costs nothing to make."""
    if len(infos) < 2 or len(table) * _RUN > MAX_TABLE - (1 << 20) - 32 * len(infos):
        return
    columns = (getattr(table, name).astype(kind).tobytes() for name, kind in _COLUMNS)
    body = b"".join((_table_head(infos, runs=len(table)), *columns))
    cache.put(_table_name(infos), (body, digest_of(body)))


def _table_name(infos: Sequence[ImageInfo]) -> str:
    return f"{infos[-1].id}.chain"


def _table_head(infos: Sequence[ImageInfo], *, runs: int) -> bytes:
    """Everything that must be the same: the leaf's seal and view, sizes, and the seal of every layer."""
    leaf = infos[-1]
    head = _TABLE.pack(
        _TABLE_MAGIC, leaf.tail.seal, leaf.summary.view, leaf.tail.chunks, len(infos), max(runs, 0)
    )
    return head + b"".join(info.tail.seal for info in infos)


def _decode_columns(data: memoryview) -> RunTable | None:
    count, left_over = divmod(len(data), _RUN)
    if left_over:
        return None
    columns, at = {}, 0
    for name, kind in _COLUMNS:
        columns[name] = np.frombuffer(data, kind, count, at)
        at += columns[name].nbytes
    return RunTable(**columns)


def _holds(table: RunTable, infos: Sequence[ImageInfo]) -> bool:
    """Whether every chunk has one answer, which lies inside a layer. Nothing here can overflow."""
    chunks = infos[-1].tail.chunks
    if not len(table):
        return chunks == 0
    ends = np.append(table.first[1:], chunks)
    placed = bool(((table.first >= 0) & (table.first < chunks) & (table.count > 0)).all())
    if not placed or table.first[0] != 0 or not np.array_equal(ends - table.first, table.count):
        return False
    if not bool(((table.state >= State.STORED) & (table.state <= State.UNREADABLE)).all()):
        return False
    if not bool(((table.layer >= 0) & (table.layer < len(infos))).all()):
        return False
    return _rows_hold(table, np.array([info.summary.stored for info in infos], np.uint64).astype(np.int64))


def _rows_hold(table: RunTable, stored: I64) -> bool:
    """``stored`` is how many rows each layer has."""
    is_stored = table.state == State.STORED
    row, count = table.row[is_stored], table.count[is_stored]
    inside = (row >= 0) & (row <= stored[table.layer[is_stored]] - count)
    return bool(inside.all()) and bool((table.row[~is_stored] == -1).all())


# -- the tails of a set ---------------------------------------------------------------------------

#: Header, summary and trailer of a tail.
_Parts = tuple[bytes, bytes, bytes]
_Key = tuple[str, int, int, int]


class TailMemory:
    """The tails of the set at ``place``, from the last time it was looked at. Without a cache it is empty.

    An object whose name, size, time or inode has changed since is a new one.
    """

    def __init__(self, cache: DerivedCache | None, place: str) -> None:
        self._cache = cache
        self._name = f"{digest_of(place.encode('utf-8', 'surrogateescape'))[:16].hex()}.tails"
        data = cache.get(self._name, MAX_TAILS) if cache else None
        self._known = _decode_tails(data) if data else {}
        self._now: dict[_Key, _Parts] = {}

    def get(self, found: ObjectInfo) -> Tail | None:
        key = _key_of(found)
        parts = self._known.get(key)
        if parts is None:
            return None
        try:
            tail = tail_of(*parts, found.size)
        except ImagefsError:
            return None
        self._now[key] = parts
        return tail

    def add(self, found: ObjectInfo, tail: Tail) -> Tail:
        """Remember a tail that was just read; gives it back."""
        if found.mtime_ns < time.time_ns() - _SETTLED_NS:
            self._now[_key_of(found)] = (tail.header_bytes, tail.summary_bytes, tail.trailer)
        return tail

    def keep(self) -> None:
        """Write down what is known now, if that is not what was read."""
        if self._cache and self._now.keys() != self._known.keys():
            body = _encode_tails(self._now)
            if len(body) < MAX_TAILS:
                self._cache.put(self._name, (body, digest_of(body)))


def _key_of(found: ObjectInfo) -> _Key:
    return found.name, found.size, found.mtime_ns, found.inode


def _encode_tails(tails: dict[_Key, _Parts]) -> bytes:
    out = bytearray(_TAILS_MAGIC)
    for (name, size, mtime_ns, inode), parts in tails.items():
        raw = name.encode("utf-8", "surrogateescape")
        out += _ROW.pack(len(raw), *map(len, parts), size, mtime_ns, inode)
        out += b"".join((raw, *parts))
    return bytes(out)


def _decode_tails(data: bytes) -> dict[_Key, _Parts]:
    """Empty for anything that does not hold."""
    body = data[:-_DIGEST]
    if not body.startswith(_TAILS_MAGIC) or digest_of(body) != data[-_DIGEST:]:
        return {}
    found: dict[_Key, _Parts] = {}
    at = len(_TAILS_MAGIC)
    try:
        while at < len(body):
            *lengths, size, mtime_ns, inode = _ROW.unpack_from(body, at)
            at += _ROW.size
            pieces = []
            for length in lengths:
                pieces.append(body[at : at + length])
                at += length
            name, header, summary, trailer = pieces
            key = (name.decode("utf-8", "surrogateescape"), size, mtime_ns, inode)
            found[key] = (header, summary, trailer)
    except (struct.error, UnicodeDecodeError):
        return {}
    return found
