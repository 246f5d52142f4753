"""What goes between a worker and its parent: values come out as they went in, and no bytes do harm."""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagefs.browse import channel as ch
from imagefs.browse import wire
from imagefs.browse.channel import Channel, ChannelClosed, ChannelSilent
from imagefs.browse.content import Piece
from imagefs.errors import BrowseError, IntegrityError, PathNotFound, SourceError
from imagefs.interfaces import Entry, EntryType, Extent, Named, Place, State, Stream, Whole

NAMES = st.binary(min_size=1, max_size=40).map(lambda raw: raw.replace(b"\0", b"0"))
TEXTS = st.text(max_size=20).map(lambda text: text.replace("\0", "0"))
INTS = st.integers(-(1 << 70), 1 << 70) | st.integers(0, 1 << 40)
TIMES = st.none() | INTS
ENTRIES = st.builds(
    Entry,
    path=NAMES,
    type=st.sampled_from(EntryType),
    size=INTS,
    inode=TEXTS,
    mode=st.integers(0, 0o7777),
    mtime_ns=TIMES,
    atime_ns=TIMES,
    ctime_ns=TIMES,
    crtime_ns=TIMES,
    deleted=st.booleans(),
    rdev=st.none() | st.tuples(st.integers(0, 1 << 20), st.integers(0, 1 << 20)),
    flags=st.lists(TEXTS, max_size=2).map(tuple),
)
PLAIN = st.none() | st.booleans() | INTS | st.binary(max_size=30) | TEXTS
OTHERS = (
    st.builds(Named, NAMES, st.sampled_from(EntryType), TEXTS)
    | st.builds(Place, NAMES, INTS, INTS)
    | st.builds(Stream, NAMES, INTS)
    | st.builds(Extent, st.sampled_from(State), INTS, INTS)
    | st.sampled_from(Whole)
)
VALUES = st.recursive(
    PLAIN | OTHERS | ENTRIES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.binary(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@given(VALUES)
def test_values_come_out_as_they_went_in(value: object) -> None:
    found = wire.loads(wire.dumps(value))
    assert found == value
    assert type(found) is type(value)


@given(st.lists(ENTRIES | st.builds(Named, NAMES, st.sampled_from(EntryType), TEXTS), max_size=30))
def test_portions_come_out_as_they_went_in(found: list[Entry | Named]) -> None:
    facts, again = wire.unpack_portion(wire.pack_portion([1, None], found))
    assert facts == [1, None]
    assert again == found
    assert list(map(type, again)) == list(map(type, found))


@given(st.lists(st.tuples(st.integers(0, 1000), st.none() | st.integers(0, 1 << 60))))
def test_pieces_come_out_as_they_went_in(sizes: list[tuple[int, int | None]]) -> None:
    pieces, at = [], 0
    for length, source in sizes:
        pieces.append(Piece(at, length, source))
        at += length
    assert wire.unpack_pieces(wire.pack_pieces(pieces)) == pieces


@given(
    st.sampled_from([BrowseError, PathNotFound, IntegrityError]),
    TEXTS,
    TEXTS,
    st.dictionaries(st.sampled_from(["path", "chunk", "offset"]), PLAIN),
)
def test_errors_come_out_as_they_went_in(
    cls: type[BrowseError], message: str, hint: str, data: dict[str, object]
) -> None:
    found = wire.unpack_error(wire.pack_error(cls(message, hint=hint, **data)))
    assert type(found) is cls
    assert (found.message, found.hint, found.data) == (message, hint, data)


def test_an_error_of_a_class_of_its_own_is_the_one_it_is_made_of() -> None:
    class Special(SourceError):
        pass

    found = wire.unpack_error(wire.pack_error(Special("no", path=Path("/x"))))
    assert type(found) is SourceError
    assert found.data == {"path": "/x"}


SAMPLES = [
    wire.dumps(
        [1, b"two", "three", None, True, {b"k": Stream(b"s", 4)}, Entry(b"/a", EntryType.FILE, 1, "2")]
    ),
    wire.pack_portion([None, None, [["5", b"/p", 1]]], [Entry(b"/a", EntryType.FILE, 1, "2", flags=("x",))]),
    wire.pack_portion(
        [3, b"e", []], [Named(b"n", EntryType.FILE, "7"), Entry(b"/a", EntryType.FIFO, 1, "2")]
    ),
    wire.pack_pieces([Piece(0, 5, 9)]),
    wire.pack_error(BrowseError("m", hint="h", chunk=4)),
]


@given(
    st.binary(max_size=200)
    | st.sampled_from(SAMPLES).flatmap(
        lambda sample: st.lists(
            st.tuples(st.integers(0, len(sample) - 1), st.integers(0, 255)), max_size=6
        ).map(lambda changes: _changed(sample, changes))
    )
)
def test_whatever_the_bytes_a_value_or_a_wire_error(raw: bytes) -> None:
    for unpack in (wire.loads, wire.unpack_portion, wire.unpack_pieces, wire.unpack_error):
        with contextlib.suppress(wire.WireError):
            unpack(raw)


def _changed(sample: bytes, changes: list[tuple[int, int]]) -> bytes:
    data = bytearray(sample)
    for at, value in changes:
        data[at] = value
    return bytes(data)


@pytest.mark.parametrize(
    "raw",
    [
        b"l\xff\xff\xff\x7f",
        b"d\xff\xff\xff\x7f",
        b"b\xff\xff\xff\xff",
        b"l\x01\0\0\0" * 1000,
        b"o\xff\x01N",
        b"o\x02\x02i\x01\x01i\x01\x01",
        b"o\x04\x01s\x03\0\0\0abc",
        wire.dumps({b"a": 1}).replace(b"b\x01\0\0\0a", b"l\0\0\0\0"),
    ],
)  # fmt: skip
def test_bytes_that_promise_too_much(raw: bytes) -> None:
    with pytest.raises(wire.WireError):
        wire.loads(raw)


def test_what_is_of_no_known_class_is_not_sent() -> None:
    for value in (1.5, object(), {1, 2}, Path("/")):
        with pytest.raises(TypeError):
            wire.dumps(value)


def ends() -> tuple[Channel, Channel]:
    one, other = socket.socketpair()
    return Channel(one, silence=0.2), Channel(other)


def test_messages_of_every_length_arrive_whole() -> None:
    here, there = ends()
    for length in (0, 1, 4095, 4096, (256 << 10) - 6, (256 << 10) - 5, 256 << 10, 3 << 20):
        data = bytes([length % 251]) * length
        sender = threading.Thread(target=there.send, args=(ch.ANSWER, data))
        sender.start()
        assert here.receive() == (ch.ANSWER, data)
        sender.join()


def test_silence_and_ends_are_told_apart() -> None:
    here, there = ends()
    with pytest.raises(ChannelSilent):
        here.receive()
    there._sock.sendall(b"a")
    with pytest.raises(ChannelSilent):
        here.receive()
    there.end()
    with pytest.raises(ChannelClosed):
        here.receive()


def test_a_message_that_is_too_long_is_refused_before_memory_is_taken() -> None:
    here, there = ends()
    there._sock.sendall(b"a\xff\xff\xff\xff")
    with pytest.raises(ChannelClosed):
        here.receive()
