"""Sinks for tests: in memory, dirty at first, and ones that fail."""

from __future__ import annotations

import threading

from imagefs.errors import TargetError
from tests.support.images import noise


class MemorySink:
    """A Sink over bytes that are noise before they are written: a zero must be a promise.

    ``finished`` holds the bytes after ``finish``; ``calls`` what was called in which order.
    """

    def __init__(self, size: int, *, seed: int = 9, fail_at: int | None = None) -> None:
        self.data = bytearray(noise(size, seed))
        self.finished: bytes | None = None
        self.closed = 0
        self.calls: list[tuple[str, int, int]] = []
        self._fail_at = fail_at
        self._lock = threading.Lock()

    def write_at(self, offset: int, data: bytes | memoryview, /) -> None:
        self._called("write", offset, len(data))
        self.data[offset : offset + len(data)] = data

    def zero_at(self, offset: int, length: int, /) -> None:
        self._called("zero", offset, length)
        self.data[offset : offset + length] = bytes(length)

    def finish(self, size: int) -> None:
        self._called("finish", size, 0)
        self.finished = bytes(self.data[:size])

    def close(self) -> None:
        self.closed += 1

    def _called(self, name: str, offset: int, length: int) -> None:
        with self._lock:
            self.calls.append((name, offset, length))
            if self._fail_at == len(self.calls):
                raise TargetError("the target failed, as the test wants it")
