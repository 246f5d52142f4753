"""``DiskImage``: one point of one chain, opened, with its volumes and file systems.

This is what the Python API gives and what mount and browse stand on.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import UTC, tzinfo
from functools import partial
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt

from imagefs.block.joined import SureReader
from imagefs.block.views import MarkedReader, ReaderFile, SliceReader, extents_of, merged
from imagefs.errors import BrowseError, ImagefsError, IntegrityError, NotAFileSystem
from imagefs.image.catalog import ImageInfo
from imagefs.image.disk import VirtualDisk
from imagefs.interfaces import Extent, FileSystem, Finding, Reader, State, Volume
from imagefs.ops.located import Located, partition
from imagefs.volume import VolumeTable, read_table

if TYPE_CHECKING:
    from imagefs.browse.crew import Crew
    from imagefs.ops.innervolumes import Container, InnerVolumes, Secret

#: Opens what ``open_filesystem`` refuses, or raises NotAFileSystem too.
OtherOpener = Callable[[Reader, NotAFileSystem], FileSystem]


@dataclass(frozen=True, slots=True)
class Chunk:
    """One chunk of the view: ``image`` is the id of the layer that answers for it.

    ``offset`` and ``length`` are bytes of the disk; ``digest`` is the BLAKE3-256 of the plain bytes,
    None unless stored.
    """

    number: int
    state: State
    offset: int
    length: int
    image: str
    digest: bytes | None


class _SkipMarks:
    """``reader``, whose extents tell what was not captured to the block: where a part of a chunk is in use, the
    rest of it is stored as zeros, and only the image's own list of skipped ranges says so."""

    def __init__(self, reader: Reader, disk: VirtualDisk) -> None:
        self._reader = reader
        self._disk = disk
        self._lock = threading.Lock()
        self._ranges: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]] | None = None
        #: Bytes between two of them, found last: files that are asked for in their order lie there.
        self._between = 0, 0
        self.size = reader.size

    def read_at(self, offset: int, length: int, /) -> bytes:
        return self._reader.read_at(offset, length)

    def extents(self, offset: int, length: int, /) -> Iterator[Extent]:
        start, stop = self._between  # once: another thread may change it
        if start <= offset and offset + length <= stop:
            return extents_of(self._reader, offset, length)
        first, end = self._skipped()
        low = int(end.searchsorted(offset, "right"))
        high = int(first.searchsorted(offset + length, "left"))
        if low >= high:
            self._between = (
                int(end[low - 1]) if low else 0,
                int(first[low]) if low < len(first) else self.size,
            )
            return extents_of(self._reader, offset, length)
        marked = MarkedReader(self._reader, first[low:high].tolist(), end[low:high].tolist(), State.SKIPPED)
        return merged(marked.extents(offset, length))

    def _skipped(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        with self._lock:
            if self._ranges is None:
                ranges = self._disk.chain.leaf.ranges()
                these = ranges.state == State.SKIPPED
                first = ranges.first[these].astype(np.int64)
                self._ranges = first, first + ranges.count[these].astype(np.int64)
            return self._ranges

    def close(self) -> None:
        """The reader is the disk's to close."""


class DiskImage:
    """An open image as a disk: a ``Reader`` with volumes. Thread-safe; close it, or use ``with``.

    >>> with imagefs.open("backups@latest") as disk:          # doctest: +SKIP
    ...     disk.read_at(0, 512)
    ...     disk.filesystem(2).lookup(b"/etc/fstab")
    """

    def __init__(self, disk: VirtualDisk, info: ImageInfo, *, other: OtherOpener | None = None) -> None:
        self.disk = disk
        self._reader: Reader = disk
        self._table_reader: Reader = disk
        self.info = info
        #: Where the clocks stood that wrote the times of FAT; see ``open_filesystem``.
        self.fat_zone: tzinfo = UTC
        #: The workers of its file systems are counted there; see ``browse/crew.py``.
        self.crew: Crew | None = None
        self._lock = threading.Lock()
        self._table: VolumeTable | None = None
        self._inner: InnerVolumes | None = None
        self._secrets: Mapping[str, Secret] = {}
        self._lenient = False
        #: Entered with a word for what may take long and cannot tell how far it is.
        self.waiting: Callable[[str], AbstractContextManager[object]] = nullcontext
        self._open: list[FileSystem] = []
        self._other = other

    @property
    def size(self) -> int:
        """Bytes of the disk."""
        return self.disk.size

    @property
    def id(self) -> str:
        """The image's UUID in hex without dashes."""
        return self.info.id

    def read_at(self, offset: int, length: int, /) -> bytes:
        """Exactly ``min(length, size - offset)`` bytes. Raises IntegrityError, StoreError."""
        return self.disk.read_at(offset, length)

    def extents(self, offset: int, length: int, /) -> Iterator[Extent]:
        return self.disk.extents(offset, length)

    @property
    def table(self) -> VolumeTable:
        """The partition table, read when first asked for."""
        with self._lock:
            if self._table is None:
                self._table = self._read_table()
            return self._table

    def _read_table(self) -> VolumeTable:
        """Damage where the table lies costs the volumes, not the rest of the disk."""
        sector_size = self.disk.sector_size
        try:
            return read_table(self._table_reader, sector_size=sector_size)
        except IntegrityError as error:
            message = f"the partition table cannot be read: {error.message}"
            finding = Finding("error", "table-unreadable", message, self.id)
            return VolumeTable("unreadable", "", sector_size, (), (finding,))

    @property
    def volumes(self) -> tuple[Volume, ...]:
        """The partitions, numbered as Linux does; number 0 is the whole of an unpartitioned disk."""
        return self.table.volumes

    @property
    def chunks(self) -> Iterator[Chunk]:
        """Every chunk of the view in order; 2 million a minute, so not for terabytes of zeros."""
        size = self.disk.chunk_size
        for run in self.disk.runs():
            image = self.disk.chain.infos[run.layer].id
            for i in range(run.count):
                number = run.first + i
                stored = run.state is State.STORED
                digest = self.disk.chain.layers[run.layer].digests(run.row + i, 1) if stored else None
                length = min(size, self.size - number * size)
                yield Chunk(number, run.state, number * size, length, image, digest)

    def unlock(self, secrets: Mapping[str, Secret], *, lenient: bool = False) -> None:
        """Give what opens encrypted volumes, by their ids, before one is asked for. ``lenient``: one that opens
        nothing is no error, as the same secrets are for other images too; see ``check_secrets``."""
        self._secrets = secrets
        self._lenient = lenient

    @property
    def inner(self) -> InnerVolumes:
        """The volumes inside the partitions, looked for when first asked for. Raises Locked where a secret that was
        given is wrong, UsageError where there is nothing that it could unlock."""
        from imagefs.ops.innervolumes import InnerVolumes, check_secrets  # which many commands do not need

        table = self.table
        with self._lock:
            if self._inner is None:
                found = InnerVolumes(
                    [(each, self._marked(each)) for each in table.volumes],
                    self._secrets,
                    lenient=self._lenient,
                    waiting=self.waiting,
                )
                if not self._lenient:
                    try:
                        check_secrets(self._secrets)
                    except ImagefsError:
                        found.close()
                        raise
                self._inner = found
            return self._inner

    @property
    def all_volumes(self) -> tuple[Volume, ...]:
        """The partitions, each followed by the volumes inside it, shadow copies and snapshots among them."""
        inner = self.inner
        return tuple(
            each
            for volume in self.volumes
            for each in (volume, *(found.volume for found in inner.inside(volume.id)))
        )

    def container(self, volume_id: str) -> Container | None:
        """What a volume is that holds others, or is locked; None for any other."""
        return self.inner.containers.get(volume_id)

    def keys_of(self, volume: Volume) -> dict[str, bytes]:
        """What opens the encrypted volumes in an APFS container; see ``open_filesystem``."""
        return self.inner.keys_of(volume.id) if self._secrets else {}

    def volume(self, which: int | str) -> Volume:
        """A volume by its number or id (``p3.1``); BrowseError naming those there are."""
        wanted = which if isinstance(which, str) else f"p{which}"
        found = self.find_volume(wanted)
        if found is None:
            there = self.volumes if wanted[1:].isdigit() else self.all_volumes
            names = ", ".join(volume.id for volume in there) or "none"
            raise BrowseError(f"the image has no volume {wanted}", hint=f"it has {names}", volume=wanted)
        return found

    def find_volume(self, wanted: str) -> Volume | None:
        """A volume by its id; None where there is none. BrowseError where it may lie in one that cannot be opened."""
        simple = wanted[1:].isdigit()
        for volume in self.volumes if simple else self.all_volumes:
            if volume.id == wanted:
                return volume
        above = "" if simple else wanted
        while above:
            above = above[: max(above.rfind("."), above.rfind("@"), 0)]
            outer = self.container(above) if above else None
            if outer is not None and outer.state in ("locked", "refused"):
                raise BrowseError(outer.message, volume=wanted)
        return None

    def located(self, volume: Volume) -> Located:
        """Where on the disk the bytes of a volume lie; of one that cannot be read that is anywhere."""
        if not volume.inside:
            return partition(volume.start, volume.length)
        return self.inner.located(volume.id)

    def volume_reader(self, volume: Volume) -> Reader:
        """The bytes of one volume; lives as long as this image is open. BrowseError for one that cannot be read."""
        if not volume.inside:
            return SliceReader(self._reader, volume.start, volume.length)
        reader = self.inner.reader(volume.id)
        if reader is not None:
            return reader
        container = self.container(volume.id)
        raise BrowseError(container.message if container else f"{volume.id} cannot be read", volume=volume.id)

    def readable_volumes(self) -> Iterator[tuple[Volume, Reader]]:
        """Every volume whose bytes can be read, with them, in the order of ``all_volumes``."""
        for volume in self.all_volumes:
            try:
                reader = self.volume_reader(volume)
            except BrowseError:
                continue
            yield volume, reader

    def read_through(self, reader: Reader) -> None:
        """Let volumes opened from now on read through ``reader``, which shows the same disk."""
        self._reader = reader

    def table_through(self, reader: Reader) -> None:
        """Let the partition table be read through ``reader``, which shows the same disk."""
        self._table_reader = reader

    def _marked(self, volume: Volume) -> Reader:
        """The bytes of a volume, whose extents tell to the block what was not captured."""
        if volume.moment:  # whose files may need what is free on the volume now: no zeros for those
            return SureReader(self.volume_reader(volume), f"of the {volume.role} are not in this image")
        if volume.inside:
            return self.volume_reader(volume)
        return SliceReader(_SkipMarks(self._reader, self.disk), volume.start, volume.length)

    def filesystem(self, which: int | str) -> FileSystem:
        """The file system of a volume, by its number or id, closed with this image. Raises BrowseError."""
        return self._kept(self._apart(self.volume(which)))

    def near(self, which: int | str, *, after: FileSystem | None = None) -> FileSystem:
        """The same for who compares points in time: without a worker as long as our own decoders can tell. ``after``,
        most often of another image, is closed by this; if it has a worker, that goes on with the new one."""
        from imagefs.browse.near import open_near

        volume = self.volume(which)
        return self._kept(open_near(self._marked(volume), partial(self._apart, volume), after))

    def _apart(self, volume: Volume, after: FileSystem | None = None) -> FileSystem:
        from imagefs.browse.apart import open_apart  # which verify and restore do not need

        reader = self._marked(volume)
        keys = self.keys_of(volume)
        try:
            return open_apart(reader, crew=self.crew, after=after, fat_zone=self.fat_zone, keys=keys)
        except NotAFileSystem as error:
            container = self.container(volume.id)
            if container is not None:
                raise NotAFileSystem(container.message) from error
            if self._other is None:
                raise
            return self._other(reader, error)

    def _kept(self, fs: FileSystem) -> FileSystem:
        with self._lock:
            self._open.append(fs)
        return fs

    def let_go(self, fs: FileSystem) -> None:
        """Closing this image no longer closes ``fs``, which ``filesystem`` gave."""
        with self._lock:
            self._open = [each for each in self._open if each is not fs]

    def file(self, volume: int | str | None = None) -> io.BufferedReader:
        """A read-only binary file object over the disk, or over one volume, for other libraries."""
        reader = self.disk if volume is None else self.volume_reader(self.volume(volume))
        return io.BufferedReader(ReaderFile(reader, self.info.name), 256 * 1024)

    def close(self) -> None:
        with self._lock:
            for opened in self._open:
                opened.close()
            self._open.clear()
            if self._inner is not None:
                self._inner.close()
        self.disk.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
