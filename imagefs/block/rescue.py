"""Reading around bad sectors, in the order of GNU ddrescue: copy, skip ahead, come back, trim, scrape.

Once a plain read has failed, everything in that window is read past the page cache (O_DIRECT): the
kernel reads whole pages, and a page with one bad sector in it loses its good ones too. Where O_DIRECT
cannot be had (tmpfs, some network and FUSE file systems) reads are plain ones of single sectors.
"""

from __future__ import annotations

import errno
import mmap
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from imagefs.block.devices import DeviceReader
from imagefs.block.views import clamp
from imagefs.errors import SourceError

#: What a medium answers that has a bad place; anything else is not about the place.
MEDIUM_ERRORS = frozenset(
    {errno.EIO, errno.EREMOTEIO, errno.ENODATA, errno.EILSEQ, errno.ETIMEDOUT, errno.EBADMSG}
)
#: Bytes of the first pass; after an error as many are skipped, then twice as many, and so on.
PIECE = 64 * 1024

Range = tuple[int, int]
Read = Callable[[int, int], bytes]


@dataclass(frozen=True, slots=True)
class Rescued:
    """``data`` with zeros where ``bad`` (offset, length: whole sectors, in order) could not be read;
    ``retries`` counts the reads beyond the first."""

    data: bytes
    bad: tuple[Range, ...] = ()
    retries: int = 0


class Rescue:
    """Reads a source even where parts of it cannot be read. Thread-safe.

    More than ``max_errors`` bad sectors are a SourceError. ``known_bad`` (offset, length) are not even
    tried. Each bad sector gets ``retries`` further attempts. ``direct`` takes the place of the reads
    past the cache (for tests).
    """

    def __init__(
        self,
        source: DeviceReader,
        *,
        max_errors: int | None = None,
        retries: int = 1,
        known_bad: Sequence[Range] = (),
        direct: Read | None = None,
    ) -> None:
        self._source = source
        self._max_errors = max_errors
        self._retries = retries
        self._known = sorted(known_bad)
        self._lock = threading.Lock()
        self._direct = _Direct(source) if direct is None else None
        self._beneath: Read = direct or self._past_the_cache
        self._stopped = False
        self._good: int | None = None
        self.errors = 0

    @property
    def retries(self) -> int:
        return self._retries

    def untried(self, size: int) -> int:
        """How many of the first ``size`` bytes were known to be bad, and not tried."""
        return sum(length for _, length in _joined(_cut(self._known, 0, size)))

    def take_up(self, bad: Sequence[Range]) -> None:
        """What an earlier run found ``bad`` (offset, length) counts towards the limit too."""
        found = [part for first, count in bad for part in _without(first, first + count, self._known)]
        self.errors = sum(-(-(stop - first) // self._source.sector_size) for first, stop in found)

    def read(self, offset: int, length: int, wanted: Sequence[Range] | None = None, /) -> Rescued:
        """``length`` bytes from ``offset``; only ``wanted`` (offset, length) matters, the rest may be zeros."""
        length = clamp(self._source.size, offset, length)
        known = _cut(self._known, offset, length)
        if not known:
            try:
                data = self._source.read_at(offset, length)
            except SourceError as error:
                if error.data.get("errno") not in MEDIUM_ERRORS:
                    raise
            else:
                self._good = offset
                return Rescued(data)
        return self._rescue(offset, length, [(offset, length)] if wanted is None else wanted, known)

    def _rescue(self, offset: int, length: int, wanted: Sequence[Range], known: list[Range]) -> Rescued:
        """One window at a time: two that fail at once would only make the heads run to and fro."""
        with self._lock:
            window = _Window(self._read, self._source.sector_size, offset, bytearray(length))
            for first, count in wanted:
                for start, stop in _without(first, first + count, known):
                    window.rescue(start, stop)
            window.try_again(self._retries)
            if not window.good and not known:
                self._check_alive(window)
            found = sorted(window.bad)
            self.errors += len(found)
            if self._max_errors is not None and self.errors > self._max_errors:
                raise SourceError(
                    f"{self._source.path} has more than {self._max_errors} unreadable sectors, "
                    f"the last at byte {found[-1] if found else offset}",
                    hint="allow more with --max-errors",
                    path=self._source.path,
                    errno=errno.EIO,
                )
        size = self._source.sector_size
        lost = [(at, min(size, offset + length - at)) for at in found] + known
        return Rescued(bytes(window.data), tuple(_joined(lost)), window.reads)

    def _check_alive(self, window: _Window) -> None:
        """A whole window without one good sector: is it the place, or is the device gone?"""
        if self._good is None or not window.bad:
            return
        try:
            self._read(self._good, self._source.sector_size)
        except SourceError as error:
            raise SourceError(
                f"{self._source.path} does not answer any more, not even where it did before",
                hint="connect it again and go on with --resume",
                path=self._source.path,
                offset=window.start,
                errno=error.data.get("errno"),
            ) from error

    def stop(self) -> None:
        """The capture is being given up: whatever is being rescued ends with its next read."""
        self._stopped = True

    def _read(self, offset: int, length: int) -> bytes:
        if self._stopped:
            raise SourceError(f"reading {self._source.path} was given up", path=self._source.path)
        return self._beneath(offset, length)

    def _past_the_cache(self, offset: int, length: int) -> bytes:
        assert self._direct is not None
        return self._direct.read(offset, length)

    def close(self) -> None:
        if self._direct is not None:
            self._direct.close()


@dataclass(slots=True)
class _Window:
    """One stretch being rescued into ``data``; ``bad`` holds the offsets of unreadable sectors."""

    read: Read
    sector: int
    start: int
    data: bytearray
    bad: set[int] = field(default_factory=set)
    reads: int = 0
    good: bool = False

    def rescue(self, first: int, stop: int) -> None:
        """Copy what reads well, skipping ahead after errors; then come back for what was skipped."""
        skipped: list[Range] = []
        at, skip = first, PIECE
        while at < stop:
            count = min(PIECE - at % PIECE, stop - at)
            if self._copy(at, count):
                at, skip = at + count, PIECE
                continue
            end = min(stop, at + max(count, skip))
            skipped.append((at, end))
            at, skip = end, skip * 2
        for start, end in skipped:
            self._come_back(start, end)

    def _come_back(self, start: int, stop: int) -> None:
        """Trim both edges up to their first bad sector, then scrape what lies between."""
        size = self.sector
        low, high = start, stop
        while low < high and self._sector(low, stop):
            low += size - low % size
        while high > low + size and self._sector((high - 1) // size * size, stop):
            high = (high - 1) // size * size
        for at in range(low - low % size, high, size):
            if at not in self.bad:
                self._sector(at, stop)

    def _sector(self, at: int, stop: int) -> bool:
        """Read the sector at ``at``; an unreadable one is noted."""
        if at in self.bad:
            return False
        count = min(self.sector, stop - at, self.start + len(self.data) - at)
        if self._copy(at, count):
            return True
        self.bad.add(at)
        return False

    def try_again(self, times: int) -> None:
        for at in sorted(self.bad):
            count = min(self.sector, self.start + len(self.data) - at)
            if any(self._copy(at, count) for _ in range(times)):
                self.bad.discard(at)

    def _copy(self, at: int, count: int) -> bool:
        self.reads += 1
        try:
            data = self.read(at, count)
        except SourceError as error:
            if error.data.get("errno") not in MEDIUM_ERRORS:
                raise
            return False
        self.data[at - self.start : at - self.start + count] = data
        self.good = True
        return True


class _Direct:
    """Reads past the page cache through a descriptor of its own."""

    def __init__(self, source: DeviceReader) -> None:
        self._source = source
        self._fd = -1
        self._plain = False
        self._buffer: mmap.mmap | None = None

    def read(self, offset: int, length: int) -> bytes:
        """``length`` bytes; SourceError with ``errno`` where that cannot be."""
        if not self._plain and self._fd < 0:
            self._open()
        if self._plain:
            return self._source.read_at(offset, length)
        size = self._source.sector_size
        start, stop = offset // size * size, -(-(offset + length) // size) * size
        buffer = self._buffer
        assert buffer is not None
        try:
            count = os.preadv(self._fd, [memoryview(buffer)[: stop - start]], start)
        except OSError as error:
            if error.errno == errno.EINVAL:  # it wants larger sectors than it tells of, or none of this
                self._plain = True
                return self._source.read_at(offset, length)
            raise SourceError(
                f"{self._source.path} cannot be read at byte {offset}: {os.strerror(error.errno or 0)}",
                path=self._source.path,
                offset=offset,
                length=length,
                errno=error.errno,
            ) from error
        if count < offset + length - start:
            return self._source.read_at(offset, length)  # which says what is wrong
        return buffer[offset - start : offset - start + length]

    def _open(self) -> None:
        """The same file or device once more; anything else than that is not read."""
        try:
            fd = os.open(self._source.path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
        except OSError:
            self._plain = True
            return
        if not self._source.is_same(os.fstat(fd)):
            os.close(fd)
            self._plain = True
            return
        self._fd = fd
        self._buffer = mmap.mmap(-1, PIECE + 2 * max(4096, self._source.sector_size))

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _cut(ranges: Sequence[Range], offset: int, length: int) -> list[Range]:
    """Those of (offset, length) ``ranges`` that lie in the window, cut to it."""
    found = [(max(first, offset), min(first + count, offset + length)) for first, count in ranges]
    return [(first, stop - first) for first, stop in found if stop > first]


def _without(first: int, stop: int, known: Sequence[Range]) -> list[Range]:
    """(start, stop) stretches from ``first`` to ``stop`` outside of ``known`` (offset, length)."""
    found, at = [], first
    for start, count in known:
        if start > at:
            found.append((at, min(start, stop)))
        at = max(at, start + count)
    if at < stop:
        found.append((at, stop))
    return [(start, end) for start, end in found if end > start]


def _joined(ranges: list[Range]) -> list[Range]:
    """In order, touching and overlapping ones as one."""
    found: list[Range] = []
    for start, count in sorted(ranges):
        if found and start <= found[-1][0] + found[-1][1]:
            first, before = found[-1]
            found[-1] = (first, max(before, start + count - first))
        else:
            found.append((start, count))
    return found
