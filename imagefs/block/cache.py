"""A cache of byte blocks, bounded in bytes, in which each missing block is made once.

Any number of threads may ask; while one makes a block the others wait for it, and no lock is held
while it is made.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
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
        return self.get_many([key], lambda _keys: [make()])[0]

    def get_many(
        self, keys: Sequence[Key], make: Callable[[list[Key]], Sequence[Value | Exception]]
    ) -> list[Value]:
        """The blocks of ``keys``; ``make`` is called once with those that are neither here nor under way.

        It gives a block or an exception for each. The first exception among ``keys`` is raised.
        """
        values: dict[Key, Value] = {}
        waiting: dict[Key, Future[Value]] = {}
        mine: list[Key] = []
        with self._lock:
            for key in keys:
                found = self._blocks.get(key)
                if found is not None:
                    self._blocks.move_to_end(key)
                    values[key] = found
                    continue
                if key not in self._pending:
                    self._pending[key] = Future()
                    mine.append(key)
                waiting[key] = self._pending[key]
        if mine:
            self._make(mine, make, [waiting[key] for key in mine])
        return [values[key] if key in values else waiting[key].result() for key in keys]

    def clear(self) -> None:
        with self._lock:
            self._blocks.clear()
            self._bytes = 0

    def _make(
        self,
        keys: list[Key],
        make: Callable[[list[Key]], Sequence[Value | Exception]],
        futures: list[Future[Value]],
    ) -> None:
        try:
            made = make(keys)
        except BaseException as error:
            with self._lock:
                for key in keys:
                    del self._pending[key]
            for future in futures:
                future.set_exception(error)
            raise
        with self._lock:
            for key, value in zip(keys, made, strict=True):
                del self._pending[key]
                if not isinstance(value, Exception):
                    self._blocks[key] = value
                    self._bytes += self._weigh(value)
            while self._bytes > self.limit and len(self._blocks) > 1:
                self._bytes -= self._weigh(self._blocks.popitem(last=False)[1])
        for future, value in zip(futures, made, strict=True):
            if isinstance(value, Exception):
                future.set_exception(value)
            else:
                future.set_result(value)
