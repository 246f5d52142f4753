"""A client of our own, written from doc/proto.md without the server's code: it hears every byte."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from imagefs.nbd.exports import Export
from imagefs.nbd.handshake import negotiate
from imagefs.nbd.protocol import Violation
from imagefs.nbd.stream import Gone, Stream
from imagefs.nbd.transmission import serve

READ, WRITE, DISC, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS = range(8)
EXPORT_NAME, ABORT, LIST, INFO, GO, STRUCTURED, LIST_META, SET_META = 1, 2, 3, 6, 7, 8, 9, 10
ACK = 1
UNSUP, INVALID, UNKNOWN = 2**31 + 1, 2**31 + 3, 2**31 + 6


@dataclass(frozen=True)
class Chunk:
    """One chunk of a structured reply, or a simple reply as one (``kind`` -1, its error in ``payload``)."""

    done: bool
    kind: int
    payload: bytes


class Client:
    """Speaks over a connected socket."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.socket.settimeout(600)

    def exactly(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            piece = self.socket.recv(length - len(data))
            if not piece:
                raise EOFError(f"{len(data)} of {length} bytes")
            data += piece
        return data

    def hello(self, flags: int = 3) -> int:
        """Exchange greetings; the server's flags."""
        assert self.exactly(16) == b"NBDMAGICIHAVEOPT"
        (offered,) = struct.unpack(">H", self.exactly(2))
        self.socket.sendall(struct.pack(">I", flags))
        return int(offered)

    def option(self, number: int, data: bytes = b"") -> list[tuple[int, bytes]]:
        """Send an option; every reply up to the one that ends it."""
        self.socket.sendall(b"IHAVEOPT" + struct.pack(">II", number, len(data)) + data)
        replies: list[tuple[int, bytes]] = []
        while not replies or (replies[-1][0] != ACK and replies[-1][0] < 2**31):
            magic, echoed, kind, length = struct.unpack(">QIII", self.exactly(20))
            assert (magic, echoed) == (0x3E889045565A9, number)
            replies.append((kind, self.exactly(length)))
        return replies

    def go(self, name: str = "", *, structured: bool = True, allocation: bool = True) -> tuple[int, int]:
        """The usual way in; (size, transmission flags)."""
        self.hello()
        if structured:
            assert self.option(STRUCTURED) == [(ACK, b"")]
            if allocation:
                assert len(self.option(SET_META, meta(name, "base:allocation"))) == 2
        replies = self.option(GO, info(name))
        assert replies[-1][0] == ACK, replies
        size, flags = struct.unpack(">QH", replies[0][1][2:])
        return size, flags

    def ask(self, command: int, offset: int = 0, length: int = 0, *, flags: int = 0, cookie: int = 7) -> None:
        self.socket.sendall(struct.pack(">IHHQQI", 0x25609513, flags, command, cookie, offset, length))

    def chunks(self, cookie: int = 7) -> Iterator[Chunk]:
        """The chunks of one reply."""
        done = False
        while not done:
            (magic,) = struct.unpack(">I", self.exactly(4))
            if magic == 0x67446698:
                error, echoed = struct.unpack(">IQ", self.exactly(12))
                assert echoed == cookie
                yield Chunk(True, -1, struct.pack(">I", error))
                return
            assert magic == 0x668E33EF
            number, kind, echoed, length = struct.unpack(">HHQI", self.exactly(16))
            assert echoed == cookie
            done = bool(number & 1)
            yield Chunk(done, kind, self.exactly(length))

    def read(self, offset: int, length: int, *, flags: int = 0) -> tuple[dict[int, bytes], dict[int, int]]:
        """A structured read: {offset: bytes} of all content, {offset: error}; -1 for an error without."""
        self.ask(READ, offset, length, flags=flags)
        content: dict[int, bytes] = {}
        errors: dict[int, int] = {}
        for chunk in self.chunks():
            if chunk.kind == 1:
                content[struct.unpack_from(">Q", chunk.payload)[0]] = chunk.payload[8:]
            elif chunk.kind == 2:
                at, count = struct.unpack(">QI", chunk.payload)
                content[at] = bytes(count)
            else:
                number, text = struct.unpack_from(">IH", chunk.payload)
                where = chunk.payload[6 + text :]
                errors[struct.unpack(">Q", where)[0] if where else -1] = number
        return content, errors

    def status(self, offset: int, length: int, *, flags: int = 0) -> list[tuple[int, int]]:
        """(length, flags) of each descriptor."""
        self.ask(BLOCK_STATUS, offset, length, flags=flags)
        (chunk,) = self.chunks()
        assert chunk.kind == 5, chunk
        numbers = struct.unpack(f">{len(chunk.payload) // 4}I", chunk.payload)
        return list(zip(numbers[1::2], numbers[2::2], strict=True))


def info(name: str, *wanted: int) -> bytes:
    encoded = name.encode()
    return struct.pack(">I", len(encoded)) + encoded + struct.pack(f">H{len(wanted)}H", len(wanted), *wanted)


def meta(name: str, *queries: str) -> bytes:
    parts = [struct.pack(">I", len(text.encode())) + text.encode() for text in (name, *queries)]
    return parts[0] + struct.pack(">I", len(queries)) + b"".join(parts[1:])


@contextmanager
def talking(exports: Sequence[Export], *, stall: float = 20.0) -> Iterator[tuple[Client, list[str]]]:
    """A client connected to the two halves of the server, without the server round them; and the log."""
    ours, theirs = socket.socketpair()
    log: list[str] = []
    thread = threading.Thread(target=attend, args=(theirs, exports, log.append, stall), daemon=True)
    thread.start()
    try:
        yield Client(ours), log
    finally:
        ours.close()
        thread.join(300)
        assert not thread.is_alive(), "the server ends when its client does"


def attend(
    connection: socket.socket, exports: Sequence[Export], log: Callable[[str], None], stall: float
) -> None:
    stream = Stream(connection, stall=stall)
    try:
        session = negotiate(stream, exports)
        if session is not None:
            serve(stream, session, log=log)
        log("over")
    except Violation as error:
        log(f"violation: {error}")
    except Gone:
        log("gone")
    except Exception as error:
        log(f"BUG: {type(error).__name__}: {error}")
    finally:
        stream.close()
