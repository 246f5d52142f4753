"""What a file system that keeps records can tell without a walk: which bytes a path depends on, and who is
listed where. ``extrecords.py`` and ``ntfsrecords.py`` read the records. Knows no TSK.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from imagefs.block.ranges import Ranges
from imagefs.browse.bigdir import Name
from imagefs.browse.extrecords import ExtRecords
from imagefs.browse.names import FOLDED_KINDS, fold, join, parts, safe_name
from imagefs.browse.ntfsrecords import NtfsRecords
from imagefs.browse.tskdir import Directories
from imagefs.browse.tskentry import EntryMaker, address
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

    def named(self, number: int, name: bytes) -> list[Link]:
        """Those in a directory that are ``name``, or nothing where ``listed`` has to tell."""
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
        return NtfsRecords(facts.reader, facts.mft, facts.block_size, directories)
    return None


class ByRecords:
    """``KeepsRecords`` of a file system over ``facts``; ``tables`` gives none where it has no records we know."""

    def __init__(self, facts: Facts, maker: EntryMaker, directories: Directories) -> None:
        self._facts = facts
        self._maker = maker
        self._records = records_of(facts, directories)

    def _walked(self, path: bytes) -> list[Entry]:
        """``trace`` where names alone do not tell."""
        raise NotImplementedError

    def _odd(self, number: int) -> Entry:
        """The entry of a record that has to be looked at in another way."""
        raise NotImplementedError

    @property
    def _known(self) -> Records:
        assert self._records is not None  # else tables() gave none, and nobody asks more
        return self._records

    def tables(self) -> list[Table]:
        return self._records.tables() if self._records is not None else []

    def trace(self, path: bytes, /) -> list[Entry]:
        key = fold if self._facts.kind in FOLDED_KINDS else bytes
        found = trace(self._known, self._facts.root_inode, key, path)
        if found is None:
            return self._walked(path)
        return [self._numbered(number)._replace(path=at) for at, number in found]

    def footprint(self, entries: list[Entry], /) -> list[Place]:
        return footprint(self._known, entries)

    def holdings(self, ranges: list[list[int]], /) -> list[Holding]:
        return self._known.holdings(Ranges((first, end) for first, end in ranges))

    def owners(self, numbers: list[int], /) -> list[int]:
        return self._known.owners(numbers)

    def links(self, numbers: list[int], /) -> list[Link]:
        wanted = set(numbers)
        return above(self._known.links(wanted), wanted)

    def listed(self, numbers: list[int], /) -> list[Link]:
        return [link for number in numbers for link in self._known.listed(number)]

    def entries(self, numbers: list[int], /) -> list[Entry]:
        return [self._numbered(number) for number in numbers]

    def _numbered(self, number: int) -> Entry:
        return self._maker.from_disk(b"/", Name(b"", number)) or self._odd(number)

    def identities(self, numbers: list[int], /) -> list[str]:
        return self._known.identities(numbers)

    def structures(self) -> list[Structure]:
        return self._known.structures()


def trace(
    records: Records, root: int, key: Callable[[bytes], bytes], path: bytes
) -> list[tuple[bytes, int]] | None:
    """(path, record) of the root and of each part of ``path``, as far as there are any; None where names alone do
    not tell: equal ones in one directory, short ones, streams."""
    found = [(b"/", root)]
    for name in parts(path):
        above, number = found[-1]
        exact = records.named(number, name) if b"%" not in name else []  # none that was made safe is without
        if len(exact) == 1:
            found.append((join(above, name), exact[0].number))
            continue
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
