"""Shadow copies of NTFS volumes through libvshadow: the only module that knows pyvshadow, an extra (``inner``).

Runs in a worker process. A shadow copy is the volume as it was: what has been overwritten since lies in its store, the
rest is read from the volume as it is. So it needs blocks that may be free now, and not in an image of mode used.
"""

from __future__ import annotations

from array import array
from typing import Any

from imagefs.block.views import LibraryFile, clamp
from imagefs.errors import BrowseError
from imagefs.interfaces import Reader
from imagefs.volume.bitlocker import read_library

#: The GUID of the header at 7,680 bytes of a volume that has (or had) shadow copies.
_MAGIC = bytes.fromhex("6b87083876c1484eb7ae04046e6cc752")
_PLACE = 0x1E00
#: The unit of what is kept.
BLOCK = 16 << 10
_MAX_STORES, _MAX_BLOCKS = 512, 4_000_000
_LIBRARY_ERRORS = (OSError, ValueError, MemoryError, OverflowError, RuntimeError)


def has_shadows(reader: Reader) -> bool:
    """Whether the volume says that it may have shadow copies."""
    head = reader.read_at(_PLACE, 128)
    return head[:16] == _MAGIC and int.from_bytes(head[0x30:0x38], "little") > 0


class Shadows:
    """The shadow copies of one volume, the oldest first."""

    kind = "shadows"
    case_insensitive = False

    def __init__(self, reader: Reader) -> None:
        try:
            import pyvshadow
        except ImportError as error:
            raise BrowseError(
                "it has shadow copies, for which libvshadow-python is not installed",
                hint="install it with `make install EXTRAS=inner`, or `pip install 'imagefs[inner]'`",
            ) from error
        self._file, self._volume = LibraryFile(reader), pyvshadow.volume()
        self._asked(lambda: self._volume.open_file_object(self._file))

    def _asked(self, work: Any) -> Any:
        try:
            return work()
        except _LIBRARY_ERRORS as error:
            if self._file.error is not None:
                raise self._file.error from None
            raise BrowseError(f"its shadow copies cannot be read ({str(error)[:200]})") from error

    def stores(self) -> list[list[object]]:
        """[number, time of creation in ns since 1970, bytes, id] of each that has its data on this volume."""
        return list(self._asked(self._stores))

    def _stores(self) -> list[list[object]]:
        found: list[list[object]] = []
        for number in range(min(self._volume.number_of_stores, _MAX_STORES)):
            store = self._volume.get_store(number)
            if store.has_in_volume_data():
                when = (store.get_creation_time_as_integer() - 116444736000000000) * 100
                found.append([number, when, int(store.volume_size), str(store.copy_identifier)])
        return found

    def kept(self, number: int) -> bytes:
        """Offsets of blocks, 8 bytes each, that the stores of this and later ones hold: they do not need the volume."""
        return bytes(self._asked(lambda: self._kept(number)))

    def _kept(self, number: int) -> bytes:
        found = array("Q")
        for each in range(number, min(self._volume.number_of_stores, _MAX_STORES)):
            store = self._volume.get_store(each)
            for i in range(min(store.number_of_blocks, _MAX_BLOCKS - len(found))):
                found.append(store.get_block(i).original_offset)
        return found.tobytes()

    def open(self, number: int) -> Reader:
        """The volume as it was then."""
        return _Store(self._file, self._asked(lambda: self._volume.get_store(number)))

    def close(self) -> None:
        pass


class _Store:
    def __init__(self, file: LibraryFile, store: Any) -> None:
        self._file = file
        self._store = store
        self.size = int(store.volume_size)

    def read_at(self, offset: int, length: int, /) -> bytes:
        return read_library(self._file, self._store, offset, clamp(self.size, offset, length))

    def close(self) -> None:
        pass
