"""Read-ahead: streams are seen, random reads cost nothing, and the bytes are right under threads."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from imagefs.block.readahead import MINIMUM, STREAMS, WINDOW, ReadAhead
from imagefs.errors import ImagefsError
from imagefs.interfaces import Extent, State
from tests.support.images import noise

BLOCK = 64 * 1024
SIZE = 24 * 2**20 + 1234
STEP = 128 * 1024


class Blocks:
    """A Prefetcher that notes what it is asked to make; ``gate`` can hold the makers."""

    block_size = BLOCK

    def __init__(self, size: int = SIZE) -> None:
        self.size = size
        self.made: list[int] = []
        self.zero: set[int] = set()
        self.gate: threading.Event | None = None
        self.lock = threading.Lock()

    def read_at(self, offset: int, length: int, /) -> bytes:
        if offset < 0 or length < 0:
            raise ValueError
        return bytes(max(0, min(length, self.size - offset)))

    def wanted(self, first: int, end: int, /) -> Iterator[tuple[int, int]]:
        with self.lock:
            blocks = [block for block in range(first, end) if block not in self.zero | set(self.made)]
        for block in blocks:
            yield block, block + 1

    def make(self, first: int, end: int, /) -> None:
        if self.gate is not None:
            assert self.gate.wait(300)
        with self.lock:
            self.made += range(first, end)

    def extents(self, offset: int, length: int, /) -> Iterator[Extent]:
        yield Extent(State.STORED, offset, min(length, self.size - offset))

    def close(self) -> None:
        pass


def settled(ahead: ReadAhead) -> None:
    """Wait until everything that was asked for is made, without ending the read-ahead."""
    if ahead._pool is not None:
        for _ in range(2):
            barrier = threading.Barrier(ahead._threads + 1)
            for _ in range(ahead._threads):
                ahead._pool.submit(barrier.wait, 10)
            barrier.wait(300)


def test_a_stream_is_read_ahead() -> None:
    blocks = Blocks()
    ahead = ReadAhead(blocks)
    for offset in range(0, 2**20, STEP):
        ahead.read_at(offset, STEP)
    settled(ahead)
    end = (2**20 + WINDOW) // BLOCK
    assert len(blocks.made) == len(set(blocks.made))
    assert set(range(2**20 // BLOCK, end - WINDOW // BLOCK // 4)) <= set(blocks.made)
    assert max(blocks.made) <= end
    ahead.close()


def test_a_whole_disk_in_order_asks_for_each_block_once() -> None:
    blocks = Blocks()
    ahead = ReadAhead(blocks)
    for offset in range(0, SIZE, STEP):
        ahead.read_at(offset, STEP)
        settled(ahead)
    ahead.close()
    assert len(blocks.made) == len(set(blocks.made))
    assert max(blocks.made) == SIZE // BLOCK


def test_random_reads_are_not_read_ahead() -> None:
    blocks = Blocks(2**40)
    ahead = ReadAhead(blocks)
    dice = random.Random(1)
    for _ in range(2000):
        ahead.read_at(dice.randrange(2**40), dice.choice((4096, 8192, STEP)))
    assert ahead._pool is None, "not even the threads have started"
    assert blocks.made == []
    ahead.close()


def test_small_reads_are_left_alone() -> None:
    blocks = Blocks()
    ahead = ReadAhead(blocks)
    for offset in range(0, 2**20, 4096):
        ahead.read_at(offset, 4096)
    assert blocks.made == []
    ahead.close()


def test_it_begins_only_after_a_while() -> None:
    blocks = Blocks()
    ahead = ReadAhead(blocks)
    ahead.read_at(0, MINIMUM - 1)
    assert ahead._pool is None
    ahead.read_at(MINIMUM - 1, BLOCK)
    settled(ahead)
    assert blocks.made
    ahead.close()


def test_pieces_of_a_stream_may_come_out_of_order() -> None:
    """The kernel asks on several threads: the second piece may arrive before the first."""
    blocks = Blocks()
    ahead = ReadAhead(blocks)
    for offset in range(0, 2**21, 2 * STEP):
        ahead.read_at(offset + STEP, STEP)
        ahead.read_at(offset, STEP)
    settled(ahead)
    assert max(blocks.made) * BLOCK >= 2**21 + WINDOW // 2
    ahead.close()


@pytest.mark.parametrize("count", [2, STREAMS])
def test_several_streams_at_once(count: int) -> None:
    blocks = Blocks(2**34)
    ahead = ReadAhead(blocks)
    starts = [number * 2**29 for number in range(count)]
    for offset in range(0, 2**20, STEP):
        for start in starts:
            ahead.read_at(start + offset, STEP)
    settled(ahead)
    for start in starts:
        near = [block for block in blocks.made if start <= block * BLOCK < start + 2**29]
        assert max(near) * BLOCK > start + 2**20
        assert max(near) * BLOCK <= start + 2**20 + WINDOW
    ahead.close()


def test_streams_are_forgotten_in_time() -> None:
    ahead = ReadAhead(Blocks(2**50))
    for number in range(1000):
        ahead.read_at(number * 2**30, STEP)
    assert len(ahead._streams) == STREAMS
    ahead.close()


def test_what_holds_no_data_is_not_made() -> None:
    blocks = Blocks()
    blocks.zero = set(range(0, SIZE // BLOCK + 1, 2))
    ahead = ReadAhead(blocks)
    for offset in range(0, SIZE, STEP):
        ahead.read_at(offset, STEP)
    settled(ahead)
    assert blocks.made
    assert not set(blocks.made) & blocks.zero
    ahead.close()


def test_nothing_is_asked_for_past_the_end() -> None:
    blocks = Blocks(2**20 + 1)
    ahead = ReadAhead(blocks)
    for offset in range(0, 2**20 + STEP, STEP):
        ahead.read_at(offset, STEP)
    settled(ahead)
    assert max(blocks.made) == 2**20 // BLOCK
    ahead.close()


def test_closing_waits_for_the_makers_and_drops_what_waits() -> None:
    blocks = Blocks()
    blocks.gate = threading.Event()
    ahead = ReadAhead(blocks)
    for offset in range(0, 2**20, STEP):
        ahead.read_at(offset, STEP)
    threading.Timer(0.1, blocks.gate.set).start()
    ahead.close()
    made = len(blocks.made)
    assert made < WINDOW // BLOCK
    with pytest.raises(ImagefsError):
        ahead.read_at(0, 1)
    assert len(blocks.made) == made
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read-ahead")]


class Content(Blocks):
    """Blocks with bytes in them, made once and kept for a while."""

    def __init__(self, data: bytes) -> None:
        super().__init__(len(data))
        self.data = data

    def read_at(self, offset: int, length: int, /) -> bytes:
        super().read_at(offset, length)
        return self.data[offset : offset + length]


def test_bytes_are_right_on_many_threads() -> None:
    data = noise(3 * 2**20 + 99)
    ahead = ReadAhead(Content(data), threads=3)

    def stream(number: int) -> None:
        for offset in range(number * 1000, len(data), STEP):
            assert ahead.read_at(offset, STEP) == data[offset : offset + STEP]

    with ThreadPoolExecutor(6) as pool:
        for future in [pool.submit(stream, number) for number in range(6)]:
            future.result(30)
    ahead.close()
