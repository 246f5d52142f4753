"""A cache of byte blocks, bounded in bytes, in which each missing block is made once.

Any number of threads may ask; while one makes a block the others wait for it, and no lock is held
while it is made.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class _Making(Generic[Value]):
    """A block that one thread is making; a Future takes three times as long to make."""

    __slots__ = ("error", "ready", "value")

    def __init__(self) -> None:
        self.value: Value | None = None
        self.error: BaseException | None = None
        self.ready = threading.Lock()
        self.ready.acquire()

    def wait(self) -> Value:
        with self.ready:
            if self.error is not None:
                raise self.error
            assert self.value is not None
            return self.value


class BlockCache(Generic[Key, Value]):
    """Least recently used blocks of at most ``limit`` bytes in all, as ``weigh`` counts them."""

    def __init__(self, limit: int, weigh: Callable[[Value], int]) -> None:
        self.limit = limit
        self._weigh = weigh
        self._bytes = 0
        self._blocks: OrderedDict[Key, Value] = OrderedDict()
        self._pending: dict[Key, _Making[Value]] = {}
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
            making = self._pending.get(key)
            if making is None:
                mine = self._pending[key] = _Making()
        if making is not None:
            return making.wait()
        try:
            mine.value = value = make()
            self._keep(key, value)
            return value
        except BaseException as error:
            mine.error = error
            raise
        finally:
            with self._lock:
                del self._pending[key]
            mine.ready.release()

    def clear(self) -> None:
        with self._lock:
            self._blocks.clear()
            self._bytes = 0

    def _keep(self, key: Key, value: Value) -> None:
        with self._lock:
            self._blocks[key] = value
            self._bytes += self._weigh(value)
            while self._bytes > self.limit and len(self._blocks) > 1:
                self._bytes -= self._weigh(self._blocks.popitem(last=False)[1])
