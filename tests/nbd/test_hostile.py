"""Clients that mean no good: any bytes at any moment, stalling, flooding, vanishing."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagefs.block.views import BytesReader
from imagefs.nbd.exports import Export
from imagefs.nbd.listening import Listener, listen_unix
from imagefs.nbd.server import Server
from imagefs.nbd.stream import Gone, Stream
from tests.mounter.conftest import wait_until
from tests.mounter.fakes import SparseReader, noise
from tests.nbd.client import GO, READ, SET_META, STRUCTURED, Client, info, meta, talking

DISK = SparseReader(300_000, {4096: noise(100_000)})
EXPORTS = [Export("disk", DISK, block_size=4096)]


def drain(connection: socket.socket) -> bytes:
    """Whatever the server says until it hangs up."""
    heard = bytearray()
    with contextlib.suppress(OSError):
        while piece := connection.recv(65_536):
            heard += piece
    return bytes(heard)


def option(number: int, data: bytes) -> bytes:
    return b"IHAVEOPT" + struct.pack(">II", number, len(data)) + data


#: Option headers that lie, options of any bytes, good ones, and plain garbage.
OPTIONS = st.one_of(
    st.builds(option, st.integers(0, 20), st.binary(max_size=60)),
    st.builds(lambda name: option(GO, info(name)), st.text(max_size=20)),
    st.builds(lambda name, query: option(SET_META, meta(name, query)), st.text(max_size=5), st.text(max_size=20)),
    st.just(option(STRUCTURED, b"")),
    st.builds(lambda length: b"IHAVEOPT" + struct.pack(">II", GO, length), st.integers(0, 2**32 - 1)),
    st.binary(max_size=40),
)  # fmt: skip
REQUESTS = st.builds(
    lambda flags, command, cookie, offset, length: struct.pack(
        ">IHHQQI", 0x25609513, flags, command, cookie, offset, length
    ),
    st.integers(0, 65_535),
    st.integers(0, 9),
    st.integers(0, 2**64 - 1),
    st.one_of(st.integers(0, 400_000), st.integers(0, 2**64 - 1)),
    st.one_of(st.integers(0, 400_000), st.integers(0, 2**32 - 1)),
)


def talk(messages: list[bytes]) -> list[str]:
    """Send them all to a server, hear it out, and give its log; it must end by itself."""
    with talking(EXPORTS) as (client, log):
        reader = threading.Thread(target=drain, args=(client.socket,), daemon=True)
        reader.start()
        with contextlib.suppress(OSError):
            for message in messages:
                client.socket.sendall(message)
            client.socket.shutdown(socket.SHUT_WR)
        reader.join(300)
        assert not reader.is_alive()
    return log


@settings(max_examples=150)
@given(st.binary(max_size=8), st.lists(OPTIONS, max_size=8))
def test_any_handshake(flags: bytes, options: list[bytes]) -> None:
    log = talk([flags or struct.pack(">I", 3), *options])
    assert not [line for line in log if line.startswith("BUG")]


@settings(max_examples=150)
@given(st.booleans(), st.lists(st.one_of(REQUESTS, st.binary(max_size=60)), max_size=12))
def test_any_transmission(structured: bool, requests: list[bytes]) -> None:
    way_in = [struct.pack(">I", 3)]
    if structured:
        way_in += [option(STRUCTURED, b""), option(SET_META, meta("", "base:allocation"))]
    log = talk([*way_in, option(GO, info("")), *requests])
    assert not [line for line in log if line.startswith("BUG")]


@settings(max_examples=100)
@given(st.integers(0, 310_000), st.integers(0, 310_000), st.sampled_from([0, 4]))
def test_whatever_comes_is_right(offset: int, length: int, flags: int) -> None:
    with talking(EXPORTS) as (client, _):
        client.go()
        content, errors = client.read(offset, length, flags=flags)
    good = length > 0 and offset + length <= DISK.size
    assert bool(errors) is not good
    data = b"".join(part for _, part in sorted(content.items()))
    assert data == (DISK.read_at(offset, length) if good else b"")


def test_an_option_longer_than_any_is_not_waited_for() -> None:
    with talking(EXPORTS) as (client, log):
        client.hello()
        client.socket.sendall(b"IHAVEOPT" + struct.pack(">II", GO, 2**32 - 1))
        assert drain(client.socket) == b""
        assert log == [f"violation: option 7 of {2**32 - 1} bytes"]


def test_a_write_longer_than_any_is_not_waited_for() -> None:
    with talking(EXPORTS) as (client, log):
        client.go()
        client.ask(1, 0, 2**32 - 1)
        assert drain(client.socket) == b""
        assert log == [f"violation: a write of {2**32 - 1} bytes"]


def test_one_that_stalls_in_a_message_is_hung_up_on() -> None:
    for sent in (b"", b"\0\0", struct.pack(">I", 3) + b"IHAVE"):
        with talking(EXPORTS, stall=0.2) as (client, log):
            client.socket.sendall(sent)
            drain(client.socket)
            assert log == ["gone"]


def test_one_that_trickles_is_hung_up_on() -> None:
    """Each byte comes in time, the message does not."""
    ours, theirs = socket.socketpair()
    stream = Stream(theirs, stall=0.3)
    stop = threading.Event()

    def trickle() -> None:
        while not stop.wait(0.05):
            with contextlib.suppress(OSError):
                ours.send(b"x")

    thread = threading.Thread(target=trickle, daemon=True)
    thread.start()
    with pytest.raises(Gone):
        stream.read(100_000)
    stop.set()
    thread.join()
    stream.close()
    ours.close()


def test_one_that_takes_no_replies_is_hung_up_on() -> None:
    exports = [Export("disk", BytesReader(noise(1 << 20)))]
    with talking(exports, stall=0.3) as (client, log):
        client.go()
        with contextlib.suppress(OSError):
            for cookie in range(200):
                client.ask(READ, 0, 1 << 20, cookie=cookie)
        wait_until(lambda: bool(log))
        assert log == ["gone"]


def test_an_idle_client_is_not_hung_up_on() -> None:
    with talking(EXPORTS, stall=0.05) as (client, _):
        client.go()
        threading.Event().wait(0.4)
        assert client.read(4096, 512)[1] == {}


@pytest.fixture
def listener(tmp_path: Path) -> Listener:
    return listen_unix(str(tmp_path / "nbd.sock"))


@contextlib.contextmanager
def running(listener: Listener, log: list[str], **options: int) -> Iterator[Server]:
    server = Server(EXPORTS, [listener], log=log.append, **options)
    server.start()
    try:
        yield server
    finally:
        server.close()


def connect(listener: Listener) -> Client:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    made.connect(listener.path)
    return Client(made)


def test_only_so_many_clients_and_those_are_served(listener: Listener) -> None:
    log: list[str] = []
    with running(listener, log, max_clients=3):
        clients = [connect(listener) for _ in range(3)]
        for client in clients:
            client.go()
        extra = connect(listener)
        assert drain(extra.socket) == b""
        assert "turned away" in log[0]
        for client in clients:
            assert client.read(0, 512)[1] == {}
        clients.pop().socket.close()
        wait_until(lambda: _greets(listener))
        for client in clients:
            client.socket.close()


def _greets(listener: Listener) -> bool:
    client = connect(listener)
    try:
        client.hello()
        return True
    except (EOFError, OSError):
        return False
    finally:
        client.socket.close()


def test_one_bad_client_is_no_matter_for_another(listener: Listener) -> None:
    log: list[str] = []
    with running(listener, log):
        good, bad = connect(listener), connect(listener)
        good.go()
        bad.socket.sendall(b"GET / HTTP/1.1\r\n\r\n" * 10)
        drain(bad.socket)
        assert good.read(4096, 100)[0] == {4096: DISK.read_at(4096, 100)}
        good.socket.close()
    assert "client 2 was hung up on" in log[0]


def test_the_end_takes_clients_and_socket_along(listener: Listener) -> None:
    log: list[str] = []
    with running(listener, log) as server:
        idle, half = connect(listener), connect(listener)
        idle.go()
        half.exactly(18)
        threads = {each for each in threading.enumerate() if each.name.startswith(("client ", "nbd-accept"))}
        server.close()
        assert drain(idle.socket) == drain(half.socket) == b""
        assert not Path(listener.path).exists()
        server.wait()
        for thread in threads:
            thread.join(300)
        assert not [thread for thread in threads if thread.is_alive()]
    assert log == []
