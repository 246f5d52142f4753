"""The writer: order, poison, checkpoints that are enough to go on from, and what comes out."""

from __future__ import annotations

import random
from dataclasses import replace
from uuid import UUID, uuid4

import numpy as np
import pytest

from imagefs.errors import FormatError, ImagefsError, StoreError
from imagefs.format.checkpoint import (
    CHECKPOINT,
    CHECKPOINT_HEADER,
    CHECKPOINT_MAGIC,
    Checkpoint,
    decode_checkpoint,
)
from imagefs.format.codec import FRAME_SIZE, digest_of, make_frame
from imagefs.format.fields import TAIL_SIZE
from imagefs.format.header import Header, Kind
from imagefs.format.index import decode_block
from imagefs.format.trailer import StandsFor, Summary
from imagefs.image import writer as writer_module
from imagefs.image.catalog import scan
from imagefs.image.reader import ImageReader, read_tail
from imagefs.image.writer import CHECKPOINT_BYTES, CHECKPOINT_SECONDS, ImageWriter, abort_on_error
from imagefs.interfaces import State
from imagefs.store import MemoryStore
from tests.support.faults import FailingStore, Fuse
from tests.support.images import CHUNK, SET, disk_bytes, noise, plain_view_digest, text

NAME = "image.imagefs"
SUMMARY = Summary(disk_size=0, started=1, ended=2, view=bytes(32))


class Clock:
    """Seconds that pass only when the test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def header(**changes: object) -> Header:
    given = {
        "image": uuid4(),
        "set": SET,
        "kind": Kind.FULL,
        "created": 5,
        "chunk_size": CHUNK,
        "sector_size": 512,
    }
    return Header(**(given | changes))  # type: ignore[arg-type]


def start(store: MemoryStore | None = None, **changes: object) -> tuple[MemoryStore, ImageWriter, Clock]:
    store, clock = store or MemoryStore(), Clock()
    return store, ImageWriter(store.create(NAME), header(**changes), clock=clock), clock


def put(writer: ImageWriter, chunk_no: int, plain: bytes) -> None:
    digest = digest_of(plain)
    codec, frame = make_frame(chunk_no, plain, digest, 1)
    writer.store(chunk_no, codec, frame, digest)


def summary(size: int) -> Summary:
    return replace(SUMMARY, disk_size=size)


# -- what comes out -------------------------------------------------------------------------------


def test_an_image_and_its_counts() -> None:
    store, writer, _ = start()
    put(writer, 0, text(CHUNK))
    writer.mark(State.ZERO, 1, 2)
    writer.mark(State.ZERO, 3, 1)
    put(writer, 4, noise(500))
    found = writer.finish(summary(4 * CHUNK + 500))
    data = text(CHUNK) + bytes(3 * CHUNK) + noise(500)
    assert (found.stored, found.zero, found.absent) == (2, 3, 0)
    assert found.view == plain_view_digest(data)
    catalog = scan(store)
    assert catalog.images[0].summary == found
    assert disk_bytes(catalog, catalog.images[0]) == data
    reader = catalog.open_image(catalog.images[0])
    assert reader.extents().first.tolist() == [1]
    assert reader.extents().count.tolist() == [3]
    rows = reader.block(0)
    assert found.frame_bytes == int(rows.stored_length.sum()) + 2 * FRAME_SIZE


def test_nothing_is_there_before_finish() -> None:
    store, writer, _ = start()
    put(writer, 0, b"a" * CHUNK)
    assert list(store.list()) == []
    assert [info.name for info in store.partials()] == [NAME]
    writer.finish(summary(CHUNK))
    assert [info.name for info in store.list()] == [NAME]


def test_an_image_of_nothing() -> None:
    store, writer, _ = start()
    writer.finish(summary(0))
    catalog = scan(store)
    assert disk_bytes(catalog, catalog.images[0]) == b""


def test_ranges_and_stands_for_come_back() -> None:
    store, writer, _ = start()
    put(writer, 0, noise(CHUNK))
    writer.mark(State.UNREADABLE, 1, 1)
    writer.add_range(State.SKIPPED, 4096, 8192)
    writer.add_range(State.UNREADABLE, CHUNK, CHUNK)
    rows = [StandsFor(UUID(int=9), b"s" * 32, b"v" * 32)]
    writer.finish(summary(2 * CHUNK), rows)
    reader = ImageReader(store.open(NAME), NAME)
    found = reader.ranges()
    assert list(zip(found.first.tolist(), found.count.tolist(), found.state.tolist(), strict=True)) == [
        (4096, 8192, State.SKIPPED),
        (CHUNK, CHUNK, State.UNREADABLE),
    ]
    assert reader.stands_for() == rows


def test_the_largest_facts_fit_in_the_tail() -> None:
    """A listing needs one read: footer, table, summary and header copy in the last 64 KiB."""
    facts = {"a": "x" * (24 * 1024 - 8)}
    store, writer, _ = start(facts=facts)
    put(writer, 0, noise(CHUNK))
    writer.finish(replace(summary(CHUNK), facts=facts))
    reader = CountingReader(store.objects[NAME])
    ImageReader(reader, NAME)
    assert reader.reads[0] == (len(store.objects[NAME]) - TAIL_SIZE, TAIL_SIZE)
    with pytest.raises(FormatError, match="over the limit"):
        start(facts={"a": "x" * 24 * 1024})


class CountingReader:
    def __init__(self, data: bytes) -> None:
        self.data, self.size = data, len(data)
        self.reads: list[tuple[int, int]] = []

    def read_at(self, offset: int, length: int, /) -> bytes:
        self.reads.append((offset, length))
        return self.data[offset : offset + length]

    def close(self) -> None:
        pass


def test_listing_costs_one_read() -> None:
    store, writer, _ = start()
    for number in range(100):
        put(writer, number, noise(CHUNK, number))
    writer.finish(summary(100 * CHUNK))
    reader = CountingReader(store.objects[NAME])
    read_tail(reader)
    assert len(reader.reads) == 1


# -- order and poison -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        lambda writer: put(writer, 2, b"a" * CHUNK),
        lambda writer: put(writer, 0, b"a" * CHUNK),
        lambda writer: writer.mark(State.ZERO, 3, 1),
        lambda writer: writer.mark(State.ZERO, 0, 5),
        lambda writer: writer.mark(State.ZERO, 1, 0),
        lambda writer: writer.inherit(State.ZERO, 2, 1),
        lambda writer: writer.finish(summary(9 * CHUNK)),
        lambda writer: writer.finish(summary(0)),
    ],
)
def test_out_of_order_is_refused_and_poisons(call) -> None:  # type: ignore[no-untyped-def]
    store, writer, _ = start()
    put(writer, 0, text(CHUNK))
    with pytest.raises(StoreError):
        call(writer)
    for again in (
        lambda: put(writer, 1, text(CHUNK)),
        lambda: writer.mark(State.ZERO, 1, 1),
        lambda: writer.inherit(State.ZERO, 1, 1),
        lambda: writer.checkpoint(),
        lambda: writer.finish(summary(CHUNK)),
    ):
        with pytest.raises(StoreError, match="after a failure"):
            again()
    writer.abort()
    writer.abort()
    assert store.objects == store.unfinished == {}


def test_every_failing_append_poisons() -> None:
    """The N-th call of the object fails, for every N; nothing after it is taken, abort cleans up."""
    for at in range(2, 100):
        store = MemoryStore()
        fuse = Fuse(at, kill=False)
        writer = None
        try:
            writer = ImageWriter(FailingStore(store, fuse).create(NAME), header())
            put(writer, 0, text(CHUNK))
            writer.mark(State.ZERO, 1, 1)
            writer.checkpoint()
            put(writer, 2, noise(CHUNK))
            writer.finish(summary(3 * CHUNK))
        except StoreError:
            if writer is not None:
                with pytest.raises(StoreError):
                    writer.mark(State.ZERO, writer.next_chunk, 1)
                with pytest.raises(StoreError):
                    writer.finish(summary(writer.next_chunk * CHUNK))
                writer.abort()
                assert list(store.partials()) == []
            assert list(store.list()) == []
            continue
        break
    assert at > 8
    assert [info.name for info in store.list()] == [NAME]


def test_nothing_is_taken_after_finish() -> None:
    store, writer, _ = start()
    writer.mark(State.ZERO, 0, 1)
    writer.finish(summary(CHUNK))
    with pytest.raises(StoreError):
        writer.mark(State.ZERO, 1, 1)
    with pytest.raises(StoreError):
        writer.finish(summary(CHUNK))
    writer.abort()
    assert list(store.objects) == [NAME]


def test_an_error_while_cleaning_up_is_told_beside_the_first() -> None:
    class Stubborn:
        def abort(self) -> None:
            raise StoreError("cannot remove it")

    error = ValueError("the first")
    abort_on_error(Stubborn(), error)  # type: ignore[arg-type]
    assert error.__notes__ == ["and then: cannot remove it"]


def test_broken_memory_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written is decoded again: a header that comes out different never gets further."""
    monkeypatch.setattr(writer_module, "encode_header", lambda h: _encode(replace(h, level=h.level + 1)))
    store = MemoryStore()
    with pytest.raises(ImagefsError, match="does not read back"):
        ImageWriter(store.create(NAME), header())
    assert store.unfinished[NAME] == b""


_encode = writer_module.encode_header


# -- checkpoints ----------------------------------------------------------------------------------


def checkpoints(data: bytes) -> list[Checkpoint]:
    """Every checkpoint in the stream, found as salvage would: by its magic and checks alone."""
    found, at = [], data.find(CHECKPOINT_MAGIC)
    while at >= 0:
        head = data[at : at + CHECKPOINT_HEADER]
        if len(head) == CHECKPOINT_HEADER:
            length = CHECKPOINT.unpack_from(head)[4]
            try:
                point = decode_checkpoint(data[at : at + CHECKPOINT_HEADER + length], offset=at)
            except ImagefsError:
                pass
            else:
                assert point.previous == (found[-1][0] if found else 0)
                assert point.number == len(found) + 1
                found.append((at, point))
        at = data.find(CHECKPOINT_MAGIC, at + 1)
    return [point for _, point in found]


def rebuilt(
    data: bytes, points: list[Checkpoint]
) -> tuple[dict[int, tuple[int, int, int, bytes]], dict[int, int]]:
    """(rows by chunk, state by chunk) that the checkpoints know of, and nothing else is asked."""
    rows: dict[int, tuple[int, int, int, bytes]] = {}
    states: dict[int, int] = {}
    for point in points:
        parts = [decode_block(data[e.offset : e.offset + e.length], e) for e in point.blocks]
        for part in (*parts, point.rows):
            for i, chunk_no in enumerate(part.chunk_no.tolist()):
                row = (
                    int(part.offset[i]),
                    int(part.stored_length[i]),
                    int(part.codec[i]),
                    part.digest[i].tobytes(),
                )
                assert rows.setdefault(chunk_no, row) == row
        for first, count, state in zip(point.runs.first, point.runs.count, point.runs.state, strict=True):
            for chunk_no in range(int(first), int(first + count)):
                assert chunk_no not in states
                states[chunk_no] = int(state)
    return rows, states


@pytest.mark.parametrize("seed", range(6))
def test_resume_is_possible(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """From the stream cut off behind any checkpoint, everything up to it can be rebuilt."""
    monkeypatch.setattr(writer_module, "BLOCK_ROWS", 16)
    monkeypatch.setattr(writer_module, "EARLY_ROWS", 5)
    dice = random.Random(seed)
    store, writer, _ = start()
    stored: dict[int, bytes] = {}
    states: dict[int, int] = {}
    known: list[tuple[int, set[int], set[int]]] = []
    while writer.next_chunk < 150:
        number = writer.next_chunk
        if dice.random() < 0.75:
            stored[number] = noise(600, number) + text(CHUNK - 600)
            put(writer, number, stored[number])
        else:
            state, count = dice.choice((State.ZERO, State.SKIPPED, State.UNREADABLE)), dice.randrange(1, 4)
            writer.mark(state, number, count)
            states |= dict.fromkeys(range(number, number + count), int(state))
        if dice.random() < 0.15:
            writer.checkpoint()
            known.append((writer.next_chunk, set(stored), set(states)))
    writer.finish(summary(writer.next_chunk * CHUNK))
    data = store.objects[NAME]
    points = checkpoints(data)
    assert [point.next_chunk for point in points] == [chunk for chunk, _, _ in known]
    for number, (_, had_stored, had_states) in enumerate(known, 1):
        rows, runs = rebuilt(data, points[:number])
        assert set(rows) == had_stored
        assert runs == {chunk_no: states[chunk_no] for chunk_no in had_states}
        for chunk_no, (offset, length, codec, digest) in rows.items():
            assert digest == digest_of(stored[chunk_no])
            _, frame = make_frame(chunk_no, stored[chunk_no], digest, 1)
            assert data[offset : offset + FRAME_SIZE + length] == frame
            assert codec == frame[4]
    assert disk_bytes(scan(store), scan(store).images[0])[:600] == (stored.get(0) or bytes(600))[:600]


def test_checkpoints_change_nothing_for_readers() -> None:
    """The same chunks with and without: the same disk, view and counts."""
    found = []
    for with_points in (False, True):
        store, writer, _ = start()
        for number in range(30):
            if number % 3:
                writer.mark(State.ZERO, number, 1)
            else:
                put(writer, number, noise(CHUNK, number))
            if with_points:
                writer.checkpoint()
        made = writer.finish(summary(30 * CHUNK))
        catalog = scan(store)
        found.append((made, disk_bytes(catalog, catalog.images[0])))
    assert found[0] == found[1]


def test_a_checkpoint_every_30_seconds() -> None:
    store, writer, clock = start()
    for number in range(100):
        put(writer, number, text(CHUNK))
        clock.now += 1
        writer.checkpoint_if_due()
    points = checkpoints(bytes(store.unfinished[NAME]))
    assert [point.next_chunk for point in points] == [CHECKPOINT_SECONDS * i for i in (1, 2, 3)]
    assert [len(point.rows) for point in points] == [30, 30, 30]


def test_a_checkpoint_every_gigabyte_of_source() -> None:
    store, writer, _ = start(chunk_size=4 * 2**20)
    per_gigabyte = CHECKPOINT_BYTES // (4 * 2**20)
    for number in range(0, 5 * per_gigabyte, 64):
        writer.mark(State.ZERO, number, 64)
        writer.checkpoint_if_due()
    points = checkpoints(bytes(store.unfinished[NAME]))
    doubling = [64 * 2**i for i in range(2)]  # 64 chunks come at once here, which is 256 MiB
    assert [point.next_chunk for point in points] == doubling + [per_gigabyte * i for i in range(1, 6)]
    assert all(len(point.runs) == 1 for point in points)


def test_the_first_checkpoints_come_early() -> None:
    store, writer, _ = start()
    for number in range(100 * 2**20 // CHUNK):
        writer.mark(State.ZERO, number, 1)
        writer.checkpoint_if_due()
    points = checkpoints(bytes(store.unfinished[NAME]))
    assert [point.next_chunk * CHUNK // 2**20 for point in points] == [16, 32, 64]


def test_ranges_are_in_the_checkpoints() -> None:
    store, writer, _ = start()
    writer.mark(State.UNREADABLE, 0, 1)
    writer.add_range(State.UNREADABLE, 0, CHUNK)
    writer.checkpoint()
    writer.checkpoint()
    first, second = checkpoints(bytes(store.unfinished[NAME]))
    assert first.ranges.first.tolist() == [0]
    assert len(second.ranges) == len(second.runs) == len(second.rows) == 0


def test_blocks_are_full_but_for_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "BLOCK_ROWS", 10)
    store, writer, _ = start()
    for number in range(25):
        put(writer, number, text(CHUNK, number))
    writer.finish(summary(25 * CHUNK))
    reader = ImageReader(store.open(NAME), NAME)
    assert [entry.rows for entry in reader.directory] == [10, 10, 5]
    assert reader.chunk_nos().tolist() == list(range(25))
    assert np.array_equal(np.concatenate([rows.chunk_no for rows in reader.blocks()]), np.arange(25))
    catalog = scan(store)
    assert disk_bytes(catalog, catalog.images[0]) == b"".join(text(CHUNK, n) for n in range(25))
