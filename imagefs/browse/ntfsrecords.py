"""The records of NTFS's $MFT all at once: where they lie, what belongs to each, and their names.

For comparing two points in time. A file's names are in its own record ($FILE_NAME, with the directory's number),
so nothing has to be searched for. Layout: as ``mft.py``. Knows no TSK.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple, Protocol

from imagefs.block.ranges import Ranges
from imagefs.browse.mft import Mft, unfixed_record
from imagefs.errors import BrowseError
from imagefs.interfaces import METADATA, Holding, Link, Place, Reader, Structure, Table

_LIST, _NAME, _OBJECT, _SECURITY, _ROOT, _ALLOCATION, _BITMAP = 32, 48, 64, 80, 144, 160, 176
_DOS_NAMESPACE = 2
_END = 0xFFFFFFFF
_IN_USE, _IS_DIRECTORY = 1, 2
_NUMBER = (1 << 48) - 1
_PIECE = 1 << 20
#: Further records of one file that are believed, and bytes of the list of them.
_MAX_PARTS, _MAX_LIST = 4096, 1 << 20
#: What the boot sector says of sizes and of where the table begins; the serial number.
_BOOT = (3, 80)
_head = struct.Struct("<IIBBH").unpack_from
_resident = struct.Struct("<IH").unpack_from


class _Attribute(NamedTuple):
    """One attribute as it lies in a record: ``value`` where it is resident, else ``runs``."""

    kind: int
    value: bytes
    runs: bytes


class Folders(Protocol):
    """Tells the names in the directory with a record: all, or those that are ``name``."""

    def links(self, number: int) -> list[Link]: ...

    def named(self, number: int, name: bytes) -> list[Link]: ...


class NtfsRecords:
    """The records of one file system; ``mft`` looks single ones up, ``folders`` tells the names in a directory."""

    def __init__(self, reader: Reader, mft: Mft, cluster: int, folders: Folders) -> None:
        self._reader = reader
        self._mft = mft
        self._table = mft.table
        self._cluster = cluster
        self._folders = folders

    def tables(self) -> list[Table]:
        """One for each run of $MFT; none where records are cut by its runs."""
        size, found = self._mft.record_size, []
        for piece in self._table.pieces:
            whole = piece.length // size
            if (
                piece.source is None
                or piece.start % size
                or (piece.length % size and piece is not self._table.pieces[-1])
            ):
                return []
            found.append(Table(piece.start // size, piece.start // size + whole, size, piece.source))
        return found

    def fixed(self, number: int) -> list[Place]:
        """What says where the records lie."""
        first = self._place(0)
        found = [Place(METADATA, *_BOOT), first]
        if any(each.kind == _LIST for each in _attributes(self._record(0))):  # a table in a thousand pieces
            return [Place(METADATA, 0, self._reader.size)]
        return found

    def places(self, number: int) -> list[Place]:
        """The records of a file and all its streams; of a directory everything is metadata."""
        found = []
        for part, record in self._parts(number):
            found.append(self._place(part))
            for each in _attributes(record):
                stream = METADATA if each.kind in (_LIST, _ROOT, _ALLOCATION, _BITMAP) else b""
                found += [Place(stream, first, end) for first, end in self._runs(each.runs)]
        return found

    def holdings(self, ranges: Ranges) -> list[Holding]:
        """What of ``ranges`` belongs to records in use, by the runs of all their attributes."""
        found = []
        for number, record in self._may_touch(ranges):
            owner = _base(record) or number
            for each in _attributes(record):
                for first, end in self._runs(each.runs) if each.runs else ():
                    for start, stop in ranges.within(first, end):
                        found.append(Holding(owner, start, stop, each.kind == _LIST))
        return found

    def owners(self, numbers: list[int]) -> list[int]:
        """A file that has too many attributes has further records, which name its own."""
        return [_base(self._record(number)) or number for number in numbers]

    def links(self, wanted: set[int]) -> list[Link]:
        """The names of ``wanted``, and of every directory that these lie in."""
        found: list[Link] = []
        waiting, known = list(wanted), set(wanted)
        while waiting:
            number = waiting.pop()
            for _, record in self._parts(number):
                for each in _attributes(record):
                    if each.kind != _NAME or len(each.value) < 66 or each.value[65] == _DOS_NAMESPACE:
                        continue
                    parent = int.from_bytes(each.value[:6], "little")
                    text = each.value[66 : 66 + 2 * each.value[64]].decode("utf-16-le", "surrogatepass")
                    found.append(Link(number, parent, text.encode("utf-8", "surrogatepass")))
                    if parent not in known:
                        known.add(parent)
                        waiting.append(parent)
        return found

    def listed(self, number: int) -> list[Link]:
        record = self._record(number)
        return self._folders.links(number) if record and record[22] & _IS_DIRECTORY else []

    def named(self, number: int, name: bytes) -> list[Link]:
        record = self._record(number)
        return self._folders.named(number, name) if record and record[22] & _IS_DIRECTORY else []

    def identities(self, numbers: list[int]) -> list[str]:
        """The sequence number, which counts the files that a record was used for."""
        found = []
        for number in numbers:
            record = self._record(number)
            is_file = record and not _base(record)
            found.append(str(int.from_bytes(record[16:18], "little")) if is_file else "")
        return found

    def structures(self) -> list[Structure]:
        """Everything of NTFS is in a file: $MFT, $LogFile, $Boot."""
        return []

    # -- records ----------------------------------------------------------------------------------

    def _record(self, number: int) -> bytes:
        """A record in use; nothing of any other."""
        record = unfixed_record(self._mft.raw(number))
        return record if record is not None and record[22] & _IN_USE else b""

    def _place(self, number: int) -> Place:
        size = self._mft.record_size
        for piece in self._table.parts(number * size, size):
            if piece.source is not None and piece.length == size:
                return Place(METADATA, piece.source, piece.source + size)
        raise BrowseError(f"record {number} of the MFT cannot be found")

    def _parts(self, number: int) -> Iterator[tuple[int, bytes]]:
        """The records of one file, with their numbers, its own first."""
        record = self._record(number)
        if _base(record):
            return
        yield number, record
        seen = {number}
        for each in _attributes(record):
            if each.kind != _LIST:
                continue
            for _, part in _listed(each.value or self._content(each.runs)):
                if part not in seen and len(seen) < _MAX_PARTS:
                    seen.add(part)
                    yield part, self._record(part)

    def is_at_home(self, number: int) -> bool:
        """Whether of the attributes of a file only names and who may do what are elsewhere than in its own record."""
        record, passed = self._record(number), (_NAME, _OBJECT, _SECURITY)
        lists = [each for each in _attributes(record) if each.kind == _LIST]
        found = [row for each in lists for row in _listed(each.value or self._content(each.runs))]
        return not _base(record) and all(part == number or kind in passed for kind, part in found)

    def _content(self, runs: bytes) -> bytes:
        found, left = b"", _MAX_LIST
        for first, end in self._runs(runs):
            found += self._reader.read_at(first, min(end - first, left))
            left = _MAX_LIST - len(found)
        return found

    def _may_touch(self, ranges: Ranges) -> Iterator[tuple[int, bytes]]:
        """Records in use that may have something in ``ranges``, with their numbers."""
        from imagefs.browse import ntfsscan  # numpy, which footprints do not need

        size = self._mft.record_size
        step = _PIECE // size * size
        for table in self.tables():
            for at in range(table.offset, table.offset + (table.end - table.first) * size, step):
                first = table.first + (at - table.offset) // size
                raw = self._reader.read_at(at, min(step, (table.end - first) * size))
                for i in ntfsscan.may_touch(raw, size, ranges, self._cluster):
                    record = unfixed_record(raw[i * size : (i + 1) * size])
                    if record is not None:
                        yield first + i, record

    def _runs(self, runs: bytes) -> Iterator[tuple[int, int]]:
        """Where the runs of an attribute lie, holes left out; what makes no sense ends them."""
        at, place, cluster = 0, 0, self._cluster
        while at < len(runs) and runs[at]:
            many, far = runs[at] & 15, runs[at] >> 4
            middle, end = at + 1 + many, at + 1 + many + far
            if not 0 < many <= 8 or far > 8 or end > len(runs):
                return
            count = int.from_bytes(runs[at + 1 : middle], "little")
            place += int.from_bytes(runs[middle:end], "little", signed=True)
            at = end
            if far and not 0 <= place * cluster < self._reader.size:
                return
            if far:
                yield place * cluster, min((place + count) * cluster, self._reader.size)


def _base(record: bytes) -> int:
    """The record of which this one is a further part; 0 of a file's own, and of none."""
    return int.from_bytes(record[32:38], "little")


def _attributes(record: bytes) -> Iterator[_Attribute]:
    """The attributes of an unfixed record, as far as they make sense."""
    if len(record) < 48:
        return
    (at,), (used,) = struct.unpack_from("<H", record, 20), struct.unpack_from("<I", record, 24)
    used = min(used, len(record))
    while at + 24 <= used:
        kind, length, away, _, _ = _head(record, at)
        if kind == _END or length < 24 or at + length > used:
            return
        if away:
            runs = struct.unpack_from("<H", record, at + 32)[0] if length >= 64 else length
            yield _Attribute(kind, b"", record[at + runs : at + length])
        else:
            size, value = _resident(record, at + 16)
            yield _Attribute(kind, record[at + value : min(at + value + size, at + length)], b"")
        at += length


def _listed(content: bytes) -> Iterator[tuple[int, int]]:
    """The attributes that an $ATTRIBUTE_LIST names: of which type, and in which record."""
    at = 0
    while at + 26 <= len(content):
        kind, length = struct.unpack_from("<IH", content, at)
        if length < 26:
            return
        yield kind, int.from_bytes(content[at + 16 : at + 24], "little") & _NUMBER
        at += length
