"""Messages between a worker and the process that asks it, over a socket: a letter, a length, bytes.

One message is under way at a time: who asks waits, and answers what it is asked meanwhile.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct

_HEAD = struct.Struct("<cI")
#: The longest message. Content comes in pieces of 1 MiB, listings in portions; a list of pieces is the longest.
MAX_MESSAGE = 64 << 20
#: The longest read of the volume that is asked for at once.
MAX_READ = 4 << 20
#: So many ranges are asked for at once, and so many bytes of them.
MAX_RANGES, MAX_TOGETHER = 1000, 4 << 20
#: The exit code of a worker that says: more memory was needed than there may be.
NO_MEMORY = 12
_BUFFER = 256 << 10

#: From the asking side: a method with its arguments; the bytes, extents or error that were asked for.
CALL, BYTES, EXTENTS, FAILED = b"c", b"b", b"x", b"f"
#: From the worker: a read, many at once, a question for extents.
READ, READ_MANY, ASK_EXTENTS = b"r", b"m", b"e"
#: Its answer, as a value, a portion of a listing (perhaps one that "go on" has more of) or bytes; an error.
ANSWER, PORTION, MORE, CONTENT, ERROR = b"a", b"p", b"P", b"d", b"!"


class ChannelClosed(Exception):
    """The other side is gone, or talks nonsense."""


class ChannelSilent(Exception):
    """The other side has said nothing for too long."""


class Channel:
    """One end. For one thread at a time."""

    def __init__(self, sock: socket.socket, *, silence: float | None = None) -> None:
        self._sock = sock
        self._buffer = memoryview(bytearray(_BUFFER))
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        if silence is not None:
            seconds = struct.pack("@ll", int(silence), int(silence % 1 * 1_000_000))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, seconds)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, seconds)

    def send(self, letter: bytes, data: bytes) -> None:
        """Raises ChannelClosed, ChannelSilent."""
        head = _HEAD.pack(letter, len(data))
        try:
            sent = self._sock.sendmsg((head, data))  # in one call: the other side wakes once
            if sent < _HEAD.size + len(data):
                self._sock.sendall(memoryview(head + data)[sent:])
        except BlockingIOError as error:
            raise ChannelSilent(str(error)) from error
        except OSError as error:
            raise ChannelClosed(str(error)) from error

    def receive(self) -> tuple[bytes, bytes]:
        """(letter, bytes) of the next message. Raises ChannelClosed, ChannelSilent."""
        have = self._some(self._buffer)
        while have < _HEAD.size:
            have += self._some(self._buffer[have:])
        letter, length = _HEAD.unpack_from(self._buffer)
        if length > MAX_MESSAGE or have > _HEAD.size + length:
            raise ChannelClosed("a message that cannot be")
        if have == _HEAD.size + length:
            return letter, bytes(self._buffer[_HEAD.size : have])
        data = bytearray(length)
        part = memoryview(data)
        part[: have - _HEAD.size] = self._buffer[_HEAD.size : have]
        part = part[have - _HEAD.size :]
        while part:
            part = part[self._some(part) :]
        return letter, bytes(data)

    def waiting(self) -> bool:
        """Whether ``receive`` would have something to say at once."""
        return bool(self._poll.poll(0))

    def _some(self, place: memoryview) -> int:
        try:
            count = self._sock.recv_into(place)
        except BlockingIOError as error:
            raise ChannelSilent(str(error)) from error
        except OSError as error:
            raise ChannelClosed(str(error)) from error
        if not count:
            raise ChannelClosed("the other side has closed it")
        return count

    def end(self) -> None:
        """Nothing more comes or goes, also for a thread that is waiting; closed with the last use of it."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
