"""Requests and replies over a session, with readers that are sparse, damaged or wrong."""

from __future__ import annotations

import random
import struct

import pytest

from imagefs.block.views import RefusingReader
from imagefs.interfaces import Reader
from imagefs.nbd.exports import MAX_EXTENTS, Export, statuses
from imagefs.nbd.transmission import PIECE
from tests.mounter.fakes import BadReader, ShortReader, SparseReader, noise
from tests.nbd.client import (
    BLOCK_STATUS,
    CACHE,
    DISC,
    FLUSH,
    READ,
    TRIM,
    WRITE,
    WRITE_ZEROES,
    talking,
)

MIB = 2**20
SPARSE = SparseReader(9 * MIB + 77, {MIB: noise(3 * MIB), 8 * MIB: noise(MIB + 77, 2)})
DF, REQ_ONE = 4, 8
EPERM, EIO, EINVAL, EOVERFLOW = 1, 5, 22, 75
ERROR, ERROR_OFFSET = 2**15 + 1, 2**15 + 2


def one(reader: Reader) -> list[Export]:
    return [Export("disk", reader)]


def whole(content: dict[int, bytes], offset: int, length: int) -> bytes:
    """The chunks of a read as one piece; they must neither overlap nor leave a gap."""
    data = b""
    for at, part in sorted(content.items()):
        assert at == offset + len(data)
        data += part
    assert len(data) == length
    return data


def test_any_read_comes_back_as_it_is() -> None:
    rng = random.Random(7)
    with talking(one(SPARSE)) as (client, log):
        assert client.go() == (SPARSE.size, 0x183)
        for _ in range(60):
            offset = rng.randrange(SPARSE.size)
            length = rng.randint(1, min(SPARSE.size - offset, rng.choice((1, 512, 70_000, 9 * MIB))))
            content, errors = client.read(offset, length)
            assert not errors
            assert whole(content, offset, length) == SPARSE.read_at(offset, length)
    assert log == ["gone"]


def test_holes_are_not_sent_as_zeros() -> None:
    with talking(one(SPARSE)) as (client, _):
        client.go()
        client.ask(READ, 0, 8 * MIB)
        kinds = [(chunk.kind, len(chunk.payload), chunk.done) for chunk in client.chunks()]
        data = (1, 8 + PIECE, False)
        assert kinds == [(2, 12, False), data, data, data, (2, 12, True)]


def test_unfragmented_reads() -> None:
    with talking(one(SPARSE)) as (client, _):
        client.go()
        content, errors = client.read(MIB - 4096, 65_536, flags=DF)
        assert list(content.values()) == [SPARSE.read_at(MIB - 4096, 65_536)]
        assert not errors
        assert client.read(0, PIECE + 1, flags=DF) == ({}, {-1: EOVERFLOW})


def test_simple_replies() -> None:
    with talking(one(SPARSE)) as (client, _):
        assert client.go(structured=False) == (SPARSE.size, 0x103)
        for offset, length in ((0, 512), (MIB - 7, 3 * MIB), (8 * MIB, MIB + 77)):
            client.ask(READ, offset, length)
            assert next(client.chunks()).payload == bytes(4)
            assert client.exactly(length) == SPARSE.read_at(offset, length)
        client.ask(READ, 0, 512, flags=DF)
        assert next(client.chunks()).payload == struct.pack(">I", EINVAL)


@pytest.mark.parametrize(
    ("command", "offset", "length", "flags", "error"),
    [
        (READ, SPARSE.size - 511, 512, 0, EINVAL),
        (READ, SPARSE.size, 1, 0, EINVAL),
        (READ, 2**64 - 1, 2**32 - 1, 0, EINVAL),
        (READ, 0, 0, 0, EINVAL),
        (READ, 0, 512, 1, EINVAL),
        (READ, 0, 512, REQ_ONE, EINVAL),
        (BLOCK_STATUS, SPARSE.size - 1, 2, 0, EINVAL),
        (BLOCK_STATUS, 0, 0, 0, EINVAL),
        (BLOCK_STATUS, 0, 512, DF, EINVAL),
        (TRIM, 0, 512, 0, EPERM),
        (WRITE_ZEROES, 0, 512, 0, EPERM),
        (FLUSH, 0, 0, 0, EINVAL),
        (CACHE, 0, 512, 0, EINVAL),
        (8, 0, 0, 0, EINVAL),
        (65_535, 0, 0, 65_535, EINVAL),
    ],
)
def test_refused_and_the_connection_goes_on(
    command: int, offset: int, length: int, flags: int, error: int
) -> None:
    with talking(one(SPARSE)) as (client, _):
        client.go()
        client.ask(command, offset, length, flags=flags, cookie=2**64 - 1)
        (chunk,) = client.chunks(2**64 - 1)
        assert (chunk.kind, struct.unpack_from(">I", chunk.payload)[0]) == (ERROR, error)
        assert client.read(MIB, 512) == ({MIB: SPARSE.read_at(MIB, 512)}, {})


def test_a_read_of_more_than_anybody_may_ask_for() -> None:
    with talking(one(SparseReader(40 * MIB, {}))) as (client, _):
        client.go()
        assert client.read(0, 32 * MIB) == ({0: bytes(32 * MIB)}, {})
        assert client.read(0, 32 * MIB + 1) == ({}, {-1: EINVAL})


def test_a_write_is_swallowed_and_refused() -> None:
    with talking(one(SPARSE)) as (client, _):
        client.go()
        client.ask(WRITE, 0, 3 * MIB)
        client.socket.sendall(b"\x25\x60\x95\x13" * (3 * MIB // 4))
        (chunk,) = client.chunks()
        assert struct.unpack_from(">I", chunk.payload)[0] == EPERM
        assert client.read(MIB, 3) == ({MIB: SPARSE.read_at(MIB, 3)}, {})


def test_a_damaged_block_is_an_error_at_its_offset_and_the_rest_is_there() -> None:
    bad = range(3 * 65_536 + 100, 3 * 65_536 + 101)
    reader = BadReader(noise(10 * 65_536 + 5), bad)
    with talking(one(reader)) as (client, log):
        client.go()
        content, errors = client.read(7, reader.size - 7)
        assert errors == {3 * 65_536: EIO}
        for at, part in content.items():
            assert part == reader.data[at : at + len(part)]
        assert sum(map(len, content.values())) == reader.size - 7 - 65_536
        assert client.read(3 * 65_536, 100)[1] == {}, "before the bad byte"
        assert client.read(3 * 65_536 + 101, 100)[1] == {}, "behind it"
        assert client.read(3 * 65_536 + 100, 1) == ({}, {3 * 65_536 + 100: EIO})
        assert client.read(3 * 65_536, 65_536, flags=DF) == ({}, {3 * 65_536: EIO})
    assert all("chunk 5 fails its check" in line for line in log[:-1])
    assert len(log) == 4


def test_a_damaged_block_in_a_simple_reply() -> None:
    reader = BadReader(noise(3 * MIB), range(2 * MIB + 5, 2 * MIB + 6))
    with talking(one(reader)) as (client, _):
        client.go(structured=False)
        client.ask(READ, 0, 3 * MIB)
        assert next(client.chunks()).payload == struct.pack(">I", EIO)
        client.ask(READ, 0, 2 * MIB)
        assert next(client.chunks()).payload == bytes(4)
        assert client.exactly(2 * MIB) == reader.data[: 2 * MIB]


class Flaky(BadReader):
    """Good when it is read first, bad the second time."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data, range(0))
        self.seen: set[int] = set()

    def read_at(self, offset: int, length: int, /) -> bytes:
        if offset in self.seen:
            self.bad = range(self.size)
        self.seen.add(offset)
        return super().read_at(offset, length)


def test_a_simple_reply_that_cannot_be_finished_is_hung_up_on() -> None:
    with talking(one(Flaky(noise(3 * MIB)))) as (client, log):
        client.go(structured=False)
        client.ask(READ, 0, 3 * MIB)
        assert next(client.chunks()).payload == bytes(4)
        with pytest.raises(EOFError):
            client.exactly(3 * MIB)
        assert log[-1].startswith("violation")


@pytest.mark.parametrize("structured", [True, False])
def test_a_reader_that_breaks_its_contract_is_an_error_and_never_wrong_bytes(structured: bool) -> None:
    with talking(one(ShortReader(noise(9000)))) as (client, log):
        client.go(structured=structured)
        client.ask(READ, 0, 4096)
        (chunk,) = client.chunks()
        assert struct.unpack_from(">I", chunk.payload)[0] == EIO
    assert "RuntimeError" in log[0]


def test_block_status_follows_the_extents() -> None:
    hole, data = 3, 0
    with talking(one(SPARSE)) as (client, _):
        client.go()
        expected = [(MIB, hole), (3 * MIB, data), (4 * MIB, hole), (MIB + 77, data)]
        assert client.status(0, SPARSE.size) == expected
        assert client.status(0, SPARSE.size, flags=REQ_ONE) == expected[:1]
        assert client.status(MIB + 5, 3 * MIB) == [(3 * MIB - 5, data), (5, hole)]
        assert client.status(SPARSE.size - 1, 1) == [(1, data)]


def test_block_status_is_capped_and_goes_on_where_it_ended() -> None:
    stripes = SparseReader(4 * MAX_EXTENTS * 512, {i * 1024: b"x" * 512 for i in range(2 * MAX_EXTENTS)})
    with talking(one(stripes)) as (client, _):
        client.go()
        at = rounds = 0
        while at < stripes.size:
            rows = client.status(at, stripes.size - at)
            assert 0 < len(rows) <= MAX_EXTENTS
            assert all(row == (512, 3 * (i % 2)) for i, row in enumerate(rows, at // 512))
            at += sum(length for length, _ in rows)
            rounds += 1
        assert rounds == 4


def test_refused_ranges_are_not_called_zeros() -> None:
    reader = RefusingReader(SPARSE, [512, 2 * MIB], [1024, 2 * MIB + 512], "are bad")
    rows = statuses(reader, 0, SPARSE.size, one=False)
    assert rows == [(512, 3), (512, 0), (MIB - 1024, 3), (3 * MIB, 0), (4 * MIB, 3), (MIB + 77, 0)]
    assert statuses(reader, 600, 100, one=False) == [(100, 0)]
    assert statuses(reader, 1000, 100, one=True) == [(24, 0)]
    with talking(one(reader)) as (client, _):
        client.go()
        content, errors = client.read(0, 4096)
        assert errors == {512: EIO}
        assert sorted((at, len(part)) for at, part in content.items()) == [(0, 512), (1024, 3072)]


def test_requests_may_be_sent_ahead_and_disc_ends_it() -> None:
    with talking(one(SPARSE)) as (client, log):
        client.go()
        for cookie in range(100):
            client.ask(READ, MIB + cookie, 1, cookie=cookie)
        client.ask(DISC)
        for cookie in range(100):
            (chunk,) = client.chunks(cookie)
            assert chunk.payload[8:] == SPARSE.read_at(MIB + cookie, 1)
        with pytest.raises(EOFError):
            client.exactly(1)
        assert log == ["over"]
