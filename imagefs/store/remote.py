"""A read-only ObjectStore over the files of somebody else's client: whatever lists, tells sizes and gives ranges.

That is what file systems of fsspec do (``ls``, ``info``, ``cat_file``), over HTTP, in object stores, in memory.
Knows none of them by name. Small reads come out of blocks that are kept, because each request takes its time.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, NoReturn, Protocol

from imagefs.block.cache import BlockCache
from imagefs.block.views import clamp
from imagefs.errors import StoreError
from imagefs.interfaces import Lock, ObjectInfo, ObjectWriter

#: Reads up to this many bytes are answered from blocks of this size.
BLOCK = 256 * 1024
#: Blocks kept of all objects of one store, in bytes.
KEPT = 32 * 1024 * 1024

Blocks = BlockCache[tuple[str, int], bytes]


class RemoteFiles(Protocol):
    """The part of ``fsspec.AbstractFileSystem`` that is used. It may raise anything."""

    def ls(self, path: str, detail: bool = True) -> list[dict[str, Any]]: ...

    def info(self, path: str) -> dict[str, Any]: ...

    def cat_file(self, path: str, start: int | None = None, end: int | None = None) -> bytes: ...


class RemoteStore:
    """The objects of folder ``folder`` whose names end in ``suffix``. ``url`` names it to people."""

    def __init__(self, files: RemoteFiles, folder: str, *, url: str, suffix: str = "") -> None:
        self.url = url
        self._files = files
        self._folder = folder.rstrip("/")
        self._suffix = suffix
        self._blocks: Blocks = BlockCache(KEPT, len)

    def list(self) -> Iterator[ObjectInfo]:
        """Raises StoreError, also for a place that cannot be listed."""
        try:
            rows = self._files.ls(self._folder, detail=True)
        except FileNotFoundError:
            rows = []
        except Exception as error:  # whatever the client's own errors are
            raise _failed("list", self.url, error) from error
        for name in sorted({str(row["name"]).rstrip("/").rsplit("/", 1)[-1] for row in rows}):
            if name.endswith(self._suffix) and not name.startswith("."):
                yield ObjectInfo(name, self._size(name), 0)

    def partials(self) -> Iterator[ObjectInfo]:
        return iter(())

    def open(self, name: str, /) -> RemoteReader:
        return RemoteReader(self._files, self._path(name), self._size(name), self._blocks)

    def _path(self, name: str) -> str:
        return f"{self._folder}/{name}"

    def _size(self, name: str) -> int:
        try:
            size = self._files.info(self._path(name))["size"]
        except Exception as error:
            raise _failed("open", f"{self.url}/{name}", error) from error
        if not isinstance(size, int):
            raise StoreError(f"{self.url}/{name} does not tell its size", path=name)
        return size

    def create(self, name: str, /) -> ObjectWriter:
        self._refuse()

    def open_partial(self, name: str, /) -> RemoteReader:
        self._refuse()

    def reopen(self, name: str, size: int, /) -> ObjectWriter:
        self._refuse()

    def delete(self, name: str, /) -> None:
        self._refuse()

    def lock(self) -> Lock:
        self._refuse()

    def free_bytes(self) -> int | None:
        return None

    def _refuse(self) -> NoReturn:
        raise StoreError(f"{self.url} is only read", hint="write to a folder, and copy the images there")


class RemoteReader:
    """One object, read by ranges. Thread-safe as far as the client is."""

    def __init__(self, files: RemoteFiles, path: str, size: int, blocks: Blocks) -> None:
        self.size = size
        self._files = files
        self._path = path
        self._blocks = blocks
        self._closed = False

    def read_at(self, offset: int, length: int, /) -> bytes:
        count = clamp(self.size, offset, length)
        if self._closed:
            raise StoreError(f"{self._path} is closed", path=self._path)
        if not count:
            return b""
        end = offset + count
        if count > BLOCK:
            return self._fetch(offset, end)
        parts = []
        for start in range(offset - offset % BLOCK, end, BLOCK):
            stop = min(start + BLOCK, self.size)
            block = self._blocks.get((self._path, start), partial(self._fetch, start, stop))
            parts.append(block[max(0, offset - start) : end - start])
        return b"".join(parts)

    def _fetch(self, start: int, end: int) -> bytes:
        try:
            data = self._files.cat_file(self._path, start=start, end=end)
        except Exception as error:
            raise _failed("read", self._path, error) from error
        if len(data) != end - start:
            raise StoreError(
                f"{self._path} gave {len(data)} bytes where {end - start} were asked for",
                hint="the server may not know ranges",
                path=self._path,
            )
        return bytes(data)

    def close(self) -> None:
        self._closed = True


def _failed(what: str, path: str, error: Exception) -> StoreError:
    return StoreError(f"cannot {what} {path}: {type(error).__name__}: {error}", path=path)
