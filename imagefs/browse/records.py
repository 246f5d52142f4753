"""What a file system that keeps records can tell without a walk: which bytes a path depends on, and who is
listed where. ``extrecords.py`` and ``ntfsrecords.py`` read the records. Knows no TSK.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from imagefs.block.ranges import Ranges
from imagefs.browse.extrecords import ExtRecords
from imagefs.browse.names import join, parts, safe_name
from imagefs.browse.ntfsrecords import NtfsRecords
from imagefs.browse.tskdir import Directories
from imagefs.browse.tskentry import address
from imagefs.browse.tskhandle import Facts
from imagefs.interfaces import Entry, Holding, Link, Place, Structure, Table

_META_BG = 0x10


class Records(Protocol):
    """The records of one file system, as ``KeepsRecords`` has them, but for names and paths."""

    def tables(self) -> list[Table]: ...

    def fixed(self, number: int) -> list[Place]:
        """What says where record ``number`` lies."""
        ...

    def places(self, number: int) -> list[Place]:
        """Record ``number`` and all that belongs to it."""
        ...

    def holdings(self, ranges: Ranges) -> list[Holding]: ...

    def owners(self, numbers: list[int]) -> list[int]: ...

    def links(self, wanted: set[int]) -> list[Link]:
        """Those of ``wanted``, of all directories above them, and perhaps of more."""
        ...

    def listed(self, number: int) -> list[Link]:
        """The names in a directory; none of what is no directory, or cannot be read."""
        ...

    def identities(self, numbers: list[int]) -> list[str]: ...

    def structures(self) -> list[Structure]: ...


def records_of(facts: Facts, directories: Directories) -> Records | None:
    """None of a file system that has none we know."""
    if facts.xattrs is not None and facts.xattrs.superblock.incompat & _META_BG:
        return None  # descriptors lie in every group
    if facts.ext is not None and facts.xattrs is not None and facts.ext.last:
        return ExtRecords(facts.reader, facts.xattrs.superblock, facts.ext, facts.xattrs)
    if facts.mft is not None:
        return NtfsRecords(facts.reader, facts.mft, facts.block_size, directories.links)
    return None


def trace(
    records: Records, root: int, key: Callable[[bytes], bytes], path: bytes
) -> list[tuple[bytes, int]] | None:
    """(path, record) of the root and of each part of ``path``, as far as there are any; None where names alone do
    not tell: equal ones in one directory, short ones, streams."""
    found = [(b"/", root)]
    for name in parts(path):
        above, number = found[-1]
        names = [(safe_name(link.name), link.number) for link in records.listed(number)]
        fits = [each for each in names if each[0] == name] or [
            each for each in names if key(each[0]) == key(name)
        ]
        if len(fits) != 1:
            return None if fits or b"~" in name or b":" in name else found
        found.append((join(above, fits[0][0]), fits[0][1]))
    return found


def footprint(records: Records, entries: list[Entry]) -> list[Place]:
    """Everything that ``lookup`` of the last of ``entries`` and reading it depend on."""
    found: list[Place] = []
    for entry in entries:
        number = address(entry.inode)
        found += [*records.fixed(number), *records.places(number)]
    return list(dict.fromkeys(found))


def above(links: list[Link], wanted: set[int]) -> list[Link]:
    """The links of ``wanted``, and of the directories above them; each once."""
    by_number: dict[int, list[Link]] = {}
    for each in links:
        by_number.setdefault(each.number, []).append(each)
    found: list[Link] = []
    waiting, known = list(wanted), set(wanted)
    while waiting:
        for each in by_number.get(waiting.pop(), ()):
            found.append(each)
            if each.parent not in known:
                known.add(each.parent)
                waiting.append(each.parent)
    return found
