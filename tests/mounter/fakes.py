"""Readers and file systems in memory for the mount to show, some of them damaged on purpose."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from itertools import pairwise

from imagefs.block.views import BytesReader, clamp
from imagefs.errors import BrowseError, IntegrityError, PathNotFound
from imagefs.interfaces import Entry, EntryType, Extent, FileSystem, Reader, State
from mounter.tree import MountSpec, VolumeSpec

MTIME = 1_700_000_000_123_456_789


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


class BadReader:
    """Bytes with a range that fails its check, as a damaged chunk does."""

    def __init__(self, data: bytes, bad: range, chunk: int = 5) -> None:
        self.data, self.bad, self.chunk = data, bad, chunk
        self.size = len(data)
        self.closed = 0

    def read_at(self, offset: int, length: int, /) -> bytes:
        count = clamp(self.size, offset, length)
        if offset < self.bad.stop and offset + count > self.bad.start:
            raise IntegrityError(
                f"chunk {self.chunk} fails its check", image="3f2a", chunk=self.chunk, offset=self.bad.start
            )
        return self.data[offset : offset + count]

    def close(self) -> None:
        self.closed += 1


class ShortReader(BytesReader):
    """Breaks the Reader contract: comes back one byte short."""

    def read_at(self, offset: int, length: int, /) -> bytes:
        return super().read_at(offset, length)[:-1]


class SlowReader(BytesReader):
    """Takes its time, so that a reader can be killed in the middle."""

    def read_at(self, offset: int, length: int, /) -> bytes:
        time.sleep(0.3)
        return super().read_at(offset, length)


class SparseReader(BytesReader):
    """Knows that it holds data in some places only: ``data`` is {offset: bytes}."""

    def __init__(self, size: int, data: dict[int, bytes]) -> None:
        content = bytearray(size)
        for offset, part in data.items():
            content[offset : offset + len(part)] = part
        super().__init__(bytes(content))
        self.stored = sorted((offset, len(part)) for offset, part in data.items())

    def extents(self, offset: int, length: int, /) -> Iterator[Extent]:
        edges = [0]
        for start, count in self.stored:
            edges += [start, start + count]
        edges.append(self.size)
        end = offset + clamp(self.size, offset, length)
        for at, (first, last) in enumerate(pairwise(edges)):
            low, high = max(first, offset), min(last, end)
            if low < high:
                yield Extent(State.STORED if at % 2 else State.ZERO, low, high - low)


class CountingReader(BytesReader):
    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.closed = 0

    def close(self) -> None:
        self.closed += 1
        super().close()


class FakeFileSystem:
    """A file system given as ``{path: Entry}`` and ``{path: bytes}``; counts what it is asked."""

    kind, label, used_bytes = "fake", "", None

    def __init__(
        self,
        entries: list[Entry],
        content: dict[bytes, bytes] | None = None,
        *,
        case_insensitive: bool = False,
    ) -> None:
        self.entries = {entry.path: entry for entry in entries}
        self.entries.setdefault(b"/", directory(b"/", inode="2"))
        self.content = content or {}
        self.case_insensitive = case_insensitive
        self.lookups: list[bytes] = []
        self.listed: list[bytes] = []
        self.opened: list[CountingReader] = []
        self.broken: dict[bytes, Exception] = {}
        self.unlistable: set[bytes] = set()  # listing their folder fails when it comes to them
        self.closed = 0

    def root(self) -> Entry:
        return self.entries[b"/"]

    def lookup(self, path: bytes, /) -> Entry:
        self.lookups.append(path)
        if path in self.entries:
            return self.entries[path]
        if self.case_insensitive:
            for known, entry in self.entries.items():
                if known.lower() == path.lower():
                    return entry
        raise PathNotFound(f"no {path!r}", path=path)

    def children(self, entry: Entry, /) -> Iterator[Entry]:
        self.listed.append(entry.path)
        prefix = entry.path.rstrip(b"/") + b"/"
        for path, child in list(self.entries.items()):
            if path in self.unlistable:
                raise BrowseError("the folder ends in damage")
            if path != b"/" and path.startswith(prefix) and b"/" not in path[len(prefix) :]:
                yield child

    def open(self, entry: Entry, /) -> Reader:
        if entry.path in self.broken:
            raise self.broken[entry.path]
        reader = CountingReader(self.content[entry.path])
        self.opened.append(reader)
        return reader

    def readlink(self, entry: Entry, /) -> bytes:
        return self.content[entry.path]

    def close(self) -> None:
        self.closed += 1


def file(path: bytes, size: int = 0, *, inode: str = "12", mode: int = 0o640, **more: object) -> Entry:
    return Entry(path, EntryType.FILE, size, inode, mode, mtime_ns=MTIME, **more)  # type: ignore[arg-type]


def directory(path: bytes, *, inode: str = "11") -> Entry:
    return Entry(path, EntryType.DIRECTORY, 4096, inode, 0o755, mtime_ns=MTIME)


def symlink(path: bytes, target: bytes, *, inode: str = "13") -> Entry:
    return Entry(path, EntryType.SYMLINK, len(target), inode, 0o777, mtime_ns=MTIME)


def small_filesystem() -> FakeFileSystem:
    """A few of everything: folders, files, a link, names that are not UTF-8, a damaged file."""
    content = {
        b"/etc/fstab": b"# nothing\n",
        b"/big.bin": noise(300_001, 3),
        b"/etc/link": b"fstab",
        b"/caf\xe9 \xff.txt": b"latin",
        b"/broken": b"",
    }
    filesystem = FakeFileSystem(
        [
            directory(b"/etc", inode="20"),
            file(b"/etc/fstab", 10, inode="21", uid=1000, gid=100),
            symlink(b"/etc/link", b"fstab", inode="22"),
            file(b"/big.bin", 300_001, inode="23"),
            file(b"/caf\xe9 \xff.txt", 5, inode="24"),
            file(b"/broken", 77, inode="25"),
        ],
        content,
    )
    filesystem.broken[b"/broken"] = BrowseError("/broken is compressed in a way that cannot be read")
    return filesystem


def no_filesystem() -> FileSystem:
    raise BrowseError("no file system is known here")


def sparse_reader() -> SparseReader:
    """64 MiB and 5 bytes with 4 KiB of data at 1 MiB and at the end."""
    size = (64 << 20) + 5
    return SparseReader(size, {1 << 20: noise(4096, 5), (64 << 20) - 4096 + 5: noise(4096, 6)})


def spec_of(
    disk: Reader, *volumes: VolumeSpec, facts: bytes = b'{"id": "3f2a"}\n', fsname: str = "test image"
) -> MountSpec:
    return MountSpec(disk=disk, volumes=volumes, facts=facts, fsname=fsname, mtime_ns=MTIME)


def usual_spec(disk_size: int = 1_000_003) -> MountSpec:
    """A disk of an odd size, one volume with files, one without."""
    data = noise(disk_size)
    return spec_of(
        BytesReader(data),
        VolumeSpec("p1", BytesReader(data[4096:400_001]), small_filesystem),
        VolumeSpec("p2", BytesReader(data[400_001:]), no_filesystem),
    )
