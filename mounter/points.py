"""A point in time as the mount of a whole set knows it: what it is called, how it is opened, what is open of it.

Values and the state of one point; which of them are open, and for how long, is mounter/historytree.py.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from imagefs.block.views import extents_of
from imagefs.interfaces import Extent
from mounter.attributes import Attributes
from mounter.tree import MountSpec, MountTree, Opened

_MASK = 2**64 - 1


@dataclass(frozen=True, slots=True)
class OpenedPoint:
    """What a point shows; ``held`` bytes of memory go with it, and ``close`` is called after the readers' own."""

    spec: MountSpec
    held: int
    close: Callable[[], None]


@dataclass(frozen=True, slots=True)
class PointSpec:
    """A point in time: its folder's name, what it is known by for ever, its time, the size of its disk.

    ``aliases`` lead to it too, unlisted. ``reason`` says why nothing of it can be opened at all: then it is no
    folder but a text.
    """

    name: bytes
    id: bytes
    mtime_ns: int
    size: int = 0
    aliases: tuple[bytes, ...] = ()
    reason: str = ""
    open: Callable[[], OpenedPoint] | None = None


#: All points, oldest first; asked every now and then. The same object means that nothing has changed.
Look = Callable[[], Sequence[PointSpec]]


@dataclass(frozen=True, slots=True)
class HistorySpec:
    """Everything that a mount of a whole set needs; ``fsname`` is what the mount table calls it."""

    look: Look
    fsname: str


class Point:
    """One point and, while it is open, its tree. ``users`` is for the tree of all points to count."""

    def __init__(self, spec: PointSpec, number: int) -> None:
        self.spec = spec
        self.slot = number << 16  # of its entries in the cache of all
        self.lock = threading.Lock()
        self.tree: MountTree | None = None
        self.opened: OpenedPoint | None = None
        self.reason = ""
        self.users = 0
        self.used = 0.0
        numbers = hashlib.blake2b(spec.id, digest_size=16).digest()
        self._factor = int.from_bytes(numbers[:8], "little") | 1
        self._summand = int.from_bytes(numbers[8:], "little")

    @property
    def held(self) -> int:
        return self.opened.held if self.opened else 0

    def inode(self, inode: int) -> int:
        """A number of this point's own for one of its tree: the same from mount to mount, distinct within the point
        because the factor is odd, and not another point's but by a chance of 2**-64."""
        return (inode * self._factor + self._summand) & _MASK or _MASK

    def shown(self, attributes: Attributes) -> Attributes:
        return attributes._replace(inode=self.inode(attributes.inode))


class Leased:
    """An opened file of a point, whose ``leave`` is called once when it is closed."""

    def __init__(self, opened: Opened, leave: Callable[[], None]) -> None:
        self._opened = opened
        self._leave: Callable[[], None] | None = leave
        self.size = opened.reader.size
        self.read_at = opened.reader.read_at

    def extents(self, offset: int, length: int, /) -> Iterator[Extent]:
        return extents_of(self._opened.reader, offset, length)

    def close(self) -> None:
        leave, self._leave = self._leave, None
        if leave is not None:
            try:
                if self._opened.owned:
                    self._opened.reader.close()
            finally:
                leave()
