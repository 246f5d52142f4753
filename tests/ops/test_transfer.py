"""Transfer: every byte arrives, zeros are promised and not assumed, and errors leave it unfinished."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagefs.block.views import BytesReader, SliceReader
from imagefs.errors import IntegrityError, SourceError, TargetError
from imagefs.format.codec import FRAME_SIZE
from imagefs.image.catalog import scan
from imagefs.interfaces import Extent, State
from imagefs.ops.transfer import GRAIN, TransferResult, transfer
from imagefs.store import MemoryStore
from tests.support.images import CHUNK, Craft, capture_bytes, noise, text
from tests.support.sinks import MemorySink

MIB = 2**20


def moved(data: bytes, **options: int) -> tuple[MemorySink, TransferResult]:
    sink = MemorySink(len(data))
    return sink, transfer(BytesReader(data), sink, label="clone", **options)


@pytest.mark.parametrize("size", [0, 1, GRAIN - 1, GRAIN, GRAIN + 1, MIB, 3 * MIB + 17])
@pytest.mark.parametrize("threads", [1, 3])
def test_any_size(size: int, threads: int) -> None:
    sink, result = moved(noise(size), threads=threads)
    assert sink.finished == noise(size)
    assert result == TransferResult(size, 0)


@given(
    st.lists(st.tuples(st.booleans(), st.integers(1, 3 * GRAIN)), max_size=12),
    st.integers(0, 2**32),
)
@settings(max_examples=40)
def test_zeros_anywhere(parts: list[tuple[bool, int]], seed: int) -> None:
    data = b"".join(bytes(length) if zero else noise(length, seed) for zero, length in parts)
    sink, result = moved(data, threads=2)
    assert sink.finished == data
    assert result.data_bytes + result.zero_bytes == len(data)


def test_writes_come_in_order_and_cover_everything_once() -> None:
    data = noise(MIB) + bytes(5 * GRAIN) + noise(100) + bytes(2 * MIB)
    sink, _ = moved(data, threads=2)
    position = 0
    for name, offset, length in sink.calls[:-1]:
        assert offset == position
        assert name in ("write", "zero")
        position += length
    assert position == len(data)
    assert sink.calls[-1] == ("finish", len(data), 0)


def test_whole_stretches_of_zeros_are_left_to_the_sink() -> None:
    data = noise(GRAIN) + bytes(3 * GRAIN) + noise(GRAIN)
    sink, result = moved(data, threads=1)
    assert ("zero", GRAIN, 3 * GRAIN) in sink.calls
    assert result == TransferResult(2 * GRAIN, 3 * GRAIN)


class Sparse(BytesReader):
    """Says of its middle that it holds no data, and fails the test when that is read."""

    def __init__(self, state: State) -> None:
        super().__init__(noise(MIB) + bytes(4 * MIB) + noise(99))
        self.state = state

    def extents(self, offset: int, length: int, /) -> Iterator[Extent]:
        yield Extent(State.STORED, 0, MIB)
        yield Extent(self.state, MIB, 4 * MIB)
        yield Extent(State.STORED, 5 * MIB, 99)

    def read_at(self, offset: int, length: int, /) -> bytes:
        assert offset + length <= MIB or offset >= 5 * MIB
        return super().read_at(offset, length)


@pytest.mark.parametrize("state", [State.ZERO, State.SKIPPED, State.UNREADABLE])
def test_what_holds_no_data_is_zeroed_and_not_read(state: State) -> None:
    reader = Sparse(state)
    sink = MemorySink(reader.size)
    transfer(reader, sink, label="restore", threads=2)
    assert sink.finished == noise(MIB) + bytes(4 * MIB) + noise(99)
    assert ("zero", MIB, 4 * MIB) in sink.calls


def test_a_chain_and_a_slice_of_it(tmp_path: Path) -> None:
    store = MemoryStore()
    data = text(10 * CHUNK) + bytes(10 * CHUNK) + noise(5 * CHUNK)
    for step in (noise(len(data), 8), bytes(len(data)), data):
        capture_bytes(store, step, tmp_path / "disk")
    catalog = scan(store)
    disk = catalog.open_disk(catalog.images[-1])
    for reader, expected in ((disk, data), (SliceReader(disk, 777, 9 * CHUNK), data[777 : 777 + 9 * CHUNK])):
        sink = MemorySink(reader.size)
        transfer(reader, sink, label="restore")
        assert sink.finished == expected


@pytest.mark.parametrize("fail_at", [1, 2, 3])
def test_a_target_that_fails_is_not_finished(fail_at: int) -> None:
    data = noise(3 * MIB)
    sink = MemorySink(len(data), fail_at=fail_at)
    with pytest.raises(TargetError):
        transfer(BytesReader(data), sink, label="clone", threads=2)
    assert sink.finished is None
    assert len(sink.calls) == fail_at
    assert no_threads()


def test_a_source_that_fails_leaves_the_target_unfinished() -> None:
    class Failing(BytesReader):
        def read_at(self, offset: int, length: int, /) -> bytes:
            if offset >= 2 * MIB:
                raise SourceError("bad sector")
            return super().read_at(offset, length)

    sink = MemorySink(4 * MIB)
    with pytest.raises(SourceError):
        transfer(Failing(noise(4 * MIB)), sink, label="clone", threads=2)
    assert sink.finished is None
    assert sink.data[: 2 * MIB] == noise(4 * MIB)[: 2 * MIB], "what came before the error has arrived"
    assert no_threads()


def test_a_damaged_chunk_ends_it_before_a_wrong_byte_is_written(tmp_path: Path) -> None:
    store = MemoryStore()
    data = noise(8 * CHUNK)
    info = capture_bytes(store, data, tmp_path / "disk").info
    reader = scan(store).open_image(info)
    at = int(reader.block(0).offset[5]) + FRAME_SIZE
    image = bytearray(store.objects[info.name])
    image[at] ^= 1
    store.objects[info.name] = bytes(image)
    catalog = scan(store)
    sink = MemorySink(len(data))
    with pytest.raises(IntegrityError, match="chunk 5"):
        transfer(catalog.open_disk(catalog.images[0]), sink, label="restore")
    assert sink.finished is None


def test_progress_and_cancelling() -> None:
    class Watching:
        def __init__(self, stop_at: int = 2**60) -> None:
            self.labels: list[str] = []
            self.count, self.stop_at = 0, stop_at

        def start(self, label: str, total: int | None, /) -> None:
            self.labels.append(f"{label} {total}")

        def advance(self, count: int, /) -> None:
            self.count += count
            if self.count >= self.stop_at:
                raise KeyboardInterrupt

        def note(self, message: str, /) -> None:
            pass

    data = noise(2 * MIB) + bytes(MIB)
    watching, sink = Watching(), MemorySink(len(data))
    transfer(BytesReader(data), sink, label="clone", progress=watching)
    assert watching.labels == [f"clone {len(data)}", "finish None"]
    assert watching.count == len(data)
    sink = MemorySink(len(data))
    with pytest.raises(KeyboardInterrupt):
        transfer(BytesReader(data), sink, label="clone", progress=Watching(MIB))
    assert sink.finished is None
    assert no_threads()


def test_a_huge_hole_costs_one_call() -> None:
    store = MemoryStore()
    size = 2**50
    Craft(size, extents=[(0, size // CHUNK, int(State.ZERO))]).put(store)
    catalog = scan(store)
    disk = catalog.open_disk(catalog.images[0])

    class Notes(MemorySink):
        def zero_at(self, offset: int, length: int, /) -> None:
            self.calls.append(("zero", offset, length))

    sink = Notes(0)
    result = transfer(disk, sink, label="restore")
    assert sink.calls[0] == ("zero", 0, size)
    assert result == TransferResult(0, size)


def no_threads() -> bool:
    return not [thread for thread in threading.enumerate() if thread.name.startswith(("pump", "read-ahead"))]
