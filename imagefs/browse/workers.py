"""A worker process, from the outside: started, asked one thing at a time, killed when it fails.

``worker.py`` is what runs in it. Fork and exec of a fresh interpreter, so that a process with threads can start
one; it gets nothing of ours but the socket and a pipe that closes with us.
"""

from __future__ import annotations

import atexit
import contextlib
import mmap
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from imagefs.block.views import extents_of
from imagefs.browse import channel as ch
from imagefs.browse.channel import Channel
from imagefs.browse.wire import dumps, pack_error
from imagefs.errors import BrowseError, ImagefsError
from imagefs.interfaces import Extent, Reader

_RANGE = struct.Struct("<QQ")
_MAX_EXTENTS = 1000
#: So many reads are answered before who asks goes on with its own work.
_SERVED = 64
_MODULE = "imagefs.browse.worker"
_START = (
    "import gc, sys; gc.disable(); sys.path[:] = {path!r}; from {module} import main; "
    "main({descriptor}, {area}, {memory}, {seconds})"
)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a worker may use: bytes of address space; for each request seconds of CPU, of silence, and in all
    but our own reads."""

    memory: int = 2 << 30
    cpu: int = 60
    silence: float = 60.0
    whole: float = 600.0


class WorkerDied(Exception):
    """The worker is gone. ``why`` goes on "the process that parses the file system …"; ``own_fault`` tells
    that it may do so again."""

    def __init__(self, why: str, *, own_fault: bool = True) -> None:
        super().__init__(why)
        self.why = why
        self.own_fault = own_fault


class Worker:
    """One process, in which the ``main`` of ``module`` runs. For one thread at a time, but ``kill`` is for any."""

    def __init__(self, reader: Reader, limits: Limits, *, module: str = _MODULE) -> None:
        self._reader = reader
        self._limits = limits
        started = _Spare.take(limits, module)
        self._process, self._area = started.process, started.area
        self._channel = Channel(started.socket, silence=limits.silence)
        self._answer: tuple[bytes, bytes] | None = None
        self._left = 0.0

    def turn_to(self, reader: Reader) -> None:
        """From now on it reads ``reader``; what it is asked next must be to open the file system there."""
        self._reader = reader

    def call(self, request: bytes) -> tuple[bytes, bytes]:
        """(letter, bytes) of the answer. WorkerDied when there is none; then nothing more can be asked."""
        self.begin(request)
        return self.finish()

    def begin(self, request: bytes) -> None:
        """Ask. ``finish`` gives the answer; until then nothing else can be asked."""
        with self._alive():
            self._left = self._limits.whole
            self._channel.send(ch.CALL, request)

    def serve(self) -> bool:
        """Answer some reads that wait, without waiting for more; whether the answer is there."""
        with self._alive():
            for _ in range(_SERVED):
                if self._answer is not None or not self._channel.waiting():
                    break
                self._step()
        return self._answer is not None

    def finish(self) -> tuple[bytes, bytes]:
        """(letter, bytes) of the answer to what was asked."""
        with self._alive():
            while self._answer is None:
                self._step()
        answer, self._answer = self._answer, None
        return answer

    @contextlib.contextmanager
    def _alive(self) -> Iterator[None]:
        """Whatever goes wrong inside ends the worker."""
        try:
            yield
        except ch.ChannelSilent:
            self.kill()
            raise WorkerDied(f"did not answer for {self._limits.silence:.0f} seconds") from None
        except ch.ChannelClosed as error:
            raise self._died(str(error)) from None
        except BaseException:  # ours; what the worker says next would be taken for another answer
            self.kill()
            raise

    def _step(self) -> None:
        """Receive one message: a read, which is answered, or the answer."""
        since = time.monotonic()
        letter, body = self._channel.receive()
        if letter not in (ch.READ, ch.READ_MANY, ch.ASK_EXTENTS):
            self._answer = letter, body
            return
        self._left -= time.monotonic() - since
        if self._left < 0:
            self.kill()
            raise WorkerDied(f"did not end within {self._limits.whole:.0f} seconds")
        if letter != ch.READ_MANY and self._channel.has_more:  # it waits for that answer before it says more
            raise ch.ChannelClosed("a message that cannot be")
        self._channel.send(*self._served(letter, body))

    def _served(self, letter: bytes, body: bytes) -> tuple[bytes, bytes]:
        many = letter == ch.READ_MANY
        if (
            (len(body) % _RANGE.size or len(body) > ch.MAX_RANGES * _RANGE.size)
            if many
            else len(body) != _RANGE.size
        ):
            raise ch.ChannelClosed("a request that cannot be")
        try:
            if many:
                ranges = list(_RANGE.iter_unpack(body))
                if sum(length for _, length in ranges) > ch.MAX_TOGETHER:
                    raise ch.ChannelClosed("a request that cannot be")
                return ch.BYTES, self._placed(ch.MAX_READ, ranges)
            offset, length = _RANGE.unpack(body)
            if letter == ch.READ:
                return ch.BYTES, self._placed(0, [(offset, min(length, ch.MAX_READ))])
            found = islice(extents_of(self._reader, offset, length), _MAX_EXTENTS)
            return ch.EXTENTS, dumps([Extent(each.state, each.offset, each.length) for each in found])
        except ImagefsError as error:
            return ch.FAILED, pack_error(error)

    def _placed(self, place: int, ranges: list[tuple[int, int]]) -> bytes:
        """Read into the shared memory, one behind the other from ``place``; how many bytes that gave, packed."""
        at = place
        for each in ranges:
            data = self._reader.read_at(*each)
            self._area[at : at + len(data)] = data
            at += len(data)
        return ch.COUNT.pack(at - place)

    def _died(self, said: str) -> WorkerDied:
        """Why it is gone: it may be about to die, or be alive and have said nonsense."""
        try:
            code = self._process.wait(1)
        except subprocess.TimeoutExpired:
            code = None
        self.kill()
        if code is None or code == 0:
            return WorkerDied(f"cannot be understood ({said})")
        if code == ch.NO_MEMORY:
            return WorkerDied(f"needed more than {self._limits.memory >> 20} MiB of memory")
        if code == -signal.SIGXCPU:
            return WorkerDied(f"did not end within {self._limits.cpu} seconds of computing")
        if code == -signal.SIGKILL:
            return WorkerDied("was killed", own_fault=False)
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"exit code {code}"
        return WorkerDied(f"crashed ({name})")

    def kill(self) -> None:
        """End it, whatever it does. Safe to call twice, and while another thread waits for an answer."""
        _end(self._process)
        self._channel.end()


@dataclass(frozen=True, slots=True)
class Started:
    """A process of ours, our end of its socket, and the memory it shares with us."""

    process: subprocess.Popen[bytes]
    socket: socket.socket
    area: mmap.mmap

    def end(self) -> None:
        _end(self.process)
        self.socket.close()
        self.area.close()


class _Spare:
    """A worker that was started before it is known what for: 0.2 s in which the image is looked for and opened."""

    _lock = threading.Lock()
    _kept: tuple[str, Started] | None = None

    @classmethod
    def prepare(cls) -> None:
        with cls._lock:
            if cls._kept is None:
                cls._kept = _START, start(Limits(), _MODULE)
                atexit.register(cls.dismiss)

    @classmethod
    def take(cls, limits: Limits, module: str) -> Started:
        with cls._lock:
            if cls._kept is None or (cls._kept[0], limits, module) != (_START, Limits(), _MODULE):
                return start(limits, module)
            (_, started), cls._kept = cls._kept, None
        atexit.unregister(cls.dismiss)
        return started

    @classmethod
    def dismiss(cls) -> None:
        with cls._lock:
            kept, cls._kept = cls._kept, None
        if kept is not None:
            kept[1].end()


#: Start a worker that the next one takes over; at most one is kept.
prepare = _Spare.prepare
#: End the one that was started and not taken.
dismiss = _Spare.dismiss


def start(
    limits: Limits, module: str, *, kind: int = socket.SOCK_STREAM, what: str = "that parses file systems"
) -> Started:
    """A new process, ``what`` it is for, that runs the ``main`` of ``module``, with a socket of ``kind`` to it.
    Raises BrowseError."""
    try:
        ours, theirs = socket.socketpair(type=kind)
        try:
            with theirs, ch.new_area() as (descriptor, area):
                return Started(_spawn(theirs.fileno(), descriptor, limits, module), ours, area)
        except BaseException:
            ours.close()
            raise
    except OSError as error:
        raise BrowseError(f"the process {what} cannot be started: {error.strerror}") from error


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    with contextlib.suppress(OSError):
        if process.stdin is not None:
            process.stdin.close()


def _spawn(descriptor: int, area: int, limits: Limits, module: str) -> subprocess.Popen[bytes]:
    path = [*sys.path, str(Path(__file__).parents[2])]
    code = _START.format(
        path=path, module=module, descriptor=descriptor, area=area, memory=limits.memory, seconds=limits.cpu
    )
    return subprocess.Popen(
        [sys.executable, "-S", "-E", "-s", "-P", "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=[descriptor, area],
        start_new_session=True,
        bufsize=0,
    )
