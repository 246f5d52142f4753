"""The value a probe gives, and the bounded window through which every probe looks at a volume.

Must not know any file system.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Literal

from imagefs.interfaces import Reader

ByteOrder = Literal["little", "big"]

#: Almost every signature lies here; read once.
WINDOW = 128 << 10
#: No single look elsewhere is longer.
MAX_LOOK = 1 << 20


@dataclass(frozen=True, slots=True)
class FileSystemFacts:
    """What the signature of a volume says; nothing in it is verified beyond the probe.

    ``kind`` is empty when nothing was recognised, else one of ``KINDS`` (imagefs.volume.probe).
    ``label`` is text, ``uuid`` as blkid prints it (case included); empty when there is none.
    ``size`` is the bytes the file system claims and ``block_size`` its unit of allocation (cluster,
    block), both None where the signature does not say.
    """

    kind: str = ""
    label: str = ""
    uuid: str = ""
    size: int | None = None
    block_size: int | None = None


class Window:
    """A volume as probes see it: reads past the end, or of nonsense offsets, are zeros, never errors.

    So that no probe needs a length check before it unpacks. What the Reader raises goes through.
    """

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._head = reader.read_at(0, WINDOW)
        self.size = reader.size

    def at(self, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes (at most MAX_LOOK); zeros where the volume has none."""
        length = max(0, min(length, MAX_LOOK))
        if not 0 <= offset < self.size:
            return bytes(length)
        if offset + length <= len(self._head):
            return self._head[offset : offset + length]
        return self._reader.read_at(offset, length).ljust(length, b"\0")

    def number(self, offset: int, length: int, order: ByteOrder = "little") -> int:
        return int.from_bytes(self.at(offset, length), order)


def power_of_two(number: int, low: int, high: int) -> bool:
    return low <= number <= high and number & (number - 1) == 0


def dashed(data: bytes) -> str:
    """16 bytes as a UUID, in the order they lie; empty when they are all zero."""
    return str(uuid.UUID(bytes=data)) if any(data) else ""


def shown(value: object, length: int = 40) -> str:
    """What a disk calls something, for a sentence: cut, and without what a terminal would obey."""
    return "".join(each if each.isprintable() else "?" for each in str(value)[:length])


def text(data: bytes, encoding: str = "utf-8") -> str:
    """A label up to its NUL; what cannot be decoded becomes the replacement character."""
    return data.decode(encoding, "replace").split("\0", 1)[0].rstrip()
