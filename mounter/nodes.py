"""The numbers by which the kernel knows what it was told of: a path for each, until it forgets it."""

from __future__ import annotations

import errno
import os
import threading

ROOT = 1


class Nodes:
    """Node ids of FUSE and the raw paths they stand for. Safe to call from several threads.

    Every path has one id for as long as the kernel holds it; hard links have one each, and the same
    inode number in their attributes.
    """

    def __init__(self) -> None:
        self._paths: dict[int, bytes] = {ROOT: b"/"}
        self._ids: dict[bytes, int] = {b"/": ROOT}
        self._more: dict[int, int] = {}  # how often beyond once the kernel was given an id
        self._next = ROOT + 1
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._paths)

    def path(self, node: int) -> bytes:
        """The path of a node the kernel holds; OSError for any other."""
        path = self._paths.get(node)
        if path is None:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return path

    def give(self, path: bytes) -> int:
        """The id of ``path``, which the kernel will hold once more."""
        with self._lock:
            node = self._ids.get(path)
            if node is None:
                node = self._ids[path] = self._next
                self._paths[node] = path
                self._next += 1
            elif node != ROOT:
                self._more[node] = self._more.get(node, 0) + 1
            return node

    def forget(self, node: int, count: int) -> None:
        """The kernel holds ``node`` ``count`` times less."""
        with self._lock:
            path = self._paths.get(node)
            if path is None or node == ROOT:
                return
            left = 1 + self._more.get(node, 0) - count
            if left > 1:
                self._more[node] = left - 1
                return
            self._more.pop(node, None)
            if left <= 0:
                del self._paths[node], self._ids[path]
