"""Every time of a tree: as a body file for ``mactime``, or sorted, one line a time.

A body file is The Sleuth Kit's (wiki.sleuthkit.org, "Body file", from version 3.0): ``MD5|name|inode|mode|
UID|GID|size|atime|mtime|ctime|crtime``, times in seconds since 1970 and 0 where not known. Names are what
``fls -m`` writes: `` -> target`` behind a symlink, `` ($FILE_NAME)`` where the times are those that NTFS keeps
with a name, `` (deleted)``, or `` (deleted-realloc)`` where another file has the inode now, whose facts are not told.
Control bytes are ``^`` as there; ``|`` is ``%7C`` and a ``%`` that ``mactime`` would decode ``%25``, where ``fls``
writes lines that ``mactime`` reads wrong.
"""

from __future__ import annotations

import csv
import io
import re
import stat
from array import array
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from itertools import chain
from typing import NamedTuple

import numpy as np

from imagefs.browse.names import safe_name
from imagefs.browse.remains import ORPHANS, REALLOCATED
from imagefs.browse.walk import OnError, walk
from imagefs.errors import ImagefsError
from imagefs.interfaces import Entry, EntryType, FileSystem, HasNameTimes, HasStreams, KeepsDeleted

FILE_NAME = "$FILE_NAME"
HEADER = "time,size,macb,mode,uid,gid,inode,name"
_LETTERS = {
    EntryType.FILE: "r",
    EntryType.DIRECTORY: "d",
    EntryType.SYMLINK: "l",
    EntryType.FIFO: "p",
    EntryType.SOCKET: "s",
    EntryType.OTHER: "-",
}
_CONTROL = bytes.maketrans(bytes([*range(32), 127]), b"^" * 33)
_DECODED = re.compile(rb"%(?=[0-9A-Fa-f]{2})")
#: What a sorted line says of a time, bit by bit.
_BITS = (("mtime_ns", 1), ("atime_ns", 2), ("ctime_ns", 4), ("crtime_ns", 8))
_FLAGS = ["".join(char if bits >> at & 1 else "." for at, char in enumerate("macb")) for bits in range(16)]
_BATCH = 1 << 16
_WITH_STREAMS = frozenset({EntryType.FILE, EntryType.DIRECTORY})


class Line(NamedTuple):
    """An entry with its times, or a named stream of it (``path:stream``, with the times of the file). Where
    ``source`` is FILE_NAME, inode, size and times are those of a name."""

    entry: Entry
    source: str = ""
    target: bytes = b""


def lines(fs: FileSystem, start: Entry, *, onerror: OnError) -> Iterator[Line]:
    """All that has times below ``start`` (``start`` itself if it is no directory), then what was deleted there.

    ``onerror`` hears what cannot be read.
    """
    names = fs if isinstance(fs, HasNameTimes) else None  # asked once: each takes Python 20 µs
    streams = fs if isinstance(fs, HasStreams) else None
    gone = _deleted_below(fs, start, onerror) if isinstance(fs, KeepsDeleted) else ()
    live = walk(fs, start, onerror=onerror) if start.type is EntryType.DIRECTORY else [start]
    for entry in chain(live, gone):
        yield from _lines(fs, names, streams, entry, onerror)


def _deleted_below(fs: KeepsDeleted, start: Entry, onerror: OnError) -> Iterator[Entry]:
    """The deleted entries that lay at or below ``start``."""
    below = start.path.rstrip(b"/") + b"/"
    try:
        for entry in fs.deleted():
            if entry.path.startswith(below) or entry.path == start.path:
                yield entry
    except ImagefsError as error:
        onerror(error)


def _lines(
    fs: FileSystem, names: HasNameTimes | None, streams: HasStreams | None, entry: Entry, onerror: OnError
) -> Iterator[Line]:
    target = b""
    try:
        if entry.type is EntryType.SYMLINK:
            target = fs.readlink(entry)
    except ImagefsError as error:
        onerror(error)
    yield Line(entry, target=target)
    try:
        if names is not None:
            yield from _names(names, entry)
        # Deleted streams are entries of their own.
        if streams is not None and not entry.deleted and entry.type in _WITH_STREAMS:
            for stream in streams.streams(entry):
                path, inode = entry.path + b":" + stream.name, stream.inode or entry.inode
                yield Line(entry._replace(path=path, size=stream.size, inode=inode, type=EntryType.FILE))
    except ImagefsError as error:
        onerror(error)


def _names(fs: HasNameTimes, entry: Entry) -> Iterator[Line]:
    """The times of the name by which an entry was met; where none is called so, of its last. A record that a
    deleted file once had may have another's names by now."""
    found = fs.name_times(entry)
    last = [] if entry.deleted else found[-1:]
    for each in [each for each in found if safe_name(each.name) == entry.name] or last:
        named = entry._replace(
            inode=each.inode,
            size=each.size,
            mtime_ns=each.mtime_ns,
            atime_ns=each.atime_ns,
            ctime_ns=each.ctime_ns,
            crtime_ns=each.crtime_ns,
        )
        yield Line(named, FILE_NAME)


def body(line: Line, lead: bytes) -> bytes:
    """One line of a body file; ``lead`` (``/p2``) stands before the path."""
    entry = line.entry
    name = _DECODED.sub(b"%25", _name(line, lead)).replace(b"|", b"%7C")
    times = (entry.atime_ns, entry.mtime_ns, entry.ctime_ns, entry.crtime_ns)
    stamps = "|".join(str((time or 0) // 10**9) for time in times)
    facts = f"|{entry.inode}|{_mode(entry)}|{entry.uid}|{entry.gid}|{entry.size}|{stamps}\n"
    return b"0|" + name + facts.encode("ascii")


def _name(line: Line, lead: bytes) -> bytes:
    name = lead + line.entry.path
    name += b" -> " + line.target if line.target else b""
    name += b" ($FILE_NAME)" if line.source == FILE_NAME else b""
    if line.entry.deleted:
        realloc = REALLOCATED in line.entry.flags and line.entry.inode != "0"
        name += b" (deleted-realloc)" if realloc else b" (deleted)"
    return name.translate(_CONTROL)


def _mode(entry: Entry) -> str:
    """``r/rrw-r--r--``: what the name and what the inode say that it is, and the permissions. TSK has two letters
    for a socket, and no name of what it found without one."""
    letter = _LETTERS.get(entry.type) or ("c" if "char" in entry.flags else "b")
    if REALLOCATED in entry.flags:  # what the inode says is another file's
        return f"{letter}/----------"
    name = "-" if entry.deleted and entry.path.rpartition(b"/")[0] == ORPHANS else letter
    return f"{name}/{'h' if letter == 's' else letter}{stat.filemode(entry.mode)[1:]}"


class Timeline:
    """Takes lines in any order and gives a line of CSV for each time, sorted: the time in RFC 3339 with
    nanoseconds, UTC, and which of the file's times (``macb``) it is. A time that no calendar holds is ``@`` and
    its seconds. Needs some 150 bytes of memory for a line and 18 for each of its times."""

    def __init__(self) -> None:
        self._rows, self._ends = bytearray(), array("Q", [0])
        self._seconds, self._nanos = array("q"), array("q")
        self._which, self._bits = array("q"), array("B")

    def add(self, line: Line, lead: bytes) -> None:
        entry, times = line.entry, dict[int, int]()
        for field, bit in _BITS:
            time = getattr(entry, field)
            if time is not None:
                times[time] = times.get(time, 0) | bit
        for time, bits in times.items():
            seconds, nanos = divmod(time, 10**9)
            self._seconds.append(seconds)
            self._nanos.append(nanos)
            self._which.append(len(self._ends) - 1)
            self._bits.append(bits)
        name = _name(line, lead).decode("utf-8", "surrogateescape")
        out = io.StringIO()
        row = (_mode(entry), entry.uid, entry.gid, entry.inode, name)
        csv.writer(out, lineterminator="\n").writerow(row)
        self._rows += f"{entry.size},".encode() + out.getvalue().encode("utf-8", "surrogateescape")
        self._ends.append(len(self._rows))

    def rows(self) -> Iterator[bytes]:
        order = np.lexsort((np.asarray(self._nanos), np.asarray(self._seconds)))
        for first in range(0, len(order), _BATCH):
            for at in order[first : first + _BATCH].tolist():
                yield self._row(at)

    def _row(self, at: int) -> bytes:
        which = self._which[at]
        size, _, rest = bytes(self._rows[self._ends[which] : self._ends[which + 1]]).partition(b",")
        time = _rfc3339(self._seconds[at], self._nanos[at])
        return f"{time},{size.decode()},{_FLAGS[self._bits[at]]},".encode() + rest


def _rfc3339(seconds: int, nanos: int) -> str:
    try:
        moment = datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return f"@{seconds}"
    return f"{moment.replace(tzinfo=None).isoformat()}.{nanos:09d}Z"


def sorted_rows(found: Iterable[tuple[Line, bytes]]) -> Iterator[bytes]:
    """A line of CSV for each time of ``found``, pairs of a line and what stands before its path."""
    timeline = Timeline()
    for line, lead in found:
        timeline.add(line, lead)
    return timeline.rows()
