"""What is captured and cloned from: block devices, raw files and streams, opened read-only.

Knows nothing of what the bytes mean, nor who else uses the device (usage.py).
"""

from __future__ import annotations

import errno
import os
import select
import stat
from collections.abc import Iterator
from typing import ClassVar

from imagefs.block import linux
from imagefs.block.identity import SourceIdentity, identify_source
from imagefs.block.views import clamp
from imagefs.errors import ImagefsError, SourceError
from imagefs.interfaces import Extent, State

#: The kernel moves at most this much in one call.
_MOST = 1 << 30

_SUDO = "run it with sudo, or become a member of the group that owns it"

_KINDS = (
    (stat.S_ISDIR, "a folder", "name the device or the image file itself"),
    (stat.S_ISFIFO, "a pipe", "feed it in on standard input with - as the source"),
    (stat.S_ISCHR, "a character device", "name a block device such as /dev/sda"),
    (stat.S_ISSOCK, "a socket", "feed it in on standard input with - as the source"),
)


class DeviceReader:
    """A Reader over an open regular file or block device, which it owns.

    Knows the holes of a regular file (``extents``); a device is one stretch that may hold data.
    Errors are SourceError with ``path``, ``offset`` and, where the kernel gave one, ``errno``.
    """

    failure: ClassVar[type[ImagefsError]] = SourceError

    def __init__(self, fd: int, path: str, *, size: int | None = None) -> None:
        info = os.fstat(fd)
        self.path = path
        self.is_device = stat.S_ISBLK(info.st_mode)
        self.sector_size, self.physical_sector_size = 512, 512
        if self.is_device:
            self.sector_size, self.physical_sector_size = linux.sector_sizes(fd)
        self.size = self._length(fd) if size is None else size
        self._seen = info
        self._fd = fd

    @property
    def identity(self) -> SourceIdentity:
        return identify_source(self.path, self.size)

    def is_same(self, info: os.stat_result) -> bool:
        """Whether ``info`` is of the very file or device that was opened."""
        if self.is_device:
            return stat.S_ISBLK(info.st_mode) and info.st_rdev == self._seen.st_rdev
        return (info.st_dev, info.st_ino) == (self._seen.st_dev, self._seen.st_ino)

    @property
    def mtime_ns(self) -> int:
        """When the file was last written to, as of its opening; ns since 1970."""
        return self._seen.st_mtime_ns

    @property
    def read_only(self) -> bool:
        """Whether the kernel lets nobody write to the device (``blockdev --getro``)."""
        return linux.is_read_only(self._open_fd())

    def _length(self, fd: int) -> int:
        return linux.device_size(fd) if self.is_device else os.fstat(fd).st_size

    def read_at(self, offset: int, length: int, /) -> bytes:
        rest = clamp(self.size, offset, length)
        fd = self._open_fd()
        parts = []
        while rest:
            data = self._read_some(fd, offset, min(rest, _MOST))
            parts.append(data)
            offset += len(data)
            rest -= len(data)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _read_some(self, fd: int, offset: int, length: int) -> bytes:
        try:
            data = os.pread(fd, length, offset)
        except OSError as error:
            raise self.failure(
                f"{self.path} cannot be read at byte {offset}: {_reason(error)}",
                path=self.path,
                offset=offset,
                length=length,
                errno=error.errno,
            ) from error
        if not data:
            raise self.failure(
                f"{self.path} ended early, at byte {offset} of {self.size}: it shrank while it was read",
                path=self.path,
                offset=offset,
                length=length,
            )
        return data

    def extents(self, offset: int, length: int, /) -> Iterator[Extent]:
        end = offset + clamp(self.size, offset, length)
        fd = self._open_fd()
        if self.is_device:
            if offset < end:
                yield Extent(State.STORED, offset, end - offset)
            return
        while offset < end:
            data = _seek(fd, offset, os.SEEK_DATA, end)
            if data > offset:
                yield Extent(State.ZERO, offset, data - offset)
            offset = _data_end(fd, data, end)
            if data < end:
                yield Extent(State.STORED, data, offset - data)

    @property
    def place(self) -> str:
        """A path under which another program finds the same bytes."""
        return self.path

    def check_unchanged(self, *, content: bool = True) -> None:
        """SourceError when the source is not what it was when it was opened; without ``content`` it may
        have been written to."""
        try:
            size = self._length(self._open_fd())
            now = os.stat(self.path)
        except OSError as error:
            raise self._changed(f"cannot be looked at any more: {_reason(error)}") from error
        if size != self.size:
            raise self._changed(f"changed its size from {self.size} to {size} bytes")
        if self.is_device:
            if now.st_rdev != self._seen.st_rdev:
                raise self._changed("is another device now")
        elif (now.st_dev, now.st_ino) != (self._seen.st_dev, self._seen.st_ino):
            raise self._changed("was replaced by another file")
        elif content and now.st_mtime_ns != self._seen.st_mtime_ns:
            raise self._changed("was written to")

    def _changed(self, what: str) -> ImagefsError:
        hint = "stop what writes to it and start again"
        return self.failure(f"{self.path} {what} while it was read", hint=hint, path=self.path)

    def _open_fd(self) -> int:
        if self._fd < 0:
            raise self.failure(f"{self.path} was read after it was closed", path=self.path)
        return self._fd

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _seek(fd: int, offset: int, whence: int, end: int) -> int:
    """Where data or a hole begins at or after ``offset``, at most ``end``.

    lseek moves a position that nobody uses, so threads do not get in each other's way. A file
    system that does not know the request leaves everything up to ``end`` as data.
    """
    try:
        return min(max(os.lseek(fd, offset, whence), offset), end)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return end
        return offset if whence == os.SEEK_DATA else end


def _data_end(fd: int, offset: int, end: int) -> int:
    """Where the data at ``offset`` ends. Some file systems cut one stretch of data in several."""
    while offset < end and _seek(fd, offset, os.SEEK_DATA, end) == offset:
        hole = _seek(fd, offset, os.SEEK_HOLE, end)
        if hole == offset:  # data and a hole in one place: it is being written; promise nothing
            return end
        offset = hole
    return offset


def open_source(path: str) -> DeviceReader:
    """Open a block device or a regular file to read; SourceError in plain words where it cannot be."""
    try:
        # Looked at first: opening a tape rewinds it, opening a pipe waits for a writer.
        _check_kind(path, os.stat(path).st_mode)
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise _cannot_open(path, error) from error
    try:
        _check_kind(path, os.fstat(fd).st_mode)
        reader = DeviceReader(fd, path)
        if reader.is_device and reader.size == 0:
            raise SourceError(f"{path} is empty: no medium is in it", path=path)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
    except OSError as error:
        os.close(fd)
        raise _cannot_open(path, error) from error
    except BaseException:
        os.close(fd)
        raise
    return reader


def _check_kind(path: str, mode: int) -> None:
    for is_kind, kind, hint in _KINDS:
        if is_kind(mode):
            raise SourceError(f"{path} is {kind}, not a disk", hint=hint, path=path)


def _cannot_open(path: str, error: OSError | ValueError) -> SourceError:
    number = error.errno if isinstance(error, OSError) else None
    said = {
        errno.ENOENT: (f"{path} does not exist", ""),
        errno.EACCES: (f"{path} may not be read by you", _SUDO),
        errno.EPERM: (f"{path} may not be read by you", _SUDO),
        errno.ENOMEDIUM: (f"{path} is empty: no medium is in it", ""),
        errno.ENXIO: (f"{path} is a name without a device behind it", "is it plugged in?"),
    }
    message, hint = said.get(number or 0, (f"{path} cannot be opened: {_reason(error)}", ""))
    return SourceError(message, hint=hint, path=path, errno=number)


def _reason(error: OSError | ValueError) -> str:
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno)
    return str(error)


class StreamSource:
    """A disk that arrives in order and once, such as standard input; its size is known at its end.

    Does not own ``fd``. ``position`` counts the bytes handed out so far.
    """

    def __init__(self, fd: int, name: str = "standard input") -> None:
        linux.widen_pipe(fd)
        self._fd = fd
        self.path = name
        self.position = 0

    def read(self, length: int) -> bytes:
        """The next ``length`` bytes; fewer, or none, only at the end."""
        if length < 0:
            raise ValueError(f"read({length}): may not be negative")
        parts = []
        while length:
            data = self._read_some(min(length, _MOST))
            if not data:
                break
            parts.append(data)
            length -= len(data)
            self.position += len(data)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _read_some(self, length: int) -> bytes:
        while True:
            try:
                return os.read(self._fd, length)
            except BlockingIOError:  # whoever opened it made it non-blocking
                select.select([self._fd], [], [])
            except OSError as error:
                raise SourceError(
                    f"{self.path} cannot be read after byte {self.position}: {_reason(error)}",
                    path=self.path,
                    offset=self.position,
                    errno=error.errno,
                ) from error
