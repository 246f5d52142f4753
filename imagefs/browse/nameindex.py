"""Which block of a large directory a name is in: 12 bytes for each name.

It is made while the directory is listed, or in one pass over it; with it a name in a folder of a
million is found by reading one block. Knows nothing of file systems.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from typing import Any

from imagefs.browse.bigdir import Damage, Name, Names
from imagefs.browse.names import safe_name

#: Blocks begin at multiples of this, the root of an NTFS directory at -1.
_UNIT = 512


class NameIndex:
    """The names of one directory by the hash of what ``key`` makes of them.

    Filled by ``add``, block by block; ``seal`` makes it ready for ``find``, from any thread.
    ``damage`` tells what could not be read of the directory.
    """

    def __init__(self, names: Names, key: Callable[[bytes], bytes]) -> None:
        self.damage = Damage()
        self._names = names
        self._key = key
        self._added, self._starts = array("q"), array("i")
        self._hashes: Any = array("q")
        self._blocks: Any = array("i")
        self._last: tuple[int, list[Name]] = (-2, [])

    @classmethod
    def of(cls, names: Names, key: Callable[[bytes], bytes]) -> NameIndex:
        """The index of a directory, read now from end to end."""
        index = cls(names, key)
        for start, block in names.blocks(index.damage):
            index.add(start, [safe_name(each.name) for each in block])
        return index.seal()

    def __len__(self) -> int:
        return len(self._hashes)

    def add(self, start: int, shown: list[bytes]) -> None:
        key = self._key
        self._added.extend([hash(key(name)) for name in shown])
        self._starts.extend([start // _UNIT] * len(shown))

    def seal(self) -> NameIndex:
        import numpy as np  # slow to load, and few directories are large

        added = np.frombuffer(self._added, dtype=np.int64)
        order = np.argsort(added, kind="stable")
        self._hashes, self._blocks = added[order], np.frombuffer(self._starts, dtype=np.int32)[order]
        self._added, self._starts = array("q"), array("i")
        return self

    def find(self, name: bytes) -> Iterator[Name]:
        """Each name that is ``name`` under the key, in the order of the disk."""
        key = self._key(name)
        first, end = bisect_left(self._hashes, hash(key)), bisect_right(self._hashes, hash(key))
        for start in sorted(set(self._blocks[first:end].tolist())):
            for each in self._block(start * _UNIT if start >= 0 else -1):
                if self._key(safe_name(each.name)) == key:
                    yield each

    def _block(self, start: int) -> list[Name]:
        """Who asks for one name of a block mostly asks for the others next."""
        last = self._last
        if last[0] != start:
            self._last = last = start, self._names.block(start)
        return last[1]
