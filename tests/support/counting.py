"""A store that counts what is opened and read, and a cache in a dict: speed seen without a clock."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from imagefs.interfaces import Lock, ObjectInfo, ObjectStore, ObjectWriter, Reader


@dataclass
class CountingReader:
    """Another Reader, every read of it in ``reads`` as (name, offset, length)."""

    reader: Reader
    name: str
    reads: list[tuple[str, int, int]]

    @property
    def size(self) -> int:
        return self.reader.size

    def read_at(self, offset: int, length: int, /) -> bytes:
        self.reads.append((self.name, offset, length))
        return self.reader.read_at(offset, length)

    def close(self) -> None:
        self.reader.close()


@dataclass
class CountingStore:
    """An ObjectStore of which ``opened`` names what was opened, ``reads`` what was read."""

    store: ObjectStore
    opened: list[str] = field(default_factory=list)
    reads: list[tuple[str, int, int]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return self.store.url

    def forget(self) -> None:
        self.opened.clear()
        self.reads.clear()

    def bytes_read(self) -> int:
        return sum(length for _, _, length in self.reads)

    def open(self, name: str, /) -> Reader:
        self.opened.append(name)
        return CountingReader(self.store.open(name), name, self.reads)

    def list(self) -> Iterator[ObjectInfo]:
        return self.store.list()

    def partials(self) -> Iterator[ObjectInfo]:
        return self.store.partials()

    def create(self, name: str, /) -> ObjectWriter:
        return self.store.create(name)

    def open_partial(self, name: str, /) -> Reader:
        return self.store.open_partial(name)

    def reopen(self, name: str, size: int, /) -> ObjectWriter:
        return self.store.reopen(name, size)

    def delete(self, name: str, /) -> None:
        self.store.delete(name)

    def lock(self) -> Lock:
        return self.store.lock()

    def free_bytes(self) -> int | None:
        return self.store.free_bytes()


@dataclass
class DictCache:
    """A DerivedCache that keeps everything; ``puts`` names what was written."""

    kept: dict[str, bytes] = field(default_factory=dict)
    puts: list[str] = field(default_factory=list)

    def get(self, name: str, limit: int, /) -> bytes | None:
        data = self.kept.get(name)
        return data if data is not None and len(data) <= limit else None

    def put(self, name: str, parts: Iterable[bytes], /) -> None:
        self.puts.append(name)
        self.kept[name] = b"".join(parts)

    def only(self, ending: str) -> str:
        """The one name that ends so."""
        (name,) = (name for name in self.kept if name.endswith(ending))
        return name
