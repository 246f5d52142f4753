"""``Overlay``: a disk that can be written to, over a Reader that cannot. All changes go to one file.

What is kept, and where, is described in overlayfile.py. The order of writing is what makes it safe to
die at any moment: a changed block goes to its place in the file first and counts only in memory; ``sync``
makes it durable, then writes the map that shows it, then makes that durable. So a block that was
synced comes back, and one that was not is the image's or holds bytes that were written to it.

Knows nothing of images and of FUSE.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from collections.abc import Iterator

from imagefs.block import linux
from imagefs.block.overlayfile import (
    PAGE_BLOCKS,
    SLOT,
    OpenOverlay,
    OverlayHeader,
    block_size_for,
    encode_slot,
    open_overlay_file,
)
from imagefs.block.views import clamp, extents_of, merged
from imagefs.errors import TargetError
from imagefs.interfaces import Extent, Reader, State

#: After so many bytes of blocks that are new to the map, it is written without being asked.
_SYNC_BYTES = 256 << 20
_ZEROS = bytes(1 << 20)
_FULL = "free some space in its folder; nothing that was synced is lost"


def open_overlay(reader: Reader, path: str, *, view: bytes, image: bytes) -> Overlay:
    """A writable disk over ``reader`` whose changes are in ``path``, which is made when missing.

    ``view`` is the view digest of the disk, ``image`` the UUID of the image it is shown from. Raises
    what ``open_overlay_file`` raises. Closes ``reader`` with it.
    """
    size = reader.size
    header = OverlayHeader(size, view, image, time.time_ns(), block_size_for(size))
    return Overlay(reader, open_overlay_file(path, header))


class Overlay:
    """A Writable over a Reader. Thread-safe; reads take no lock, writes go one by one.

    After a sync that failed nothing is written any more: the kernel may have dropped what it could
    not write. Reading goes on.
    """

    def __init__(self, reader: Reader, opened: OpenOverlay) -> None:
        self._reader = reader
        self._fd = opened.fd
        self._file = opened
        self._block = opened.header.block_size
        self._data = opened.header.data_offset
        # Whole numbers are replaced, never changed: a reader sees the map before or after a write.
        self._pages = opened.pages
        self._dirty: set[int] = set()
        self._fresh = 0
        self._punches = True
        self._failed: OSError | None = None
        self._lock = threading.Lock()
        self.size = reader.size
        self.path = opened.path

    # -- reading ----------------------------------------------------------------------------------

    def read_at(self, offset: int, length: int, /) -> bytes:
        end = offset + clamp(self.size, offset, length)
        if self._fd < 0:
            raise TargetError(f"the overlay {self.path} is closed", path=self.path)
        parts = [
            self._read_changed(first, last - first) if changed else self._reader.read_at(first, last - first)
            for changed, first, last in self._runs(offset, end)
        ]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _read_changed(self, offset: int, length: int) -> bytes:
        parts = []
        while length:
            try:
                part = os.pread(self._fd, length, self._data + offset)
            except OSError as error:
                raise self._error("cannot be read", error, offset) from error
            if not part:
                ended = OSError(errno.EIO, "it was cut")
                raise self._error("cannot be read", ended, offset)
            parts.append(part)
            offset, length = offset + len(part), length - len(part)
        return b"".join(parts)

    def extents(self, offset: int, length: int, /) -> Iterator[Extent]:
        """A hole in the file is a place that was zeroed."""
        return merged(self._pieces(offset, offset + clamp(self.size, offset, length)))

    def _pieces(self, offset: int, end: int) -> Iterator[Extent]:
        for changed, first, stop in self._runs(offset, end):
            if not changed:
                yield from extents_of(self._reader, first, stop - first)
                continue
            while first < stop:
                data = min(max(self._seek(first, os.SEEK_DATA), first), stop)
                if first < data:
                    yield Extent(State.ZERO, first, data - first)
                hole = min(self._seek(data, os.SEEK_HOLE), stop) if data < stop else stop
                if data < hole:
                    yield Extent(State.STORED, data, hole - data)
                first = max(hole, data)

    def _seek(self, offset: int, whence: int) -> int:
        """Where data or a hole is next, in bytes of the disk. A position in the file is nobody's."""
        try:
            return os.lseek(self._fd, self._data + offset, whence) - self._data
        except OSError as error:
            if error.errno == errno.ENXIO:
                return self.size
            return offset if whence == os.SEEK_DATA else self.size

    def _runs(self, offset: int, end: int) -> Iterator[tuple[bool, int, int]]:
        """(changed?, first, end) of maximal runs that cover the range, in bytes."""
        state, start = False, offset
        for changed, block in self._turns(offset // self._block, -(-end // self._block)):
            at = max(offset, block * self._block)
            if changed is state:
                continue
            if start < at:
                yield state, start, at
            state, start = changed, at
        if start < end:
            yield state, start, end

    def _turns(self, block: int, end: int) -> Iterator[tuple[bool, int]]:
        """(changed?, block) of each place where that may turn, the first block included."""
        while block < end:
            number, bit = divmod(block, PAGE_BLOCKS)
            count = min(end - block, PAGE_BLOCKS - bit)
            bits = self._pages.get(number, 0) >> bit & ((1 << count) - 1)
            while count:
                changed = bool(bits & 1)
                yield changed, block
                turned = ~bits & (bits + 1) if changed else bits & -bits
                length = min(turned.bit_length() - 1, count) if turned else count
                bits >>= length
                block, count = block + length, count - length

    # -- writing ----------------------------------------------------------------------------------

    def write_at(self, offset: int, data: bytes | memoryview, /) -> None:
        view = memoryview(data).cast("B")
        self._check_range(offset, len(view))
        with self._lock:
            self._check_sound()
            self._write(offset, view)
            due = self._fresh >= _SYNC_BYTES
        if due:
            self.sync()

    def zero_at(self, offset: int, length: int, /) -> None:
        """Punched in the file, so that it gets smaller; nothing is kept where the disk below is zeros."""
        self._check_range(offset, length)
        end = offset + length
        first = -(-offset // self._block) * self._block
        last = end if end == self.size else end // self._block * self._block
        with self._lock:
            self._check_sound()
            if first >= last:
                self._write_zeros(offset, end)
                return
            self._write_zeros(offset, first)
            self._write_zeros(last, end)
            for extent in extents_of(self._reader, first, last - first):
                if extent.state is State.STORED:
                    self._reserve(extent.offset, extent.offset + extent.length)
            self._punch(first, last - first)
            for extent in extents_of(self._reader, first, last - first):
                if extent.state is State.STORED:
                    self._mark(extent.offset, extent.offset + extent.length)

    def sync(self) -> None:
        """Make everything written so far durable; TargetError if that cannot be."""
        with self._lock:
            self._check_sound()
            self._make_durable()
            if not self._dirty:
                return
            sequences = {number: self._file.sequences.get(number, 0) + 1 for number in self._dirty}
            for number, sequence in sorted(sequences.items()):
                page = encode_slot(number, sequence, self._pages[number])
                self._put(page, self._file.header.slot_offset(number, sequence), None)
            self._make_durable()
            self._file.sequences.update(sequences)
            self._dirty.clear()
            self._fresh = 0

    def close(self) -> None:
        """Sync and close; TargetError if what was written last could not be made durable."""
        if self._fd < 0:
            return
        try:
            if self._failed is None:
                self.sync()
        finally:
            fd, self._fd = self._fd, -1
            os.close(fd)
            self._reader.close()

    def take_back(self) -> None:
        """Close; a file that was made for this and never written to goes away again."""
        if self._file.made and not self._pages:
            with contextlib.suppress(OSError):
                os.unlink(self.path)
        self.close()

    def _write(self, offset: int, view: memoryview) -> None:
        """Whole blocks where they were not changed before: the rest of them comes from below."""
        if not view:
            return
        end = offset + len(view)
        first = offset // self._block * self._block
        last = min(-(-end // self._block) * self._block, self.size)
        before = b"" if first == offset or self._is_changed(first) else self._below(first, offset)
        after = b"" if last == end or self._is_changed(end) else self._below(end, last)
        if before or after:
            view = memoryview(b"".join((before, view, after)))
        self._reserve(offset, end)
        self._put(view, self._data + offset - len(before), offset)
        self._mark(offset, end)

    def _below(self, first: int, last: int) -> bytes:
        return self._reader.read_at(first, last - first)

    def _write_zeros(self, offset: int, end: int) -> None:
        while offset < end:
            piece = memoryview(_ZEROS)[: end - offset]
            self._write(offset, piece)
            offset += len(piece)

    def _punch(self, offset: int, length: int) -> None:
        if self._punches:
            try:
                linux.punch_hole(self._fd, self._data + offset, length)
                return
            except OSError as error:
                if error.errno not in linux.UNSUPPORTED:
                    raise self._error("cannot be written", error, offset) from error
                self._punches = False
        for at in range(offset, offset + length, len(_ZEROS)):
            piece = memoryview(_ZEROS)[: offset + length - at]
            self._put(piece, self._data + at, at)

    def _put(self, data: bytes | memoryview, place: int, offset: int | None) -> None:
        view = memoryview(data)
        while view:
            try:
                count = os.pwrite(self._fd, view, place)
            except OSError as error:
                raise self._error("cannot be written", error, offset) from error
            view, place = view[count:], place + count

    def _make_durable(self) -> None:
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            self._failed = error
            raise self._error("cannot be made durable", error, None) from error

    # -- the map ----------------------------------------------------------------------------------

    def _is_changed(self, offset: int) -> bool:
        number, bit = divmod(offset // self._block, PAGE_BLOCKS)
        return bool(self._pages.get(number, 0) >> bit & 1)

    def _spans(self, offset: int, end: int) -> Iterator[tuple[int, int]]:
        """(page, bits) of the blocks that the range touches."""
        block, stop = offset // self._block, -(-end // self._block)
        while block < stop:
            number, bit = divmod(block, PAGE_BLOCKS)
            count = min(stop - block, PAGE_BLOCKS - bit)
            yield number, ((1 << count) - 1) << bit
            block += count

    def _reserve(self, offset: int, end: int) -> None:
        """Room for both slots of a page before anything counts on it: a full disk is met here."""
        for number, _ in self._spans(offset, end):
            if number not in self._pages:
                self._put(bytes(2 * SLOT), self._file.header.slot_offset(number, 1), offset)
                self._pages[number] = 0

    def _mark(self, offset: int, end: int) -> None:
        for number, bits in self._spans(offset, end):
            before = self._pages[number]
            if bits & ~before:
                self._fresh += (bits & ~before).bit_count() * self._block
                self._pages[number] = before | bits
                self._dirty.add(number)

    # -- errors -----------------------------------------------------------------------------------

    def _check_range(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0:
            raise ValueError(f"{length} bytes at {offset}: neither may be negative")
        if offset + length > self.size:
            said = f"the disk ends at byte {self.size}, {offset + length} were to be written"
            raise TargetError(said, path=self.path, offset=offset, length=length, errno=errno.ENOSPC)

    def _check_sound(self) -> None:
        if self._fd < 0:
            raise TargetError(f"the overlay {self.path} is closed", path=self.path)
        if self._failed is not None:
            raise self._error("takes no more writes since one failed", self._failed, None)

    def _error(self, what: str, error: OSError, offset: int | None) -> TargetError:
        number = error.errno or errno.EIO
        hint = _FULL if number in (errno.ENOSPC, errno.EDQUOT) else ""
        said = f"the overlay {self.path} {what}: {os.strerror(number)}"
        return TargetError(said, hint=hint, path=self.path, offset=offset, errno=number)
