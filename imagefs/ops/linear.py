"""Linear digests: MD5, SHA-1 and their like over the whole disk, in the order of its bytes."""

from __future__ import annotations

import hashlib
import queue
import threading
from collections.abc import Sequence

#: What ``--hash`` takes; all of them are in every Python.
ALGORITHMS = ("md5", "sha1", "sha256", "sha512")
#: What ``--forensic`` takes.
FORENSIC = ("md5", "sha1", "sha256")
_ZEROS = bytes(1024 * 1024)
#: Pieces that may wait for the slowest digest.
_DEPTH = 32


class LinearDigests:
    """Every algorithm on a thread of its own, so that all take no longer than the slowest alone."""

    def __init__(self, names: Sequence[str]) -> None:
        self._lanes = [_Lane(name) for name in names]

    def feed(self, *data: bytes | bytearray) -> None:
        """The next bytes of the disk, piece by piece; they must not change afterwards."""
        for lane in self._lanes:
            lane.waiting.put(data)

    def feed_zeros(self, count: int) -> None:
        """The next ``count`` bytes of the disk are zeros."""
        for lane in self._lanes:
            lane.waiting.put(count)

    def finish(self) -> dict[str, str]:
        """Each algorithm's digest in hex; nothing may be fed after."""
        return {lane.name: lane.finish() for lane in self._lanes}

    def close(self) -> None:
        """Give up early. Safe to call twice and after ``finish``."""
        for lane in self._lanes:
            lane.close()


class _Lane:
    def __init__(self, name: str) -> None:
        self.name = name
        self.waiting: queue.Queue[tuple[bytes | bytearray, ...] | int | None] = queue.Queue(_DEPTH)
        self._hash = hashlib.new(name, usedforsecurity=False)
        self._thread = threading.Thread(target=self._run, name=f"hash-{name}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while (item := self.waiting.get()) is not None:
            if not isinstance(item, int):
                for data in item:
                    self._hash.update(data)
                continue
            for start in range(0, item, len(_ZEROS)):
                self._hash.update(memoryview(_ZEROS)[: item - start])

    def finish(self) -> str:
        self.close()
        return self._hash.hexdigest()

    def close(self) -> None:
        if self._thread.is_alive():
            self.waiting.put(None)
            self._thread.join()
