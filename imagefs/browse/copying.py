"""The bytes of one file from an image into a file of this machine: holes, digests, reading back."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from imagefs.block.linux import drop_cache, start_writeback
from imagefs.block.views import extents_of
from imagefs.interfaces import Reader, State

#: Bytes read at once, and the grain in which zeros become holes.
PIECE, GRAIN = 1 << 20, 64 << 10
#: So much is sent to the disk at once while a file is written.
BEHIND = 16 << 20
_ZEROS = bytes(PIECE)
_ZERO_GRAIN = bytes(GRAIN)

Ranges = list[tuple[int, int]]


class Hash(Protocol):
    def update(self, data: bytes | memoryview, /) -> None: ...
    def hexdigest(self) -> str: ...


def plan(reader: Reader) -> tuple[Ranges, Ranges]:
    """The ranges (offset, length) to copy, and those that the image does not have."""
    stored, unread = [], []
    for extent in extents_of(reader, 0, reader.size):
        if extent.state is State.STORED:
            stored.append((extent.offset, extent.length))
        elif extent.state in (State.UNREADABLE, State.SKIPPED):
            unread.append((extent.offset, extent.length))
    return stored, unread


def copy(reader: Reader, fd: int, runs: Ranges, advance: Callable[[int], None]) -> None:
    """Write the ranges ``runs`` to ``fd``, holes for zeros, and give it its size."""
    written = 0
    for offset, length in runs:
        for data in pieces(reader, offset, length):
            written = _put(fd, data, offset) or written
            offset += len(data)
            advance(len(data))
    if written < reader.size:
        os.ftruncate(fd, reader.size)


def copy_hashed(
    reader: Reader, fd: int, runs: Ranges, advance: Callable[[int], None], hashes: Sequence[Hash]
) -> None:
    """The same in one pass with ``hashes`` over the whole content, holes too."""
    done = 0
    for offset, length in runs:
        _feed_zeros(hashes, offset - done)
        for data in pieces(reader, offset, length):
            for each in hashes:
                each.update(data)
            _put(fd, data, offset)
            offset += len(data)
            advance(len(data))
        done = offset
    _feed_zeros(hashes, reader.size - done)
    os.ftruncate(fd, reader.size)


def pieces(reader: Reader, offset: int, length: int) -> Iterator[bytes]:
    end = offset + length
    while offset < end:
        data = reader.read_at(offset, min(PIECE, end - offset))
        yield data
        offset += len(data)


def _put(fd: int, data: bytes, offset: int) -> int:
    """Write what is not zeros of a piece; where that ends, 0 if there was none. The kernel begins to write what is
    complete to the disk, so that it is not all left for the end."""
    written = 0
    for start, end in _filled(data):
        write_all(fd, memoryview(data)[start:end], offset + start)
        written = offset + end
    whole = (offset + len(data)) // BEHIND * BEHIND
    if offset < whole:
        start_writeback(fd, whole - BEHIND, BEHIND)
    return written


def _filled(data: bytes) -> Iterator[tuple[int, int]]:
    """The parts (start, end) of a piece that are not zeros, in whole grains."""
    if len(data) <= GRAIN:
        if data != _ZEROS[: len(data)]:
            yield 0, len(data)
        return
    begin = None
    for at in range(0, len(data), GRAIN):
        if data.startswith(_ZERO_GRAIN[: len(data) - at], at):  # a comparison without a copy
            if begin is not None:
                yield begin, at
            begin = None
        elif begin is None:
            begin = at
    if begin is not None:
        yield begin, len(data)


def _feed_zeros(hashes: Sequence[Hash], count: int) -> None:
    while count > 0:
        for each in hashes:
            each.update(memoryview(_ZEROS)[: min(count, PIECE)])
        count -= PIECE


def write_all(fd: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(fd, data, offset)
        data, offset = data[written:], offset + written


def new_hashes(algorithms: Sequence[str]) -> list[Hash]:
    return [hashlib.new(name, usedforsecurity=False) for name in algorithms]


def digests_of(fd: int, algorithms: Sequence[str]) -> list[str]:
    """The digests of a file of this machine, from its start to its end."""
    hashes, offset = new_hashes(algorithms), 0
    while data := os.pread(fd, PIECE, offset):
        for each in hashes:
            each.update(data)
        offset += len(data)
    return [each.hexdigest() for each in hashes]


def from_the_medium(fd: int) -> None:
    """Let what follows be read from the medium instead of from memory, where the file system can do that."""
    os.fsync(fd)
    drop_cache(fd, device=False)


def same_content(reader: Reader, fd: int) -> bool:
    """Whether a file of this machine holds exactly what ``reader`` gives."""
    if os.fstat(fd).st_size != reader.size:
        return False
    offset = 0
    for data in pieces(reader, 0, reader.size):
        if os.pread(fd, len(data), offset) != data:
            return False
        offset += len(data)
    return True
