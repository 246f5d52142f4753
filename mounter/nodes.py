"""The numbers by which the kernel knows what it was told of: a path for each, until it forgets it.

Left to itself the kernel forgets when memory is short, its own, not ours: a walk over millions of files
would cost us some 300 bytes each. So of files that were given long ago it is asked to forget.
"""

from __future__ import annotations

import errno
import os
import threading
from collections import deque

ROOT = 1
#: Nodes that were given since, before the kernel is asked to forget a file. ``ls -l`` gives one an entry.
KEPT = 200_000


class Nodes:
    """Node ids of FUSE and the raw paths they stand for. Safe to call from several threads.

    Every path has one id for as long as the kernel holds it; hard links have one each, and the same
    inode number in their attributes.
    """

    def __init__(self, kept: int = KEPT) -> None:
        self._paths: dict[int, bytes] = {ROOT: b"/"}
        self._ids: dict[bytes, int] = {b"/": ROOT}
        self._more: dict[int, int] = {}  # how often beyond once the kernel was given an id
        self._next = ROOT + 1
        self._kept = kept
        self._files: deque[int] = deque()  # in the order in which they were first given
        self._gone: deque[bytes] = deque()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._paths)

    def path(self, node: int) -> bytes:
        """The path of a node the kernel holds; OSError for any other."""
        path = self._paths.get(node)
        if path is None:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return path

    def give(self, path: bytes, *, is_file: bool) -> int:
        """The id of ``path``, which the kernel will hold once more."""
        with self._lock:
            node = self._ids.get(path)
            if node is None:
                node = self._ids[path] = self._next
                self._paths[node] = path
                self._next += 1
                if is_file and path.count(b"/") > 1:  # not what others build on, such as disk.raw
                    self._files.append(node)
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

    @property
    def too_many(self) -> bool:
        return len(self._files) > self._kept

    def drop(self, name: bytes) -> None:
        """``name`` in the root, and all below it, is for the kernel to forget, if it has heard of it."""
        if b"/" + name in self._ids:
            self._gone.append(name)

    def oldest(self) -> tuple[int, bytes] | None:
        """(parent's node, name) of what the kernel is to forget, None while there is not too much."""
        with self._lock:
            if self._gone:
                return ROOT, self._gone.popleft()
            while len(self._files) > self._kept:
                path = self._paths.get(self._files.popleft())
                folder, name = os.path.split(path or b"")
                if path is not None and folder in self._ids:
                    return self._ids[folder], name
        return None
