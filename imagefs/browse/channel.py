"""Messages between a worker and the process that asks it, over a socket: a letter, a length, bytes.

Who asks waits, and answers what it is asked meanwhile, in its order. Bytes of the volume do not go through the
socket but lie in memory that both share: a socket of the usual size takes them in small portions, with a change
of process for each.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import select
import socket
import struct
from collections.abc import Iterator

_HEAD = struct.Struct("<cI")
#: The longest message. Content comes in pieces of 1 MiB, listings in portions; a list of pieces is the longest.
MAX_MESSAGE = 64 << 20
#: The longest read of the volume that is asked for at once.
MAX_READ = 4 << 20
#: So many ranges are asked for at once, and so many bytes of them.
MAX_RANGES, MAX_TOGETHER = 1000, 4 << 20
#: The shared memory: first the bytes of one read, behind them those of many.
AREA = MAX_READ + MAX_TOGETHER
#: The exit code of a worker that says: more memory was needed than there may be.
NO_MEMORY = 12
_BUFFER = 256 << 10

#: From the asking side: a method with its arguments; the number of bytes now in the shared memory, extents, an
#: error.
CALL, BYTES, EXTENTS, FAILED = b"c", b"b", b"x", b"f"
#: From the worker: a read, many at once, a question for extents.
READ, READ_MANY, ASK_EXTENTS = b"r", b"m", b"e"
#: Its answer, as a value, a portion of a listing (perhaps one that "go on" has more of) or bytes; an error.
ANSWER, PORTION, MORE, CONTENT, ERROR = b"a", b"p", b"P", b"d", b"!"
#: The number that BYTES says.
COUNT = struct.Struct("<I")

#: Names of Linux that Pythons built for old systems lack (``memfd_create(2)``, ``fcntl(2)``).
_CLOEXEC, _ALLOW_SEALING = 1, 2
_ADD_SEALS, _SEAL_SEAL, _SEAL_SHRINK, _SEAL_GROW, _SEAL_FUTURE_WRITE = 1033, 1, 2, 4, 16


@contextlib.contextmanager
def new_area() -> Iterator[tuple[int, mmap.mmap]]:
    """New shared memory and a descriptor of it for the other side, closed at the end. Nobody can make it shorter:
    whoever touched what is gone would die; and only we write to it (where Linux is older than 5.1, both). Raises
    OSError."""
    descriptor = _memory_file()
    try:
        os.ftruncate(descriptor, AREA)
        area = mmap.mmap(descriptor, AREA)
        with contextlib.suppress(OSError):
            fcntl.fcntl(descriptor, _ADD_SEALS, _SEAL_FUTURE_WRITE)
        fcntl.fcntl(descriptor, _ADD_SEALS, _SEAL_SHRINK | _SEAL_GROW | _SEAL_SEAL)
        yield descriptor, area
    finally:
        os.close(descriptor)


def _memory_file() -> int:
    """The descriptor of a new file in memory, which takes seals."""
    flags = _CLOEXEC | _ALLOW_SEALING
    if hasattr(os, "memfd_create"):
        return os.memfd_create("imagefs", flags)
    import ctypes

    create = getattr(ctypes.CDLL(None, use_errno=True), "memfd_create", None)
    descriptor = -1 if create is None else int(create(b"imagefs", flags))
    if descriptor < 0:
        number = ctypes.get_errno() or errno.ENOSYS
        raise OSError(number, f"memfd_create: {os.strerror(number)}")
    return descriptor


def map_area(descriptor: int) -> mmap.mmap:
    """The shared memory, on the other side; closes the descriptor."""
    try:
        return mmap.mmap(descriptor, AREA, prot=mmap.PROT_READ)
    finally:
        os.close(descriptor)


def end_with_parent() -> None:
    """From now on this process ends when the pipe that is its standard input is closed at the other end: the kernel
    sends SIGIO then, which ends a process. (PR_SET_PDEATHSIG would come with the end of the thread that started us.)"""
    fcntl.fcntl(0, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(0, fcntl.F_SETFL, os.O_ASYNC)


class ChannelClosed(Exception):
    """The other side is gone, or talks nonsense."""


class ChannelSilent(Exception):
    """The other side has said nothing for too long."""


class Channel:
    """One end. For one thread at a time."""

    def __init__(self, sock: socket.socket, *, silence: float | None = None) -> None:
        self._sock = sock
        self._buffer = memoryview(bytearray(_BUFFER))
        self._have = 0  # so many bytes of the next message are in it
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
        have, self._have = self._have, 0
        while have < _HEAD.size:
            have += self._some(self._buffer[have:])
        letter, length = _HEAD.unpack_from(self._buffer)
        if length > MAX_MESSAGE:
            raise ChannelClosed("a message that cannot be")
        end = _HEAD.size + length
        if have >= end:
            data = bytes(self._buffer[_HEAD.size : end])
            self._have = have - end
            self._buffer[: self._have] = self._buffer[end:have]
            return letter, data
        long = bytearray(length)
        part = memoryview(long)
        part[: have - _HEAD.size] = self._buffer[_HEAD.size : have]
        part = part[have - _HEAD.size :]
        while part:
            part = part[self._some(part) :]
        return letter, bytes(long)

    @property
    def has_more(self) -> bool:
        """Whether something came together with the message that was received last."""
        return self._have > 0

    def waiting(self) -> bool:
        """Whether ``receive`` would have something to say at once."""
        return self._have > 0 or bool(self._poll.poll(0))

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
