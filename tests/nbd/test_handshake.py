"""Greeting and options, one connection each."""

from __future__ import annotations

import struct

import pytest

from imagefs.block.views import BytesReader
from imagefs.nbd.exports import Export
from tests.nbd.client import (
    ABORT,
    ACK,
    BLOCK_STATUS,
    EXPORT_NAME,
    GO,
    INFO,
    INVALID,
    LIST,
    LIST_META,
    READ,
    SET_META,
    STRUCTURED,
    UNKNOWN,
    UNSUP,
    info,
    meta,
    talking,
)

EXPORTS = [
    Export("disk", BytesReader(b"d" * 9000), "the whole disk", 4096),
    Export("p1", BytesReader(b"1" * 512), "p1 esp"),
]
CONTEXT = b"base:allocation"


def test_the_exports_are_listed_by_name() -> None:
    with talking(EXPORTS) as (client, _):
        assert client.hello() == 3
        names = [data[4:].decode() for kind, data in client.option(LIST) if kind == 2]
        assert names == ["disk", "p1"]
        assert client.option(LIST, b"x")[0][0] == INVALID


def test_info_tells_what_is_asked_for() -> None:
    with talking(EXPORTS) as (client, _):
        client.hello()
        replies = client.option(INFO, info("", 3, 1, 2, 77))
        assert [kind for kind, _ in replies] == [3, 3, 3, 3, ACK]
        export, name, text, sizes = (data for kind, data in replies if kind == 3)
        assert struct.unpack(">HQH", export) == (0, 9000, 0x103), "read-only, several connections, no DF yet"
        assert (name, text) == (b"\0\1disk", b"\0\2the whole disk")
        assert struct.unpack(">HIII", sizes) == (3, 1, 4096, 32 * 2**20)
        assert client.option(STRUCTURED) == [(ACK, b"")]
        assert struct.unpack(">HQH", client.option(INFO, info("p1"))[0][1]) == (0, 512, 0x183)


def test_go_enters_and_info_does_not() -> None:
    with talking(EXPORTS) as (client, _):
        client.hello()
        client.option(INFO, info("p1"))
        assert client.option(GO, info("p2"))[0][0] == UNKNOWN
        assert client.option(GO, info("p1"))[-1][0] == ACK
        client.ask(READ, 0, 2)
        assert struct.unpack(">I", next(client.chunks()).payload) == (0,)
        assert client.exactly(2) == b"11"


@pytest.mark.parametrize(("flags", "zeroes"), [(1, 124), (3, 0), (0, 124), (2, 0)])
def test_the_old_way_in(flags: int, zeroes: int) -> None:
    with talking(EXPORTS) as (client, _):
        client.hello(flags)
        client.socket.sendall(b"IHAVEOPT" + struct.pack(">II", EXPORT_NAME, 2) + b"p1")
        assert struct.unpack(">QH", client.exactly(10)) == (512, 0x103)
        assert client.exactly(zeroes) == bytes(zeroes)
        client.ask(READ, 510, 2)
        assert next(client.chunks()).payload == bytes(4)
        assert client.exactly(2) == b"11"


@pytest.mark.parametrize("name", [b"p2", b"\xff", b"x" * 5000])
def test_the_old_way_cannot_say_no(name: bytes) -> None:
    with talking(EXPORTS) as (client, log):
        client.hello()
        client.socket.sendall(b"IHAVEOPT" + struct.pack(">II", EXPORT_NAME, len(name)) + name)
        with pytest.raises(EOFError):
            client.exactly(1)
        assert log[0].startswith("violation")


@pytest.mark.parametrize("option", [4, 5, 11, 12, 0, 2**32 - 1])
def test_options_we_do_not_know_are_refused_and_skipped(option: int) -> None:
    with talking(EXPORTS) as (client, _):
        client.hello()
        assert client.option(option, b"x" * 60_000)[0][0] == UNSUP
        assert client.option(LIST)[-1] == (ACK, b"")


def test_contexts() -> None:
    with talking(EXPORTS) as (client, _):
        client.hello()
        for option in (LIST_META, SET_META):
            assert client.option(option, meta("", "base:allocation"))[0][0] == INVALID, "structured first"
        client.option(STRUCTURED)
        listed, chosen = (4, bytes(4) + CONTEXT), (4, struct.pack(">I", 1) + CONTEXT)
        for queries in ((), ("base:",), ("base:allocation",), ("qemu:", "base:")):
            assert client.option(LIST_META, meta("", *queries)) == [listed, (ACK, b"")]
        assert client.option(LIST_META, meta("", "qemu:x")) == [(ACK, b"")]
        assert client.option(SET_META, meta("")) == [(ACK, b"")], "nothing selects nothing"
        assert client.option(SET_META, meta("", "base:")) == [(ACK, b"")], "no wildcards"
        assert client.option(SET_META, meta("", "base:allocation")) == [chosen, (ACK, b"")]
        assert client.option(SET_META, meta("p2", "base:allocation"))[0][0] == UNKNOWN
        assert client.option(SET_META, b"\0")[0][0] == INVALID


@pytest.mark.parametrize("second", [meta("p1", "base:allocation"), meta(""), meta("p7", "base:allocation")])
def test_the_last_selection_counts_and_only_for_its_export(second: bytes) -> None:
    with talking(EXPORTS) as (client, _):
        client.hello()
        client.option(STRUCTURED)
        assert len(client.option(SET_META, meta("", "base:allocation"))) == 2
        client.option(SET_META, second)
        assert client.option(GO, info(""))[-1][0] == ACK
        client.ask(BLOCK_STATUS, 0, 512)
        (chunk,) = client.chunks()
        assert (chunk.kind, chunk.payload[:4]) == (2**15 + 1, struct.pack(">I", 22))


def test_abort_is_answered() -> None:
    with talking(EXPORTS) as (client, log):
        client.hello()
        assert client.option(ABORT) == [(ACK, b"")]
        with pytest.raises(EOFError):
            client.exactly(1)
        assert log == ["over"]


def test_a_client_that_cannot_hear_answers_gets_none() -> None:
    with talking(EXPORTS) as (client, log):
        client.hello(0)
        with pytest.raises(EOFError):
            client.option(LIST)
        assert log[0].startswith("violation")


def test_haggling_for_ever_ends() -> None:
    with talking(EXPORTS) as (client, log):
        client.hello()
        with pytest.raises((EOFError, OSError)):
            for _ in range(2000):
                client.option(99)
        assert log[0].startswith("violation")
