"""One volume at several points in time: images opened one after the other, with one worker put before each."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, tzinfo

from imagefs.block.ranges import Range, joined
from imagefs.block.views import BytesReader
from imagefs.image.catalog import Catalog
from imagefs.image.shared import Shared
from imagefs.image.tail import ImageInfo
from imagefs.interfaces import FileSystem, Reader
from imagefs.ops.compare import Side
from imagefs.ops.diskimage import DiskImage

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


class Point:
    """One volume of one image, opened as far as it was needed. ``volume`` is None where the image has none of
    that number."""

    def __init__(self, image: DiskImage, number: int) -> None:
        self.image = image
        self.fs: FileSystem | None = None
        self._number = number
        self._trace = TracingReader(image.disk)
        image.table_through(self._trace)
        self.volume = next((each for each in image.volumes if each.number == number), None)
        self.bytes = image.volume_reader(self.volume) if self.volume else BytesReader(b"")

    @property
    def info(self) -> ImageInfo:
        return self.image.info

    @property
    def table_ranges(self) -> list[Range]:
        """What of the disk says where the volume lies."""
        return joined(self._trace.ranges)

    def open(self, after: FileSystem | None = None) -> FileSystem:
        """The file system; ``after`` is another that is closed by this. Raises BrowseError."""
        if self.fs is None:
            self.fs = self.image.near(self._number, after=after)
        return self.fs

    @property
    def side(self) -> Side:
        return Side(self.open(), self.bytes)

    def close(self) -> None:
        self.image.close()


class TracingReader:
    """Another Reader that remembers what was read of it."""

    def __init__(self, reader: Reader) -> None:
        self.ranges: list[Range] = []
        self.size = reader.size
        self._reader = reader

    def read_at(self, offset: int, length: int, /) -> bytes:
        self.ranges.append((offset, offset + length))
        return self._reader.read_at(offset, length)

    def close(self) -> None:
        """The reader is another's to close."""
