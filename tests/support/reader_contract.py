"""The Reader contract (imagefs/interfaces.py) as a suite that any Reader is run through.

A test module calls ``check_reader(reader, expected)`` with the bytes the reader must hold, or
``check_large_reader`` with an oracle for disks that do not fit in memory.
"""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from imagefs.block.views import extents_of
from imagefs.errors import ImagefsError
from imagefs.interfaces import Reader, State


def check_reader(reader: Reader, expected: bytes, *, seed: int = 7, rounds: int = 200) -> None:
    """Hold ``reader`` against ``expected``: sizes, any offset and length, threads, extents, closing."""
    check_reads(reader, expected, seed=seed, rounds=rounds)
    check_threads(reader, expected, seed=seed)
    check_extents(reader, expected)
    check_closing(reader)


def check_reads(reader: Reader, expected: bytes, *, seed: int, rounds: int) -> None:
    size = len(expected)
    assert reader.size == size
    assert reader.read_at(0, size) == expected
    assert reader.read_at(0, size + 4096) == expected
    assert reader.read_at(size, 1) == b""
    assert reader.read_at(size + 12345, 10) == b""
    assert reader.read_at(0, 0) == b""
    for offset, length in ((-1, 1), (0, -1)):
        with pytest.raises(ValueError):
            reader.read_at(offset, length)
    dice = random.Random(seed)
    for _ in range(rounds):
        offset = dice.randrange(size + 1)
        length = dice.choice((1, 511, 4096, 65537, dice.randrange(size + 1)))
        assert reader.read_at(offset, length) == expected[offset : offset + length], (offset, length)


def check_threads(reader: Reader, expected: bytes, *, seed: int) -> None:
    """Eight threads at once, each with its own order of blocks, must all see the same bytes."""

    def work(number: int) -> None:
        dice = random.Random(seed * 100 + number)
        for _ in range(40):
            offset = dice.randrange(len(expected) + 1)
            length = dice.randrange(1, 100_000)
            assert reader.read_at(offset, length) == expected[offset : offset + length]

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(work, number) for number in range(8)]:
            done.result()


def check_extents(reader: Reader, expected: bytes) -> None:
    """Extents cover the disk in order; whatever is not STORED reads as zeros."""
    position, last = 0, None
    for extent in extents_of(reader, 0, reader.size):
        assert extent.offset == position
        assert extent.length > 0
        assert extent.state != last, "neighbouring extents must differ in state"
        if extent.state is not State.STORED:
            assert not any(expected[extent.offset : extent.offset + extent.length])
        position, last = extent.offset + extent.length, extent.state
    assert position == len(expected)


def check_closing(reader: Reader) -> None:
    reader.close()
    reader.close()
    with pytest.raises(ImagefsError):
        reader.read_at(0, 1)
