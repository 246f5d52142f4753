"""What is restored and cloned to: everything that can be checked before the first byte, then a Sink.

A file is written beside its final name, as ``.NAME.partial``, and gets the name in ``finish``: until
then whatever was there before stays as it was. ``in_place`` instead changes an existing file where it
lies, for those who rewrite only what differs. Asks nobody; ``overwrite`` is the caller's yes.
"""

from __future__ import annotations

import errno
import os
import shlex
import stat
from collections.abc import Sequence
from dataclasses import dataclass

from imagefs.block import linux
from imagefs.block.naming import FinalName
from imagefs.block.sinks import DeviceSink, FileSink, StreamSink
from imagefs.block.sysfs import HOST, System
from imagefs.block.usage import check_target_free, overlaps
from imagefs.errors import TargetError, UsageError

__all__ = ["DeviceSink", "FileSink", "StreamSink", "TargetSink", "open_target"]

TargetSink = FileSink | DeviceSink | StreamSink


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What the caller of open_target asked for."""

    path: str
    size: int | None
    overwrite: bool
    in_place: bool
    needed: int
    system: System


def open_target(
    path: str,
    size: int | None,
    *,
    overwrite: bool = False,
    in_place: bool = False,
    data_bytes: int | None = None,
    sources: Sequence[str] = (),
    system: System = HOST,
) -> TargetSink:
    """Open ``path`` for writing a disk of ``size`` bytes (None when only its end will tell).

    ``data_bytes`` is how much of it is not zeros and so has to find room, ``size`` if not given.
    ``sources`` are files and devices that are read meanwhile and must not be hit. ``-`` is
    standard output. An existing file that is not empty, and any device, without ``overwrite`` is a
    TargetError with ``would_overwrite=True`` in its data and nothing touched.
    """
    if path == "-":
        return StreamSink(1)
    info = system.status(path)
    _check_kind(path, info)
    for source in sources:
        if overlaps(source, path, system=system):
            said = f"{path} cannot be the target: it holds {source}, which is read, or lies on it"
            raise TargetError(said, hint="name another target", path=path, source=source)
    needed = (size or 0) if data_bytes is None else data_bytes
    wanted = _Wanted(path, size, overwrite, in_place, needed, system)
    if info and stat.S_ISBLK(info.st_mode):
        return _open_device(wanted)
    return _open_file(wanted)


def _check_kind(path: str, info: os.stat_result | None) -> None:
    if not path:
        raise UsageError("the target has no name")
    if path.endswith("/") or (info and stat.S_ISDIR(info.st_mode)):
        hint = "name a file or a device; single files come out of an image with: imagefs get"
        raise UsageError(f"{path} is a folder, a disk cannot be written into it", hint=hint, path=path)
    if info and not (stat.S_ISBLK(info.st_mode) or stat.S_ISREG(info.st_mode)):
        hint = "use - to write to a pipe"
        raise TargetError(f"{path} is neither a file nor a block device", hint=hint, path=path)


def _open_device(wanted: _Wanted) -> DeviceSink:
    path, size = wanted.path, wanted.size
    check_target_free(path, system=wanted.system)
    try:
        fd = os.open(path, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)
    except OSError as error:
        raise _cannot_open(path, error) from error
    try:
        sink = DeviceSink(fd, path)
        if linux.is_read_only(fd):
            raise TargetError(f"{path} is read-only", hint=f"try: blockdev --setrw {path}", path=path)
        if size is not None and size > sink.size:
            said = f"{path} is too small: it has {sink.size} bytes, {size} are needed"
            raise TargetError(said, hint="take a larger one", path=path, available=sink.size, needed=size)
        if not wanted.overwrite:
            raise _would_overwrite(path, sink.size)
    except BaseException:
        os.close(fd)
        raise
    return sink


def _open_file(wanted: _Wanted) -> FileSink:
    path = wanted.path
    real = os.path.realpath(path)  # a symbolic link stays one: the file behind it is replaced
    _check_place(path, real)
    old = wanted.system.status(real)
    if old is not None:
        check_target_free(path, system=wanted.system)
        if old.st_size and not wanted.overwrite:
            raise _would_overwrite(path, old.st_size)
    if wanted.in_place and old is not None:
        _check_room(path, real, wanted.needed - old.st_blocks * 512)
        return _change_existing(wanted)
    _check_room(path, real, wanted.needed)
    final = FinalName(real, path, overwrite=wanted.overwrite or old is not None)
    sink = FileSink(final.open(), path, final, needed=wanted.needed)
    try:
        sink.set_size(wanted.size or 0)
    except BaseException:
        sink.close()
        raise
    return sink


def _change_existing(wanted: _Wanted) -> FileSink:
    try:
        fd = os.open(wanted.path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise _cannot_open(wanted.path, error) from error
    return FileSink(fd, wanted.path, None, needed=wanted.needed)


def _check_place(path: str, real: str) -> None:
    folder = os.path.dirname(real)
    if real.startswith("/dev/") and not real.startswith("/dev/shm/"):
        # a mistyped device would become a file in memory
        raise TargetError(f"there is no device {path}", hint="lsblk lists those there are", path=path)
    if not os.path.isdir(folder):
        said = f"{path} cannot be made: there is no folder {folder}"
        raise TargetError(said, hint=f"make it with: mkdir -p {shlex.quote(folder)}", path=path)


def _check_room(path: str, real: str, needed: int) -> None:
    folder = os.path.dirname(real)
    try:
        free = os.statvfs(folder)
    except OSError as error:
        raise _cannot_open(path, error) from error
    available = free.f_bavail * free.f_frsize
    if needed > available:
        raise TargetError(
            f"{path} does not fit: {needed} bytes are needed, {available} are free in {folder}",
            hint="free some space, or name a target on another disk",
            path=path,
            needed=needed,
            available=available,
        )


def _would_overwrite(path: str, size: int) -> TargetError:
    return TargetError(
        f"{path} holds {size} bytes that would be overwritten",
        hint="add --yes if they may go",
        path=path,
        size=size,
        would_overwrite=True,
    )


def _cannot_open(path: str, error: OSError) -> TargetError:
    said = {
        errno.EBUSY: (f"{path} is in use by another program", "lsof and lsblk show who has it"),
        errno.EACCES: (f"{path} may not be written by you", "run it with sudo"),
        errno.EPERM: (f"{path} may not be written by you", "run it with sudo"),
        errno.EROFS: (f"{path} is read-only", ""),
        errno.ENOMEDIUM: (f"{path} is empty: no medium is in it", ""),
        errno.ENXIO: (f"{path} is a name without a device behind it", "is it plugged in?"),
    }
    otherwise = (f"{path} cannot be opened: {os.strerror(error.errno or 0)}", "")
    message, hint = said.get(error.errno or 0, otherwise)
    return TargetError(message, hint=hint, path=path, errno=error.errno)
