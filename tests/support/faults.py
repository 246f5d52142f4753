"""Stores that fail: at the N-th call, counted and never by dice.

``FailingStore`` wraps any ObjectStore. With ``kill`` nothing works after the fault, as after a power
cut; without, only that one call fails and clean-up works. ``DyingOs`` does the same to the calls of
the ``os`` module that the local store makes.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import Any

from imagefs.errors import StoreError, StoreFull
from imagefs.interfaces import Lock, ObjectInfo, ObjectStore, ObjectWriter, Reader


class PowerCut(BaseException):
    """The machine is gone; no handler of the code under test may take it for an error."""


class Fuse:
    """Blows at the ``at``-th call (from 1); ``calls`` names what was called so far."""

    def __init__(self, at: int, *, kill: bool, error: Exception | None = None) -> None:
        self.at = at
        self.kill = kill
        self.error = error or StoreError("the store failed, as the test wants it")
        self.calls: list[str] = []
        self.blown = False

    def __call__(self, name: str) -> None:
        if self.blown and self.kill:
            raise PowerCut(name)
        self.calls.append(name)
        if len(self.calls) == self.at:
            self.blown = True
            raise PowerCut(name) if self.kill else self.error


class FailingStore:
    """An ObjectStore whose calls go through a fuse first."""

    def __init__(self, store: ObjectStore, fuse: Fuse) -> None:
        self._store = store
        self._fuse = fuse
        self.url = store.url

    def list(self) -> Iterator[ObjectInfo]:
        self._fuse("list")
        return self._store.list()

    def partials(self) -> Iterator[ObjectInfo]:
        self._fuse("partials")
        return self._store.partials()

    def open(self, name: str, /) -> Reader:
        self._fuse("open")
        return self._store.open(name)

    def create(self, name: str, /) -> ObjectWriter:
        self._fuse("create")
        return FailingWriter(self._store.create(name), self._fuse)

    def open_partial(self, name: str, /) -> Reader:
        self._fuse("open_partial")
        return self._store.open_partial(name)

    def reopen(self, name: str, size: int, /) -> ObjectWriter:
        self._fuse("reopen")
        return FailingWriter(self._store.reopen(name, size), self._fuse)

    def delete(self, name: str, /) -> None:
        self._fuse("delete")
        self._store.delete(name)

    def lock(self) -> Lock:
        self._fuse("lock")
        return self._store.lock()

    def free_bytes(self) -> int | None:
        return self._store.free_bytes()


class FailingWriter:
    """An ObjectWriter whose calls go through a fuse first; poisoned by a failure, as the contract asks."""

    def __init__(self, out: ObjectWriter, fuse: Fuse) -> None:
        self._out = out
        self._fuse = fuse
        self._broken = False

    @property
    def position(self) -> int:
        return self._out.position

    def append(self, data: bytes | memoryview, /) -> None:
        self._guarded("append")
        self._out.append(data)

    def sync(self) -> None:
        self._guarded("sync")
        self._out.sync()

    def suspend(self) -> None:
        if self._fuse.blown and self._fuse.kill:
            raise PowerCut("suspend")
        self._out.suspend()

    def commit(self) -> None:
        self._guarded("commit")
        self._out.commit()

    def abort(self) -> None:
        if self._fuse.blown and self._fuse.kill:
            raise PowerCut("abort")
        self._out.abort()

    def _guarded(self, name: str) -> None:
        if self._broken:
            raise StoreError("used after a failure")
        try:
            self._fuse(name)
        except BaseException:
            self._broken = True
            raise


def no_space() -> StoreFull:
    return StoreFull("no space left in the set", hint="free some space")


class DyingOs:
    """Stands in for the ``os`` module in one place: the calls in ``WATCHED`` go through a fuse.

    Descriptors that the dead process would have lost are closed by ``bury``.
    """

    WATCHED = (
        "open",
        "write",
        "writev",
        "fsync",
        "fdatasync",
        "fchmod",
        "chown",
        "link",
        "unlink",
        "rename",
        "close",
        "mkdir",
    )

    def __init__(self, fuse: Fuse, **instead: Any) -> None:
        self._fuse = fuse
        self._instead = instead
        self._fds: set[int] = set()

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in self.WATCHED:
            return real

        def call(*args: Any, **keywords: Any) -> Any:
            self._fuse(name)
            result = self._instead.get(name, real)(*args, **keywords)
            if name == "open":
                self._fds.add(result)
            elif name == "close":
                self._fds.discard(args[0])
            return result

        return call

    def bury(self) -> None:
        """What the kernel does for a process that is gone."""
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()


def refuse(number: int) -> Any:
    """A system call that always fails with ``number``."""

    def call(*_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return call


NOT_PERMITTED = refuse(errno.EPERM)
