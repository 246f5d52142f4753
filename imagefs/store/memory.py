"""An ObjectStore in memory: for tests, and for whoever wants an image that never touches a disk."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator

from imagefs.block.views import BytesReader
from imagefs.errors import StoreError
from imagefs.interfaces import ObjectInfo


class MemoryStore:
    """Objects in a dict. ``url`` is ``memory:<number>``, one number a store."""

    _numbers = itertools.count(1)

    def __init__(self) -> None:
        self.url = f"memory:{next(self._numbers)}"
        self.objects: dict[str, bytes] = {}
        self.unfinished: dict[str, bytearray] = {}
        self._mutex = threading.Lock()
        self._locked = False

    def list(self) -> Iterator[ObjectInfo]:
        return iter([ObjectInfo(name, len(data), 0) for name, data in sorted(self.objects.items())])

    def partials(self) -> Iterator[ObjectInfo]:
        return iter([ObjectInfo(name, len(data), 0) for name, data in sorted(self.unfinished.items())])

    def open(self, name: str, /) -> BytesReader:
        if name not in self.objects:
            raise StoreError(f"there is no object {name}", path=name)
        return BytesReader(self.objects[name])

    def create(self, name: str, /) -> MemoryWriter:
        if name in self.objects or name in self.unfinished:
            raise StoreError(f"object {name} exists already", path=name)
        self.unfinished[name] = bytearray()
        return MemoryWriter(self, name)

    def open_partial(self, name: str, /) -> BytesReader:
        if name not in self.unfinished:
            raise StoreError(f"there is no unfinished object {name}", path=name)
        return BytesReader(bytes(self.unfinished[name]))

    def reopen(self, name: str, size: int, /) -> MemoryWriter:
        if name not in self.unfinished:
            raise StoreError(f"there is no unfinished object {name}", path=name)
        del self.unfinished[name][size:]
        return MemoryWriter(self, name)

    def delete(self, name: str, /) -> None:
        if self.objects.pop(name, None) is None and self.unfinished.pop(name, None) is None:
            raise StoreError(f"there is no object {name}", path=name)

    def lock(self) -> MemoryLock:
        with self._mutex:
            if self._locked:
                raise StoreError(f"another capture is at work in {self.url}", hint="wait for it to end")
            self._locked = True
        return MemoryLock(self)

    def free_bytes(self) -> int | None:
        return None


class MemoryLock:
    def __init__(self, store: MemoryStore) -> None:
        self._store: MemoryStore | None = store

    def release(self) -> None:
        if self._store is not None:
            self._store._locked = False
            self._store = None


class MemoryWriter:
    """Collects what is appended; ``commit`` makes it an object."""

    def __init__(self, store: MemoryStore, name: str) -> None:
        self._store = store
        self._name = name
        self._done = False

    @property
    def position(self) -> int:
        return len(self._store.unfinished[self._name])

    def append(self, data: bytes | memoryview, /) -> None:
        if self._done:
            raise StoreError(f"object {self._name} is finished", path=self._name)
        self._store.unfinished[self._name] += data

    def sync(self) -> None:
        pass

    def suspend(self) -> None:
        self._done = True

    def commit(self) -> None:
        if self._done:
            raise StoreError(f"object {self._name} is finished", path=self._name)
        self._done = True
        if self._name in self._store.objects:
            del self._store.unfinished[self._name]
            raise StoreError(f"object {self._name} exists already", path=self._name)
        self._store.objects[self._name] = bytes(self._store.unfinished.pop(self._name))

    def abort(self) -> None:
        if not self._done:
            self._done = True
            self._store.unfinished.pop(self._name, None)
