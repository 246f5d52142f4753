"""Which block of a large directory a name is in: 16 bytes for each name, made in one pass over it.

With it a name in a folder of a million is found by reading one block, and names that occur twice are
known before the first entry is shown. Knows nothing of file systems.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator

import numpy as np

from imagefs.browse.bigdir import Damage, Name, Names
from imagefs.browse.names import repeated, safe_name


class NameIndex:
    """The names of one directory by the hash of what ``key`` makes of them. Never changes.

    ``damage`` tells what could not be read of the directory.
    """

    def __init__(self, names: Names, key: Callable[[bytes], bytes]) -> None:
        self.damage = Damage()
        self._names = names
        self._key = key
        hashes, blocks = array("q"), array("q")
        for start, found in names.blocks(self.damage):
            hashes.extend([hash(key(safe_name(each.name))) for each in found])
            blocks.extend([start] * len(found))
        all_hashes = np.frombuffer(hashes, dtype=np.int64)
        order = np.argsort(all_hashes, kind="stable")
        self._hashes = all_hashes[order]
        self._blocks = np.frombuffer(blocks, dtype=np.int64)[order]
        self.repeated = self._repeated()

    def __len__(self) -> int:
        return len(self._hashes)

    def find(self, name: bytes) -> Iterator[Name]:
        """Each name that is ``name`` under the key, in the order of the disk."""
        key = self._key(name)
        first, end = (int(np.searchsorted(self._hashes, hash(key), side)) for side in ("left", "right"))
        for start in sorted(set(self._blocks[first:end].tolist())):
            for each in self._names.block(start):
                if self._key(safe_name(each.name)) == key:
                    yield each

    def _repeated(self) -> frozenset[bytes]:
        """The shown names that occur more than once; only blocks with equal hashes are read again."""
        same = np.flatnonzero(self._hashes[1:] == self._hashes[:-1])
        starts = set(self._blocks[same].tolist()) | set(self._blocks[same + 1].tolist())
        return repeated(safe_name(each.name) for start in sorted(starts) for each in self._names.block(start))
