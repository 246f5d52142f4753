"""A DerivedCache in a folder of the user's: bounded, and never worth an error.

Only what belongs to this user, and can be written by nobody else, is believed. What was used longest ago
goes first when there is too much.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

#: Bytes of all files in the folder.
MAX_BYTES = 512 << 20
FRESH = ".new"
#: An unfinished file older than this was left by a process that died.
_ABANDONED = 3600


class CacheFolder:
    """Bytes by name in ``folder``, which is made when first written to. Safe between threads and processes."""

    def __init__(self, folder: str | Path, *, max_bytes: int = MAX_BYTES) -> None:
        self.folder = Path(folder)
        self._max_bytes = max_bytes

    def get(self, name: str, limit: int, /) -> bytes | None:
        with contextlib.suppress(OSError), self._opened() as folder:
            flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            with open(os.open(name, flags, dir_fd=folder), "rb", buffering=0) as file:
                facts = os.fstat(file.fileno())
                if not (stat.S_ISREG(facts.st_mode) and _is_ours(facts) and facts.st_size <= limit):
                    return None
                data = file.read(facts.st_size)
                with contextlib.suppress(OSError):
                    os.utime(file.fileno())  # eviction goes by it
                return data
        return None

    def put(self, name: str, parts: Iterable[bytes], /) -> None:
        with contextlib.suppress(OSError):
            self._make()
            with self._opened() as folder:
                _write(folder, name, parts)
                self._evict(folder, keep=name)

    def _make(self) -> None:
        """Root makes nothing in the home of another, who could not use it then (sudo may keep HOME)."""
        above = next(place for place in (self.folder, *self.folder.parents) if place.exists())
        if os.geteuid() == 0 and above.stat().st_uid != 0:
            raise PermissionError(f"{above} is another user's")
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int]:
        """The folder's descriptor; PermissionError when others could have put something into it."""
        folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if not _is_ours(os.fstat(folder)):
                raise PermissionError(f"{self.folder} is not this user's alone")
            yield folder
        finally:
            os.close(folder)

    def _evict(self, folder: int, *, keep: str) -> None:
        """Remove the longest unused until the rest fits, and what dead processes left."""
        found, total, now = [], 0, time.time()
        with os.scandir(folder) as entries:
            for entry in entries:
                facts = entry.stat(follow_symlinks=False)
                if entry.name.endswith(FRESH) and facts.st_mtime > now - _ABANDONED:
                    continue
                age = 0.0 if entry.name.endswith(FRESH) else facts.st_mtime
                found.append((entry.name == keep, age, entry.name, facts.st_size))
                total += facts.st_size
        for _, age, name, size in sorted(found):
            if age and total <= self._max_bytes:
                break
            with contextlib.suppress(FileNotFoundError):  # another evicts too
                os.unlink(name, dir_fd=folder)
            total -= size


def _is_ours(facts: os.stat_result) -> bool:
    return facts.st_uid == os.geteuid() and not facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _write(folder: int, name: str, parts: Iterable[bytes]) -> None:
    """Under a name of its own first, so that it appears whole. A torn one fails its digest: no need to sync."""
    fresh = f"{name}.{secrets.token_hex(8)}{FRESH}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(fresh, flags, 0o600, dir_fd=folder)
    try:
        for part in parts:
            _write_all(fd, part)
        os.rename(fresh, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):  # a signal, when it had its name already
            os.unlink(fresh, dir_fd=folder)
        raise
    finally:
        os.close(fd)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
