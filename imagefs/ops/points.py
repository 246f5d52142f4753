"""One volume at several points in time: images opened one after the other, with one worker put before each."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from datetime import UTC, tzinfo
from functools import cached_property

from imagefs.block.ranges import Range, joined
from imagefs.block.views import BytesReader, extents_of
from imagefs.errors import ImagefsError
from imagefs.image.catalog import Catalog
from imagefs.image.shared import Shared
from imagefs.image.tail import ImageInfo
from imagefs.interfaces import Extent, FileSystem, Reader, Volume
from imagefs.ops.compare import Side
from imagefs.ops.diskimage import DiskImage
from imagefs.ops.located import Located
from imagefs.ops.pairing import same_volume

#: Opens one image of the set.
Opener = Callable[[ImageInfo], DiskImage]


def opener_of(catalog: Catalog, fat_zone: tzinfo = UTC) -> Opener:
    """Opens images of ``catalog`` with what our own parsers can read. They share readers and decoded chunks."""
    shared = Shared()

    def opened(info: ImageInfo) -> DiskImage:
        image = DiskImage(catalog.open_disk(info, shared=shared), info)
        image.fat_zone = fat_zone
        return image

    return opened


class Wanted:
    """The volume that a history is of: ``name`` is what the newest image calls it, which an older one may call
    otherwise where it is a logical volume."""

    def __init__(self, name: str, newest: Callable[[], DiskImage] | None = None) -> None:
        self.name = name
        self._volumes: tuple[Volume, ...] = ()
        if newest is not None and "." in name:
            with contextlib.suppress(ImagefsError), newest() as image:
                self._volumes = image.all_volumes

    def find(self, image: DiskImage) -> Volume | None:
        """It in one image. Raises BrowseError where it may lie in what cannot be opened."""
        named = image.find_volume(self.name)
        here = next((each for each in self._volumes if each.id == self.name), None)
        return named if here is None else same_volume(here, self._volumes, image.all_volumes)


class Point:
    """One volume of one image, opened as far as it was needed. ``volume`` is None where the image has none that is
    ``wanted``; asking for it raises BrowseError where it may lie in one that is locked."""

    def __init__(self, image: DiskImage, wanted: Wanted) -> None:
        self.image = image
        self.fs: FileSystem | None = None
        self._wanted = wanted
        self._trace = TracingReader(image.disk)

    @property
    def info(self) -> ImageInfo:
        return self.image.info

    @cached_property
    def volume(self) -> Volume | None:
        self.image.table_through(self._trace)
        self.image.read_through(self._trace)
        try:
            return self._wanted.find(self.image)
        finally:
            self._trace.enough = True
            self.image.read_through(self.image.disk)

    @cached_property
    def bytes(self) -> Reader:
        return self.image.volume_reader(self.volume) if self.volume else BytesReader(b"")

    @cached_property
    def located(self) -> Located:
        return self.image.located(self.volume) if self.volume else Located(0, ())

    @property
    def table_ranges(self) -> list[Range]:
        """What of the disk says where the volume lies."""
        assert self._trace.enough
        return joined(self._trace.ranges)

    def open(self, after: FileSystem | None = None) -> FileSystem:
        """The file system; ``after`` is another that is closed by this. Raises BrowseError."""
        if self.fs is None:
            assert self.volume is not None
            self.fs = self.image.near(self.volume.id, after=after)
        return self.fs

    @property
    def side(self) -> Side:
        return Side(self.open(), self.bytes)

    def close(self) -> None:
        self.image.close()


class TracingReader:
    """Another Reader that remembers what was read of it, until it is ``enough``."""

    def __init__(self, reader: Reader) -> None:
        self.ranges: list[Range] = []
        self.enough = False
        self.size = reader.size
        self._reader = reader

    def read_at(self, offset: int, length: int, /) -> bytes:
        if not self.enough:
            self.ranges.append((offset, offset + length))
        return self._reader.read_at(offset, length)

    def extents(self, offset: int, length: int, /) -> Iterator[Extent]:
        return extents_of(self._reader, offset, length)

    def close(self) -> None:
        """The reader is another's to close."""
