"""Finding entries below a directory: by name, path, type, size, times, and by what is in them.

All that is asked for must be true. What an entry itself tells is looked at first; content is read only
of what passed that, once, for everything that is asked of it.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass

from imagefs.browse.examine import Content
from imagefs.browse.names import printable
from imagefs.browse.walk import OnError, walk
from imagefs.errors import ImagefsError
from imagefs.interfaces import (
    Entry,
    EntryType,
    FileSystem,
    HasStreams,
    NoProgress,
    Progress,
    Reader,
)

Test = Callable[[Entry], bool]
#: What may have named streams beside its content.
_WITH_STREAMS = frozenset({EntryType.FILE, EntryType.DIRECTORY})


@dataclass(frozen=True, slots=True)
class Range:
    """From ``low`` to ``high``, both included and None where there is no bound. Nothing unknown is in it."""

    low: int | None = None
    high: int | None = None

    def holds(self, value: int | None) -> bool:
        if value is None:
            return False
        return (self.low is None or value >= self.low) and (self.high is None or value <= self.high)


def find(
    fs: FileSystem,
    start: Entry,
    *,
    onerror: OnError,
    name: bytes | None = None,
    iname: bytes | None = None,
    path: Callable[[bytes], bool] | None = None,
    types: Set[EntryType] | None = None,
    sizes: Sequence[Range] = (),
    times: Sequence[tuple[str, Range]] = (),
    content: Content | None = None,
    progress: Progress | None = None,
) -> Iterator[Entry]:
    """The entries below ``start`` that match all that is given; ``start`` itself if it is no directory.

    - ``name`` and ``iname`` are globs (``* ? [a-z]``) for the whole of the last part of the path. On a
      file system without case ``name`` means ``iname``. ``path`` is a test of the whole path.
    - ``sizes`` in bytes; ``times`` are pairs of a field (``mtime_ns`` …) and its range.
    - ``content``: named streams are looked at too. One that matches is an entry of type FILE with the path
      ``path:stream`` and the size of the stream.
    - ``onerror`` hears what cannot be read; ``progress`` of the bytes that were read.
    """
    tests: list[Test] = []
    if types is not None:
        tests.append(lambda entry: entry.type in types)
    if name is not None:
        tests.append(glob(name, ignore_case=fs.case_insensitive))
    if iname is not None:
        tests.append(glob(iname, ignore_case=True))
    if content is None and sizes:
        tests.append(lambda entry: _fits(sizes, entry))
    if times:
        tests.append(lambda entry: all(span.holds(getattr(entry, field)) for field, span in times))
    if path is not None:
        tests.append(lambda entry: path(entry.path))
    streams = fs if isinstance(fs, HasStreams) else None  # asked once: it takes Python 20 µs
    for entry in _entries(fs, start, onerror):
        if not _passes(tests, entry, onerror):
            continue
        if content is None:
            yield entry
            continue
        for part, reader in _contents(fs, streams, entry, sizes, onerror):
            try:
                if content.matches(reader, printable(part.path), progress or NoProgress()):
                    yield part
            except ImagefsError as error:
                onerror(error)


def glob(pattern: bytes, *, ignore_case: bool) -> Test:
    """A test of names. ``?`` is one character where the name is UTF-8, one byte where it is not."""
    text = pattern.decode("utf-8", "surrogateescape")
    match = re.compile(fnmatch.translate(text), re.IGNORECASE if ignore_case else 0).match
    return lambda entry: match(entry.name.decode("utf-8", "surrogateescape")) is not None


def _entries(fs: FileSystem, start: Entry, onerror: OnError) -> Iterator[Entry]:
    return walk(fs, start, onerror=onerror) if start.type is EntryType.DIRECTORY else iter([start])


def _passes(tests: Sequence[Test], entry: Entry, onerror: OnError) -> bool:
    try:
        return all(test(entry) for test in tests)
    except ImagefsError as error:  # a pattern that would take for ever on this path
        onerror(error)
        return False


def _fits(sizes: Sequence[Range], entry: Entry) -> bool:
    return all(span.holds(entry.size) for span in sizes)


def _contents(
    fs: FileSystem, streams: HasStreams | None, entry: Entry, sizes: Sequence[Range], onerror: OnError
) -> Iterator[tuple[Entry, Reader]]:
    """The content of an entry and its named streams, as far as their sizes fit, each opened and closed."""
    parts: list[tuple[Entry, Callable[[], Reader]]] = []
    if entry.type is EntryType.FILE:
        parts.append((entry, lambda: fs.open(entry)))
    if streams is not None and entry.type in _WITH_STREAMS:
        parts += _streams(streams, entry, onerror)
    for part, opened in parts:
        if not _fits(sizes, part):
            continue
        try:
            reader = opened()
        except ImagefsError as error:
            onerror(error)
            continue
        try:
            yield part, reader
        finally:
            reader.close()


def _streams(fs: HasStreams, entry: Entry, onerror: OnError) -> list[tuple[Entry, Callable[[], Reader]]]:
    def opener(name: bytes) -> Callable[[], Reader]:
        return lambda: fs.open_stream(entry, name)

    try:
        return [
            (
                entry._replace(
                    path=entry.path + b":" + each.name,
                    type=EntryType.FILE,
                    size=each.size,
                    inode=each.inode or entry.inode,
                ),
                opener(each.name),
            )
            for each in fs.streams(entry)
        ]
    except ImagefsError as error:
        onerror(error)
        return []
