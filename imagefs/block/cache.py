"""A cache of byte blocks, bounded in bytes, in which each missing block is made once.

Any number of threads may ask; while one makes a block the others wait for it, and no lock is held
while it is made.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class BlockCache(Generic[Key, Value]):
    """Least recently used blocks of at most ``limit`` bytes in all, as ``weigh`` counts them."""

    def __init__(self, limit: int, weigh: Callable[[Value], int]) -> None:
        self.limit = limit
        self._weigh = weigh
        self._bytes = 0
        self._blocks: OrderedDict[Key, Value] = OrderedDict()
        self._pending: dict[Key, Future[Value]] = {}
        self._lock = threading.Lock()

    @property
    def bytes(self) -> int:
        return self._bytes

    def __contains__(self, key: Key) -> bool:
        return key in self._blocks or key in self._pending

    def get(self, key: Key, make: Callable[[], Value]) -> Value:
        """The block of ``key``; what ``make`` raises reaches everyone who waits, and is not kept."""
        with self._lock:
            found = self._blocks.get(key)
            if found is not None:
                self._blocks.move_to_end(key)
                return found
            future = self._pending.get(key)
            mine = future is None
            if future is None:
                future = self._pending[key] = Future()
        return self._make(key, make, future) if mine else future.result()

    def clear(self) -> None:
        with self._lock:
            self._blocks.clear()
            self._bytes = 0

    def _make(self, key: Key, make: Callable[[], Value], future: Future[Value]) -> Value:
        try:
            value = make()
        except BaseException as error:
            with self._lock:
                del self._pending[key]
            future.set_exception(error)
            raise
        with self._lock:
            del self._pending[key]
            self._blocks[key] = value
            self._bytes += self._weigh(value)
            while self._bytes > self.limit and len(self._blocks) > 1:
                self._bytes -= self._weigh(self._blocks.popitem(last=False)[1])
        future.set_result(value)
        return value
