"""Files by their records: the same file at two points in time, and the paths that it has."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from imagefs.block.ranges import Range, overlaps
from imagefs.browse.names import join, safe_name
from imagefs.errors import BrowseError
from imagefs.interfaces import Entry, FileSystem, KeepsRecords, Link, Reader, Table

#: Names in one another, and names of one file that are followed; damaged directories may have more.
_MAX_DEPTH, _MAX_PATHS = 2048, 4096
_PIECE, _MAX_RECORD = 1 << 20, 1 << 16
#: Records of NTFS before this one are its own, and the root's.
_FIRST_FILE = 24


def records_in(fs: FileSystem) -> KeepsRecords | None:
    """``fs``, where it can tell of its records."""
    return fs if isinstance(fs, KeepsRecords) and fs.tables() else None


def number_of(entry: Entry) -> int:
    """The number of an entry's record; where it is one of several trees (``257:300``), with the tree's."""
    tree, _, number = entry.inode.partition("-")[0].rpartition(":")
    return int(tree or 0) << 64 | int(number)


def paths_of(fs: FileSystem, numbers: Collection[int]) -> dict[int, list[bytes]]:
    """Every path of the files with these records; none of one that no directory lists."""
    records = records_in(fs)
    if records is None or not numbers:
        return {}
    return paths_by_links(records.links(sorted(numbers)), numbers, number_of(fs.root()))


def paths_by_links(links: Sequence[Link], numbers: Collection[int], root: int) -> dict[int, list[bytes]]:
    """The same, from the links of these records and of all directories above."""
    by_number: dict[int, list[Link]] = {}
    for each in links:
        by_number.setdefault(each.number, []).append(each)
    found: dict[int, list[bytes]] = {}
    for number in numbers:
        paths = [
            join(folder, safe_name(link.name))
            for link in by_number.get(number, ())[:_MAX_PATHS]
            if (folder := _folder(by_number, link.parent, root)) is not None
        ]
        if number == root:
            paths = [b"/"]
        if paths:
            found[number] = list(dict.fromkeys(paths))
    return found


def _folder(by_number: Mapping[int, Sequence[Link]], number: int, root: int) -> bytes | None:
    """The path of a directory; None where it does not lead to the root."""
    names: list[bytes] = []
    while number != root:
        links = by_number.get(number)
        if not links or len(names) >= _MAX_DEPTH:
            return None
        names.append(safe_name(links[0].name))
        number = links[0].parent
    return b"/" + b"/".join(reversed(names))


def is_own(fs: FileSystem, entry: Entry) -> bool:
    """Whether an entry is no user's file but what NTFS keeps of itself: $MFT, $LogFile, all in $Extend."""
    if fs.kind != "ntfs" or entry.path == b"/":
        return False
    return number_of(entry) < _FIRST_FILE or entry.path.startswith(b"/$Extend/")


def is_same_file(old: FileSystem, new: FileSystem, number: int) -> bool:
    """Whether record ``number`` is in use for the same file at both points in time."""
    one, other = records_in(old), records_in(new)
    if one is None or other is None:
        return False
    before, after = one.identities([number])[0], other.identities([number])[0]
    return before == after != ""


def changed_records(
    old: Sequence[Table], new: Sequence[Table], one: Reader, other: Reader, changes: list[Range]
) -> set[int]:
    """The numbers of records whose bytes differ between two volumes with the tables ``old`` and ``new``; outside of
    ``changes`` both volumes are the same. What only one has is a change where it is not zeros."""
    for tables, reader in ((old, one), (new, other)):
        for each in tables:
            _check(each, reader)
    found: set[int] = set()
    cuts = sorted({edge for table in (*old, *new) for edge in (table.first, table.end)})
    for first, end in pairwise(cuts):
        before, after = _table_at(old, first), _table_at(new, first)
        if before is None and after is None:
            continue
        if before is None or after is None:
            table, reader = (after, other) if before is None else (before, one)
            assert table is not None
            found |= _differing(table, first, end, reader, None)
        elif (before.length, _offset(before, first)) != (after.length, _offset(after, first)):
            found |= _differing(before, first, end, one, (other, after))
        else:
            length, start = after.length, _offset(after, first)
            for low, high in overlaps([(start, start + (end - first) * length)], changes):
                part = first + (low - start) // length, first - (start - high) // length
                found |= _differing(before, *part, one, (other, after))
    return found


def _check(table: Table, reader: Reader) -> None:
    """BrowseError unless all of a table lies in the volume; what says so was read from the disk."""
    room = reader.size - table.offset
    fits = 0 < table.length <= _MAX_RECORD and 0 <= table.first < table.end and table.offset >= 0
    if not fits or (table.end - table.first) * table.length > room:
        raise BrowseError("the records of the file system lie outside of the volume")


def _table_at(tables: Sequence[Table], number: int) -> Table | None:
    at = bisect_right(tables, number, key=lambda table: table.first) - 1
    return tables[at] if at >= 0 and number < tables[at].end else None


def _offset(table: Table, number: int) -> int:
    return table.offset + (number - table.first) * table.length


def _differing(
    table: Table, first: int, end: int, reader: Reader, beside: tuple[Reader, Table] | None
) -> set[int]:
    """The numbers from ``first`` to before ``end`` whose records are not those ``beside``, or no zeros."""
    step = max(1, _PIECE // table.length)
    found: set[int] = set()
    for start in range(first, end, step):
        count = min(step, end - start)
        rows = _rows(reader, table, start, count)
        if beside is None:
            differs = rows.any(axis=1)
        elif beside[1].length != table.length:
            return set(range(first, end))
        else:
            differs = (rows != _rows(*beside, start, count)).any(axis=1)
        found.update((np.flatnonzero(differs) + start).tolist())
    return found


def _rows(reader: Reader, table: Table, first: int, count: int) -> npt.NDArray[np.uint8]:
    raw = reader.read_at(_offset(table, first), count * table.length)
    return np.frombuffer(raw, np.uint8).reshape(count, table.length)
