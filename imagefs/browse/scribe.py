"""A second process that makes small files while the next ones are read.

Of the time that a small file takes, half goes into making it, most of that in the kernel; a thread would want the
interpreter's lock after each call. Files are made there by the same ``Maker``, and what it says of them is heard here,
in their order. Only for targets that make files without a name, and never in the place of others: that would need names
beside, known to both sides.

A signal may end the run between any two steps. So an answer is looked at in the socket and taken out when all of it
was heard, and answers have the numbers of what they answer.
"""

from __future__ import annotations

import errno
import math
import resource
import select
import socket
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

from imagefs.block.views import BytesReader
from imagefs.browse import channel as ch
from imagefs.browse.dress import Dresser
from imagefs.browse.making import Maker
from imagefs.browse.place import Folder, Refused, Traits
from imagefs.browse.taking import ExtractReport
from imagefs.browse.targetnames import NameRules
from imagefs.browse.wire import (
    WireError,
    dumps,
    loads,
    pack_entries,
    pack_error,
    unpack_entries,
    unpack_error,
)
from imagefs.browse.workers import Limits, start
from imagefs.errors import BrowseError, ImagefsError, TargetError
from imagefs.interfaces import Entry

#: Files up to this size are worth giving away, with paths up to this length.
SMALL, PATH = 256 << 10, 1000
#: A batch has its bytes in one of these parts of the shared memory, and so many files at most.
_PART, _FILES = 1 << 20, 64
_PARTS = ch.AREA // _PART
#: So many folders stay open at most because files in them are not made yet, or a quarter of what may be open.
_OPEN = 100
_MESSAGE = 256 << 10
#: So many files are answered for with one packet, which must stay below what a socket takes.
_ANSWERED = 16
#: When a run ends early, so many seconds are waited for what was given before.
_PATIENCE = 5.0
_READY = b"ready"

#: What a full socket says, or one with too many descriptors on their way, also those of other programs.
_FULL = (errno.EAGAIN, errno.ETOOMANYREFS)
_PAUSE = 0.01

Call = Callable[[], None]


class Given(NamedTuple):
    """A file for the other process: ``name`` in ``folder``."""

    entry: Entry
    folder: Folder
    name: bytes
    size: int


class Outcome(NamedTuple):
    """What became of a file: its digests, or why it was not made; what is to be told of it (severity, code,
    message)."""

    digests: list[str]
    error: Refused | ImagefsError | None
    told: list[list[str]]


@dataclass(slots=True)
class _Batch:
    """Files that are sent together, how many of them were ``heard`` of, and what is to be done when they are made:
    a call, and another where that will not be known."""

    number: int
    used: int = 0
    files: list[Given] = field(default_factory=list)
    folders: list[Folder] = field(default_factory=list)
    heard: int = 0
    after: deque[tuple[Call, Call]] = field(default_factory=deque)


class Scribe:
    """The process, from the outside. For one thread. Raises BrowseError when it cannot be started."""

    def __init__(
        self,
        algorithms: Sequence[str],
        heard: Callable[[Given, Outcome], None],
        *,
        owners: bool,
        verify: bool,
    ) -> None:
        """``heard`` is called for each file that was given, in their order; what it raises ends the run."""
        self._heard = heard
        self._process = start(
            Limits(), "imagefs.browse.scribe", kind=socket.SOCK_SEQPACKET, what="that makes files"
        )
        self._socket = self._process.socket
        try:
            self._socket.send(dumps([list(algorithms), owners, verify]))
        except OSError as error:
            self._process.end()
            raise BrowseError(f"the process that makes files cannot be started: {error.strerror}") from error
        self._is_ready = False
        self._batch = _Batch(0)
        self._sent: deque[_Batch] = deque()
        #: Something is missing: no folder is finished any more.
        self._failed = False
        #: When waiting ends.
        self._until = math.inf
        self._open = min(_OPEN, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)

    def is_ready(self) -> bool:
        """Whether files can be given to it. TargetError where it ended before."""
        if not self._is_ready:
            try:
                said = self._socket.recv(_MESSAGE, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return False
            except OSError as error:
                raise _Ended(str(error)) from error
            if said != _READY:
                raise _Ended("it did not begin")
            self._is_ready = True
        return True

    def give(self, file: Given, data: bytes) -> None:
        """Have a file made with ``data``, no more than ``SMALL``. Raises TargetError, and what ``heard`` raises."""
        if self._batch.used + len(data) > _PART or len(self._batch.files) == _FILES:
            self._send()
        batch = self._batch
        at = batch.number % _PARTS * _PART + batch.used
        self._process.area[at : at + len(data)] = data
        if not batch.folders or batch.folders[-1] is not file.folder:
            batch.folders.append(file.folder)
        batch.used += len(data)
        batch.files.append(file)

    def after(self, call: Call, otherwise: Call) -> None:
        """Have ``call`` made when all that was given is made, at once if that is so; ``otherwise`` where that will
        not be known. Raises as ``give``."""
        last = self._batch if self._batch.files else self._sent[-1] if self._sent else None
        if last is None:
            call()
            return
        last.after.append((call, otherwise))
        while sum(len(each.after) for each in (*self._sent, self._batch)) > self._open:
            if self._sent:
                self._receive()
            else:
                self._send()

    def finish(self) -> None:
        """Wait until all is made. Raises as ``give``."""
        if self._batch.files:
            self._send()
        while self._sent:
            self._receive()

    def close(self) -> None:
        """End the process. What was given before a run ends early is made and heard of first, if that takes no
        longer than ``_PATIENCE``; errors of it come too late."""
        self._until = time.monotonic() + _PATIENCE
        try:
            while self._batch.files and self._survives(self._send):
                pass
            while self._sent and self._survives(self._receive):
                pass
        finally:
            left, self._failed = (*self._sent, self._batch), True
            self._sent, self._batch = deque(), _Batch(0)
            self._process.end()
            for batch in left:
                self._do(batch)

    def _survives(self, step: Call) -> bool:
        """Whether the process is still there after a step, which may fail otherwise."""
        try:
            step()
        except _Ended:
            return False
        except ImagefsError:
            pass
        return True

    # -- batches -------------------------------------------------------------------------------------

    def _send(self) -> None:
        batch = self._batch
        places, at = [], 0
        for file in batch.files:
            at += batch.folders[at] is not file.folder
            places.append(at)
        facts = [(each.path, each.fresh, each.traits.rules.limit) for each in batch.folders]
        files = [(each.name, each.size) for each in batch.files]
        body = dumps([batch.number, facts, pack_entries([each.entry for each in batch.files]), files, places])
        self._pass(body, array("i", [each.fd for each in batch.folders]))
        self._sent.append(batch)
        self._batch = _Batch(batch.number + 1)
        while len(self._sent) == _PARTS:
            self._receive()

    def _pass(self, body: bytes, descriptors: array[int]) -> None:
        """Send it; while there is no room for it, answers are heard, which makes some."""
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)
        while True:
            try:
                self._socket.sendmsg([body], [rights], socket.MSG_DONTWAIT)
                return
            except OSError as error:
                if error.errno not in _FULL or time.monotonic() > self._until:
                    raise _Ended(str(error)) from error
            if self._sent:
                self._receive()
            elif self._waits(_PAUSE):  # nothing was asked: that is its end
                raise _Ended("it is gone")

    def _receive(self) -> None:
        """Hear some more of the batch that was sent first."""
        number, first, answers = self._answer()
        failed, batch = None, self._sent[0]
        if number == batch.number and first <= batch.heard:  # else all of it was heard already
            failed = self._hear(batch, answers[batch.heard - first :])
            if batch.heard == len(batch.files):
                self._do(batch)
                self._sent.popleft()
        self._read(1)  # all of it: it is one packet
        if failed is not None:
            raise failed

    def _answer(self) -> Any:
        """The next packet, which stays in the socket."""
        rest = self._until - time.monotonic()
        if not self._waits(None if rest == math.inf else max(0, rest)):
            raise _Ended("it does not answer")
        try:
            return loads(self._read(_MESSAGE, socket.MSG_PEEK))
        except WireError as error:
            raise _Ended("it says no more") from error

    def _waits(self, seconds: float | None) -> bool:
        """Whether there is something to read within that time."""
        waiting = select.poll()
        waiting.register(self._socket, select.POLLIN)
        return bool(waiting.poll(None if seconds is None else seconds * 1000))

    def _read(self, most: int, flags: int = 0) -> bytes:
        try:
            try:
                return self._socket.recv(most, flags)
            except ConnectionResetError:  # which is told once, before what is still to be read
                return self._socket.recv(most, flags)
        except OSError as error:
            raise _Ended(str(error)) from error

    def _hear(self, batch: _Batch, answers: list[Any]) -> Exception | None:
        """Of all these files, also when one ends the run."""
        failed = None
        for digests, error, told in answers:
            file, outcome = batch.files[batch.heard], Outcome(digests, _unpacked(error), told)
            batch.heard += 1
            try:
                self._heard(file, outcome)
            except Exception as caught:
                failed, self._failed = failed or caught, True
        return failed

    def _do(self, batch: _Batch) -> None:
        while batch.after:
            call, otherwise = batch.after.popleft()
            (otherwise if self._failed else call)()


class _Ended(TargetError):
    """The process is gone, or says nothing."""

    def __init__(self, why: str) -> None:
        super().__init__(
            f"the process that makes files has ended ({why})", hint="go on with the same command and --resume"
        )


def _unpacked(error: Any) -> Refused | ImagefsError | None:
    if error is None:
        return None
    return unpack_error(error) if type(error) is bytes else Refused(*error)


# -- the other process -------------------------------------------------------------------------------


def main(descriptor: int, area: int, *limits: int) -> None:
    """Make what is sent over the socket ``descriptor``, until it closes; ``area`` is the shared memory, ``limits``
    are for who parses."""
    ch.end_with_parent()
    memory = memoryview(ch.map_area(area))
    with socket.socket(fileno=descriptor) as sock:
        algorithms, owners, verify = loads(sock.recv(_MESSAGE))
        report = ExtractReport()
        dresser = Dresser(report, lambda entry: {}, owners=owners)
        maker = Maker(dresser, algorithms, lambda count: None, verify=verify)
        sock.send(_READY)
        while True:
            body, descriptors, _, _ = socket.recv_fds(sock, _MESSAGE, _FILES)
            if not body:
                return
            number, facts, *columns = loads(body)
            folders = [_folder(fd, *each) for fd, each in zip(descriptors, facts, strict=True)]
            part = memory[number % _PARTS * _PART :][:_PART]
            made = _make(maker, report, part, folders, *columns)
            for first in range(0, len(columns[-1]), _ANSWERED):
                sock.send(dumps([number, first, list(islice(made, _ANSWERED))]))
            for each in folders:
                each.close()


def _folder(fd: int, path: bytes, fresh: bool, limit: int) -> Folder:
    return Folder(fd, path, Traits(NameRules(False, limit), unnamed=True, stale=False), fresh=fresh)


def _make(
    maker: Maker,
    report: ExtractReport,
    part: memoryview,
    folders: list[Folder],
    packed: bytes,
    files: list[Any],
    places: list[int],
) -> Iterator[Any]:
    """Make the files; the answer for each."""
    at = 0
    for entry, (name, size), place in zip(unpack_entries(packed), files, places, strict=True):
        content = BytesReader(bytes(part[at : at + size]))
        at += size
        report.findings.clear()
        digests: list[str] = []
        error: Any = None
        try:
            runs = [(0, size)] if size else []
            digests = maker.make(entry, content, runs, folders[place], name, replace=False)
        except Refused as refused:
            error = refused.code, refused.message
        except ImagefsError as failed:
            error = pack_error(failed)
        yield digests, error, [(each.severity, each.code, each.message) for each in report.findings]
