"""Finding entries below a directory by name, type, size and time."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass

from imagefs.browse.walk import OnError, walk
from imagefs.interfaces import Entry, EntryType, FileSystem


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds, each inclusive and None where there is none; sizes in bytes, times in ns since 1970.

    An entry without a known time matches no bound on time.
    """

    min_size: int | None = None
    max_size: int | None = None
    newer_ns: int | None = None
    older_ns: int | None = None

    def allow(self, entry: Entry) -> bool:
        return _between(self.min_size, entry.size, self.max_size) and _between(
            self.newer_ns, entry.mtime_ns, self.older_ns
        )


def find(
    fs: FileSystem,
    start: Entry,
    *,
    onerror: OnError,
    name: bytes | None = None,
    iname: bytes | None = None,
    types: Set[EntryType] | None = None,
    limits: Limits | None = None,
) -> Iterator[Entry]:
    """The entries below ``start`` that match all that is given; ``start`` itself if it is no directory.

    ``name`` and ``iname`` are globs (``* ? [a-z]``) for the whole of the last part of the path. On a
    file system without case ``name`` means ``iname``. ``onerror`` hears what cannot be read.
    """
    tests: list[Callable[[Entry], bool]] = []
    if name is not None:
        tests.append(glob(name, ignore_case=fs.case_insensitive))
    if iname is not None:
        tests.append(glob(iname, ignore_case=True))
    if types is not None:
        tests.append(lambda entry: entry.type in types)
    if limits is not None:
        tests.append(limits.allow)
    entries = walk(fs, start, onerror=onerror) if start.type is EntryType.DIRECTORY else iter([start])
    return (entry for entry in entries if all(test(entry) for test in tests))


def glob(pattern: bytes, *, ignore_case: bool) -> Callable[[Entry], bool]:
    """A test of names. ``?`` is one character where the name is UTF-8, one byte where it is not."""
    text = pattern.decode("utf-8", "surrogateescape")
    match = re.compile(fnmatch.translate(text), re.IGNORECASE if ignore_case else 0).match
    return lambda entry: match(entry.name.decode("utf-8", "surrogateescape")) is not None


def _between(low: int | None, value: int | None, high: int | None) -> bool:
    if low is None and high is None:
        return True
    if value is None:
        return False
    return (low is None or value >= low) and (high is None or value <= high)
