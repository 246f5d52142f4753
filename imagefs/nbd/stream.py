"""One connection as bytes in and bytes out, with limits on how long the other side may stall.

Knows sockets; must not know the protocol.
"""

from __future__ import annotations

import contextlib
import socket
import time

#: Seconds in which a started message must go on, and in which the client must take one of ours.
STALL = 30.0
_PIECE = 64 * 1024


class Gone(Exception):
    """The other side closed the connection, or stalls; nothing more can be said to it."""


class Stream:
    """A connected socket. One thread at a time; ``end`` and ``close`` may come from another."""

    def __init__(self, connection: socket.socket, *, stall: float = STALL) -> None:
        self._socket = connection
        self._socket.settimeout(stall)
        self._stall = stall
        self._buffer = bytearray()

    def wait(self) -> None:
        """Come back when something has arrived, however long that takes."""
        while not self._buffer:
            self._fill(patient=True)

    def read(self, length: int, *, deadline: float | None = None) -> bytes:
        """Exactly ``length`` bytes, by ``deadline`` (of time.monotonic; STALL from now). Raises Gone."""
        self._collect(length, deadline)
        found = bytes(memoryview(self._buffer)[:length])
        del self._buffer[:length]
        return found

    def discard(self, length: int) -> None:
        """Read and forget; for what a client sends before it can hear that it must not."""
        while length:
            self._collect(1, None)
            taken = min(length, len(self._buffer))
            del self._buffer[:taken]
            length -= taken

    def send(self, data: bytes) -> None:
        """Hand all of ``data`` over. Raises Gone when the client does not take it in time."""
        try:
            self._socket.sendall(data)
        except OSError as error:  # a time-out too
            raise Gone(str(error)) from error

    def end(self) -> None:
        """Hear nothing more: whoever reads is told ``Gone``, a reply under way can still be sent."""
        with contextlib.suppress(OSError):  # the other side was quicker
            self._socket.shutdown(socket.SHUT_RD)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _collect(self, length: int, deadline: float | None) -> None:
        if len(self._buffer) >= length:
            return
        end = time.monotonic() + self._stall if deadline is None else deadline
        while len(self._buffer) < length:
            self._fill()
            if time.monotonic() > end:
                raise Gone("a message takes too long")

    def _fill(self, *, patient: bool = False) -> None:
        try:
            piece = self._socket.recv(_PIECE)
        except TimeoutError as error:
            if patient:
                return
            raise Gone("stalled in the middle of a message") from error
        except OSError as error:
            raise Gone(str(error)) from error
        if not piece:
            raise Gone("closed")
        self._buffer += piece
