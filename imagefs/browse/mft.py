"""The records of NTFS's $MFT as they lie on the disk: what an entry needs, and where a folder's names are.

The Sleuth Kit opens every attribute of a file to tell its size: a hundred microseconds a file. Here a
record is decoded once. What takes more than one record, and whatever looks odd (an attribute list, a
reparse point, encryption, a torn record), is None: that is for TSK to tell. Knows nothing of TSK.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from imagefs.browse.content import FetchMany, MappedReader, Piece, PieceCache
from imagefs.errors import ImagefsError

_SECTOR = 512
#: How much of $MFT is read at once, and how many such pieces are kept.
_PIECE, _PIECES = 8 << 10, 4096
_RECORD_SIZES = (512, 1024, 2048, 4096)
_IN_USE, _IS_DIRECTORY = 1, 2
_INFORMATION, _LIST, _NAME, _DATA, _ROOT, _ALLOCATION, _BITMAP = 16, 32, 48, 128, 144, 160, 176
_DOS_NAMESPACE = 2
#: Attributes of no concern here: a list of others, a name, an object's number, who may do what.
_PASSED = frozenset({32, 48, 64, 80})
#: Attributes that make a record TSK's matter, as a list of others does: a reparse point, $EFS and its like.
_ODD = frozenset({192, 256})
_ENCRYPTED = 0x4000
_INDEX_NAME = "$I30".encode("utf-16-le")
_head = struct.Struct("<4sHHQHHHHII").unpack_from
_kind_length = struct.Struct("<II").unpack_from
_attribute = struct.Struct("<IIBBHHHIH").unpack_from
_information = struct.Struct("<4QI").unpack_from
_sizes = struct.Struct("<Q").unpack_from
_away = struct.Struct("<Q8xH14xQ").unpack_from
_END = 0xFFFFFFFF


class Stream(NamedTuple):
    """One attribute of a record: its content where that is resident, else its runs as they lie there."""

    id: int
    size: int
    resident: bytes | None
    runs: bytes


class Record(NamedTuple):
    """``times`` are Windows's: created, modified, changed, accessed. ``data`` is the unnamed stream;
    ``root``, ``allocation`` and ``bitmap`` are those of a directory's names."""

    sequence: int
    links: int
    is_directory: bool
    times: tuple[int, int, int, int]
    dos: int
    data: Stream | None
    root: Stream | None
    allocation: Stream | None
    bitmap: Stream | None


class NamedStream(NamedTuple):
    """``plain`` where its bytes are on the disk as they are, all of them written."""

    kind: int
    name: bytes
    stream: Stream
    plain: bool


class FileName(NamedTuple):
    """A ``$FILE_NAME`` attribute: its number, its size in bytes, the name, and its own four times."""

    id: int
    size: int
    name: bytes
    times: tuple[int, int, int, int]


class Mft:
    """Looks records up by number in ``table``, the content of $MFT. Keeps the last pieces it read;
    safe in several threads."""

    def __init__(self, table: MappedReader, record_size: int) -> None:
        self.table = table
        self._size = record_size
        self._count = table.size // record_size
        self._step = max(1, _PIECE // record_size)
        self._pieces = PieceCache(lambda piece: self._read(piece * self._step, self._step), _PIECES)

    @property
    def record_size(self) -> int:
        return self._size

    def get(self, number: int) -> Record | None:
        return decode(self.raw(number))

    def names(self, number: int) -> list[FileName] | None:
        """The names of a file, those of DOS aside, in use or not; None where they are not in one record."""
        return decode_names(self.raw(number))

    def stream(self, number: int, kind: int, id: int) -> Stream | None:
        """One attribute of a file, None where it is not whole in the file's first record."""
        return find_attribute(self.raw(number), kind, id)

    def raw(self, number: int) -> bytes:
        """The bytes of a record, in use or not; none where there is no such record."""
        if not 0 <= number < self._count:
            return b""
        piece, at = divmod(number, self._step)
        try:
            raw = self._pieces.get(piece)
        except ImagefsError:  # what is wanted may lie beside what cannot be read
            raw, at = self._read(number, 1), 0
        return raw[at * self._size : (at + 1) * self._size]

    def soon(self, numbers: Iterable[int], fetch: FetchMany) -> Iterator[None]:
        """Have the records that will be asked for next read at once; after each step some are on their way."""
        length = self._step * self._size

        def places(piece: int) -> Iterator[tuple[int, int]]:
            for each in self.table.parts(piece * length, length):
                if each.source is not None:
                    yield each.source, each.length

        wanted = (each // self._step for each in numbers if 0 <= each < self._count)
        return self._pieces.expect(wanted, places, fetch)

    def _read(self, first: int, count: int) -> bytes:
        return self.table.read_at(first * self._size, count * self._size)


def record_size(boot: bytes) -> int | None:
    """How long a record is, by the boot sector; None where that makes no sense."""
    if len(boot) < 80:
        return None
    sector, per_cluster = struct.unpack_from("<HB", boot, 11)
    clusters = struct.unpack_from("<b", boot, 64)[0]
    size = sector * per_cluster * clusters if clusters > 0 else 1 << min(-clusters, 31)
    return size if size in _RECORD_SIZES else None


def decode(raw: bytes, *, listed: bool = False) -> Record | None:
    """A record in use that stands alone, None for every other. ``listed``: it may have a list of attributes, as others
    than those told of here are elsewhere."""
    fixed = _put_back(raw)
    if fixed is None:
        return None
    _, _, _, _, sequence, links, at, flags, used, _ = _head(fixed)
    if not flags & _IN_USE or fixed[32:40] != bytes(8) or used > len(fixed):
        return None
    information = data = root = allocation = bitmap = None
    while at + 24 <= used:
        kind, length, away, name_length, name_at, marks, number, size, value = _attribute(fixed, at)
        if kind == _END:
            break
        if length < 24 or at + length > used:
            return None
        if kind in _PASSED:
            if kind == _LIST and not listed:
                return None
        elif kind in _ODD or marks & _ENCRYPTED:
            return None
        elif kind == _INFORMATION:
            information = None if away else (at + value, size)
        elif (kind == _DATA and not name_length) or (
            _ROOT <= kind <= _BITMAP and fixed[at + name_at : at + name_at + 2 * name_length] == _INDEX_NAME
        ):
            if not away and value + size <= length:
                stream: Stream | None = Stream(number, size, fixed[at + value : at + value + size], b"")
            else:
                stream = _stream(fixed, at, length)
            if stream is None:
                return None
            if kind == _DATA:
                data = stream
            elif kind == _ROOT:
                root = stream
            elif kind == _ALLOCATION:
                allocation = stream
            else:
                bitmap = stream
        at += length
    if information is None or information[1] < 36 or information[0] + 36 > used:
        return None
    *times, dos = _information(fixed, information[0])
    return Record(
        sequence, links, bool(flags & _IS_DIRECTORY), tuple(times), dos, data, root, allocation, bitmap
    )


def decode_streams(raw: bytes, *, listed: bool = False) -> list[NamedStream] | None:
    """The attributes of a record that ``decode`` gives; None for every other."""
    fixed = unfixed_record(raw)
    if fixed is None or decode(raw, listed=listed) is None:
        return None
    _, _, _, _, _, _, at, _, used, _ = _head(fixed)
    found: list[NamedStream] = []
    while at + 24 <= used:
        kind, length, away, name_length, name_at, marks, _, _, _ = _attribute(fixed, at)
        if kind == _END or length < 24 or at + length > used:
            break
        stream = _stream(fixed, at, length)
        if stream is None:
            return None
        text = fixed[at + name_at : at + name_at + 2 * name_length].decode("utf-16-le", "surrogatepass")
        whole = not away or _sizes(fixed, at + 56)[0] >= stream.size
        name = text.encode("utf-8", "surrogatepass")
        found.append(NamedStream(kind, name, stream, whole and not marks))
        at += length
    return found


def find_attribute(raw: bytes, kind: int, id: int) -> Stream | None:
    """The attribute of a record that has this type and number."""
    fixed = unfixed_record(raw)
    if fixed is None:
        return None
    _, _, _, _, _, _, at, _, used, _ = _head(fixed)
    while at + 24 <= min(used, len(fixed)):
        found, length, _, _, _, _, number, _, _ = _attribute(fixed, at)
        if found == _END or length < 24 or at + length > used:
            return None
        if (found, number) == (kind, id):
            return _stream(fixed, at, length)
        at += length
    return None


def decode_names(raw: bytes) -> list[FileName] | None:
    """The names of a record, in use or not; None where it is damaged, or has parts elsewhere."""
    fixed = unfixed_record(raw)
    if fixed is None:
        return None
    _, _, _, _, _, _, at, _, used, _ = _head(fixed)
    found: list[FileName] = []
    while at + 24 <= min(used, len(fixed)):
        kind, length, away, _, _, _, number, size, value = _attribute(fixed, at)
        if kind == _END:
            break
        if length < 24 or at + length > used or kind == _LIST:
            return None
        if kind == _NAME and not away and value + size <= length:
            name = decode_name(number, fixed[at + value : at + value + size])
            found += [name] if name is not None else []
        at += length
    return found


def decode_name(number: int, content: bytes) -> FileName | None:
    """A ``$FILE_NAME`` by its content; None of DOS's short name for a file that has a longer one."""
    if len(content) < 66 or content[65] == _DOS_NAMESPACE:
        return None
    text = content[66 : 66 + 2 * content[64]].decode("utf-16-le", "surrogatepass")
    name = text.encode("utf-8", "surrogatepass")
    return FileName(number, len(content), name, struct.unpack_from("<4Q", content, 8))


def _put_back(raw: bytes) -> bytes | None:
    """``unfixed_record``, at a third of the cost where all that a record uses lies before the end of its first sector:
    there is nothing to put back then."""
    if len(raw) == 2 * _SECTOR:
        magic, start, count, _, _, _, _, _, used, _ = _head(raw)
        if magic == b"FILE" and count == 3 and used < _SECTOR - 1 and start + 6 <= len(raw):
            return raw if raw[start : start + 2] == raw[510:512] == raw[1022:1024] else None
    return unfixed_record(raw)


def unfixed_record(raw: bytes) -> bytes | None:
    """A record with the last two bytes of each sector put back; None if it is torn or none."""
    if len(raw) < 48 or raw[:4] != b"FILE":
        return None
    start, count = struct.unpack_from("<HH", raw, 4)
    if count != len(raw) // _SECTOR + 1 or start + 2 * count > len(raw):
        return None
    check, parts = raw[start : start + 2], []
    for sector in range(1, count):
        end = sector * _SECTOR
        if raw[end - 2 : end] != check:
            return None
        parts += [raw[end - _SECTOR : end - 2], raw[start + 2 * sector : start + 2 * sector + 2]]
    return b"".join(parts)


def _stream(record: bytes, at: int, length: int) -> Stream | None:
    """The attribute at ``at``; None where its bounds make no sense."""
    _, _, away, _, _, _, number, size, value = _attribute(record, at)
    if not away:
        inside = record[at + value : at + value + size] if value + size <= length else None
        return None if inside is None else Stream(number, size, inside, b"")
    if length < 64:
        return None
    first, runs, size = _away(record, at + 16)
    if first or runs < 64 or runs > length or size >> 63:
        return None
    return Stream(number, size, None, record[at + runs : at + length])


def pieces_of(stream: Stream, cluster: int, volume: int) -> list[Piece] | None:
    """Where the bytes of a stream lie, by its runs; None where they make no sense."""
    pieces, at, start, place = [], 0, 0, 0
    runs = stream.runs
    while at < len(runs) and runs[at] and start < stream.size:
        many, far = runs[at] & 15, runs[at] >> 4
        if not 0 < many <= 8 or far > 8 or at + 1 + many + far > len(runs):
            return None
        count = int.from_bytes(runs[at + 1 : at + 1 + many], "little")
        place += int.from_bytes(runs[at + 1 + many : at + 1 + many + far], "little", signed=True)
        at += 1 + many + far
        length = min(count * cluster, stream.size - start)
        if not count or (far and not 0 <= place * cluster < volume):
            return None
        pieces.append(Piece(start, length, place * cluster if far else None))
        start += length
    return pieces if start >= stream.size else None
