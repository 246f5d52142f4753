"""Sinks over open descriptors: a file, a block device, a stream. Chooses and checks no target."""

from __future__ import annotations

import errno
import os
import select
import threading
from typing import ClassVar

from imagefs.block import linux
from imagefs.block.devices import DeviceReader
from imagefs.block.naming import FinalName
from imagefs.errors import ImagefsError, TargetError, UsageError
from imagefs.interfaces import Reader

#: Zeros are written, and devices zeroed, in pieces: an interrupt is heard between two of them.
_ZEROS = memoryview(bytes(1 << 20))
_ZERO_OUT_STEP = 256 << 20

#: After so many bytes the disk is set to work, so that the sync at the end has little left to wait for.
_WRITEBACK_BYTES = 16 << 20

_ROOM_HINT = "free some space, or name a target on another disk"


class TargetReader(DeviceReader):
    """Reads back what was written; its errors are the target's."""

    failure: ClassVar[type[ImagefsError]] = TargetError


class _FdSink:
    """What file and device share: writing at offsets through a descriptor, from any thread.

    ``leaves_incomplete`` says whether a target abandoned before ``finish`` is left half-written.
    """

    def __init__(self, fd: int, path: str, *, limit: int | None, needed: int | None = None) -> None:
        self._fd = fd
        self.path = path
        self.leaves_incomplete = True
        self._limit = limit  # a device's size; a file has none
        self._needed = needed
        self._lock = threading.Lock()
        self._waiting = 0  # bytes written since the disk was last set to work, and where they lie
        self._from, self._to = 0, 0

    def write_at(self, offset: int, data: bytes | memoryview, /) -> None:
        view = memoryview(data).cast("B")
        self._check_range(offset, len(view))
        self._note_written(offset, len(view))
        while view:
            try:
                count = os.pwrite(self._fd, view, offset)
            except OSError as error:
                raise _cannot_write(self.path, offset, error, needed=self._needed) from error
            view = view[count:]
            offset += count

    def _note_written(self, offset: int, length: int) -> None:
        """Set the disk to work on what was written before, now and then."""
        with self._lock:
            due = self._waiting >= _WRITEBACK_BYTES
            start, stop = self._from, self._to
            if due or not self._waiting:
                self._waiting, self._from, self._to = 0, offset, offset
            self._waiting += length
            self._from, self._to = min(self._from, offset), max(self._to, offset + length)
        if due:
            linux.start_writeback(self._fd, start, stop - start)

    def _write_zeros(self, offset: int, length: int) -> None:
        end = offset + length
        while offset < end:
            piece = _ZEROS[: end - offset]
            self.write_at(offset, piece)
            offset += len(piece)

    def _check_range(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0:
            raise ValueError(f"{length} bytes at {offset}: neither may be negative")
        if self._fd < 0:
            raise TargetError(f"{self.path} was written to after it was closed", path=self.path)
        if self._limit is not None and offset + length > self._limit:
            raise TargetError(
                f"{self.path} ends at byte {self._limit}, {offset + length} were to be written",
                path=self.path,
                offset=offset,
                length=length,
            )

    def _sync(self) -> None:
        try:
            os.fsync(self._fd)
        except OSError as error:
            raise _cannot_write(self.path, None, error, needed=self._needed) from error

    def reader(self) -> Reader:
        """Reads the target back from the medium, past the cache; before or after ``finish``.

        The caller closes it. A device is read whole, also past what was written.
        """
        self._check_range(0, 0)
        self._sync()
        linux.drop_cache(self._fd, device=self._limit is not None)
        return TargetReader(os.dup(self._fd), self.path)

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class DeviceSink(_FdSink):
    """A block device, held exclusively: while it is open nobody can mount it."""

    def __init__(self, fd: int, path: str) -> None:
        self.size = linux.device_size(fd)
        super().__init__(fd, path, limit=self.size)
        self.sector_size = linux.sector_sizes(fd)[0]
        self._zeroes_out = True

    def zero_at(self, offset: int, length: int, /) -> None:
        self._check_range(offset, length)
        first = -(-offset // self.sector_size) * self.sector_size
        last = (offset + length) // self.sector_size * self.sector_size
        if first >= last:
            self._write_zeros(offset, length)
            return
        self._write_zeros(offset, first - offset)
        for start in range(first, last, _ZERO_OUT_STEP):
            self._zero_sectors(start, min(_ZERO_OUT_STEP, last - start))
        self._write_zeros(last, offset + length - last)

    def _zero_sectors(self, offset: int, length: int) -> None:
        if self._zeroes_out:
            try:
                linux.zero_out(self._fd, offset, length)
                return
            except OSError as error:
                if error.errno not in linux.UNSUPPORTED:
                    raise _cannot_write(self.path, offset, error) from error
                self._zeroes_out = False
        self._write_zeros(offset, length)

    def finish(self, size: int) -> None:
        """Durable when this returns. What lies past ``size`` stays as it was."""
        self._check_range(0, size)
        self._sync()
        linux.reread_partitions(self._fd)


class FileSink(_FdSink):
    """A regular file, sparse where the file system can; after ``finish`` exactly ``size`` bytes.

    ``final`` is the name it gets in the end, None for a file that is changed where it lies. A new
    file is empty at first: what was never written needs no zeroing.
    """

    def __init__(self, fd: int, path: str, final: FinalName | None, *, needed: int | None = None) -> None:
        super().__init__(fd, path, limit=None, needed=needed)
        self.leaves_incomplete = final is None
        self._final = final
        self._punches = True
        self._written_end = 0 if final else os.fstat(fd).st_size

    def _note_written(self, offset: int, length: int) -> None:
        super()._note_written(offset, length)
        with self._lock:
            self._written_end = max(self._written_end, offset + length)

    def zero_at(self, offset: int, length: int, /) -> None:
        self._check_range(offset, length)
        with self._lock:
            length = min(length, self._written_end - offset)
        if length <= 0:
            return  # nothing was ever there; finish makes it a hole
        if self._punches:
            try:
                linux.punch_hole(self._fd, offset, length)
                return
            except OSError as error:
                if error.errno not in linux.UNSUPPORTED:
                    raise _cannot_write(self.path, offset, error, needed=self._needed) from error
                self._punches = False
        self._write_zeros(offset, length)

    def set_size(self, size: int) -> None:
        """Make the file ``size`` bytes long; what it gains is a hole."""
        try:
            os.ftruncate(self._fd, size)
        except OSError as error:
            raise _cannot_write(self.path, size, error, needed=self._needed) from error

    def finish(self, size: int) -> None:
        self._check_range(0, size)
        self.set_size(size)
        self._sync()
        if self._final is not None:
            self._final.take()

    def close(self) -> None:
        """Close the file; a new one that was never finished is gone without a trace."""
        if self._fd >= 0 and self._final is not None:
            self._final.abandon()
        super().close()


class StreamSink:
    """A disk written in order to a pipe or standard output. Does not own ``fd``.

    A reader that went away is a TargetError whose ``errno`` is EPIPE.
    """

    def __init__(self, fd: int, name: str = "standard output") -> None:
        linux.widen_pipe(fd)
        self._fd: int | None = fd
        self.path = name
        self.leaves_incomplete = True
        self.position = 0

    def write_at(self, offset: int, data: bytes | memoryview, /) -> None:
        if offset != self.position:
            raise TargetError(
                f"{self.path} is written in order: byte {offset} came where {self.position} was due",
                path=self.path,
                offset=offset,
            )
        view = memoryview(data).cast("B")
        while view:
            count = self._write_some(view)
            view = view[count:]
            self.position += count

    def _write_some(self, view: memoryview) -> int:
        if self._fd is None:
            raise TargetError(f"{self.path} was written to after it was closed", path=self.path)
        while True:
            try:
                return os.write(self._fd, view)
            except BlockingIOError:  # whoever opened it made it non-blocking
                select.select([], [self._fd], [])
            except OSError as error:
                raise _cannot_write(self.path, self.position, error) from error

    def zero_at(self, offset: int, length: int, /) -> None:
        if offset < 0 or length < 0:
            raise ValueError(f"{length} bytes at {offset}: neither may be negative")
        end = offset + length
        while offset < end:
            piece = _ZEROS[: end - offset]
            self.write_at(offset, piece)
            offset += len(piece)

    def finish(self, size: int) -> None:
        if self.position != size:
            said = f"{self.path} got {self.position} of {size} bytes"
            raise TargetError(said, path=self.path, offset=self.position)
        if self._fd is None:
            return
        try:
            os.fsync(self._fd)
        except OSError as error:
            if error.errno not in linux.UNSUPPORTED:  # a pipe cannot be synced
                raise _cannot_write(self.path, None, error) from error

    def reader(self) -> Reader:
        raise UsageError(f"{self.path} cannot be read back", hint="leave out --verify, or name a file")

    def close(self) -> None:
        self._fd = None


def _cannot_write(path: str, offset: int | None, error: OSError, *, needed: int | None = None) -> TargetError:
    where = "" if offset is None else f" at byte {offset}"
    reason, hint = os.strerror(error.errno or 0), ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        reason, hint = "no space is left", _ROOM_HINT
        if needed is not None:
            reason += f" for the {needed} bytes it needs"
    elif error.errno == errno.EFBIG:
        hint = "its file system does not take files of that size"
    said = f"{path} cannot be written{where}: {reason}"
    return TargetError(said, hint=hint, path=path, offset=offset, needed=needed, errno=error.errno)
