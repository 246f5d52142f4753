"""A second process that makes small files while the next ones are read.

Of the time that a small file takes, half goes into making it, most of that in the kernel; a thread would want the
interpreter's lock after each call. What is made there is made by the same ``Maker``. Whatever goes wrong with a file,
nothing of it stays and it is given back, so that there is one place where that is told.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from imagefs.block.views import BytesReader
from imagefs.browse import channel as ch
from imagefs.browse.dress import Dresser
from imagefs.browse.making import Maker
from imagefs.browse.place import Folder, Refused, Traits
from imagefs.browse.taking import ExtractReport
from imagefs.browse.targetnames import NameRules
from imagefs.browse.wire import WireError, dumps, loads, pack_entries, unpack_entries
from imagefs.browse.workers import Limits, Started, start
from imagefs.errors import ImagefsError, TargetError
from imagefs.interfaces import Entry

#: Files up to this size are worth giving away.
SMALL = 256 << 10
#: A batch has its bytes in one of these parts of the shared memory, and so many files at most.
_PART, _FILES = 1 << 20, 64
_PARTS = ch.AREA // _PART
#: Not more than so much is put off until files are made.
_AFTER = 100
_MESSAGE = 256 << 10


@dataclass(slots=True)
class _Batch:
    """Files for the other process, and what is to be done when they are made."""

    part: int
    used: int = 0
    entries: list[Entry] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    replace: list[bool] = field(default_factory=list)
    #: The folders of the files, and which of them is that of each.
    folders: list[Folder] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    #: Of each file, what is called with its digests when it was made, and what when it was not.
    made: list[Callable[[list[str]], None]] = field(default_factory=list)
    refused: list[Callable[[], None]] = field(default_factory=list)
    after: deque[Callable[[], None]] = field(default_factory=deque)


class Scribe:
    """The process, from the outside. For one thread. Raises BrowseError when it cannot be started."""

    def __init__(self, algorithms: Sequence[str], *, owners: bool, verify: bool) -> None:
        self._how = [list(algorithms), owners, verify]
        self._process: Started = start(Limits(), "imagefs.browse.scribe", kind=socket.SOCK_SEQPACKET)
        self._batch = _Batch(0)
        self._sent: deque[_Batch] = deque()

    def give(
        self,
        entry: Entry,
        data: bytes,
        folder: Folder,
        name: bytes,
        *,
        replace: bool,
        made: Callable[[list[str]], None],
        refused: Callable[[], None],
    ) -> None:
        """Have ``name`` made with ``data``, no more than ``SMALL``. ``made`` is called later, with the digests, or
        ``refused`` where it could not be made; in the order of the files. Raises TargetError."""
        batch = self._batch
        if batch.used + len(data) > _PART or len(batch.sizes) == _FILES:
            self._send()
            batch = self._batch
        at = batch.part * _PART + batch.used
        self._process.area[at : at + len(data)] = data
        batch.used += len(data)
        if not batch.folders or batch.folders[-1] is not folder:
            batch.folders.append(folder)
        batch.entries.append(entry._replace(path=name, inode="", deleted=False, rdev=None, flags=()))
        batch.sizes.append(len(data))
        batch.replace.append(replace)
        batch.places.append(len(batch.folders) - 1)
        batch.made.append(made)
        batch.refused.append(refused)

    def after(self, call: Callable[[], None]) -> None:
        """Have ``call`` made when all that was given is made; at once, if that is so."""
        last = self._batch if self._batch.sizes else self._sent[-1] if self._sent else None
        if last is None:
            call()
            return
        last.after.append(call)
        if len(last.after) > _AFTER:
            self.finish()

    def finish(self) -> None:
        """Wait until all is made."""
        if self._batch.sizes:
            self._send()
        while self._sent:
            self._receive()

    def close(self) -> None:
        """End the process. What was given is made first, but what cannot be is left; no error comes of it."""
        try:
            for batch in (self._batch, *self._sent):
                batch.refused = [lambda: None] * len(batch.sizes)
            with suppress(ImagefsError):
                self.finish()
        finally:
            self._process.end()
            for batch in (*self._sent, self._batch):
                _do(batch.after)

    def _send(self) -> None:
        batch = self._batch
        files = [pack_entries(batch.entries), batch.sizes, batch.replace, batch.places]
        body = dumps([batch.part, self._how, [_facts(each) for each in batch.folders], *files])
        try:
            socket.send_fds(self._process.socket, [body], [each.fd for each in batch.folders])
        except OSError as error:
            raise _gone(error) from error
        self._batch = _Batch((batch.part + 1) % _PARTS)
        self._sent.append(batch)
        if len(self._sent) == _PARTS:
            self._receive()

    def _receive(self) -> None:
        """Hear what became of the batch that was sent first."""
        try:
            answer = loads(self._process.socket.recv(_MESSAGE))
        except (OSError, WireError) as error:
            raise _gone(error) from error
        batch, failed = self._sent.popleft(), None
        for digests, made, refused in zip(answer, batch.made, batch.refused, strict=True):
            if digests is not None:
                made(digests)
            elif failed is None:
                try:
                    refused()
                except BaseException as error:  # the others of the batch are made and are to be heard of
                    failed = error
        _do(batch.after)
        if failed is not None:
            raise failed


def _do(calls: deque[Callable[[], None]]) -> None:
    while calls:
        calls.popleft()()


def _gone(error: Exception) -> TargetError:
    return TargetError(
        f"the process that makes files has ended ({error})", hint="add --resume to go on where it ended"
    )


def _facts(folder: Folder) -> list[object]:
    traits = folder.traits
    return [folder.fresh, traits.rules.windows, traits.rules.limit, traits.unnamed, traits.stale]


# -- the other process -------------------------------------------------------------------------------


def main(descriptor: int, area: int, *limits: int) -> None:
    """Make what is sent over the socket ``descriptor``, until it closes; ``area`` is the shared memory."""
    ch.end_with_parent()
    with socket.socket(fileno=descriptor) as sock:
        memory = memoryview(ch.map_area(area))
        while True:
            body, descriptors, _, _ = socket.recv_fds(sock, _MESSAGE, _FILES)
            if not body:
                return
            sock.send(dumps(_make(loads(body), descriptors, memory)))
            for each in descriptors:
                os.close(each)


def _make(batch: Any, descriptors: list[int], memory: memoryview) -> list[list[str] | None]:
    part, (algorithms, owners, verify), facts, packed, *columns = batch
    maker = Maker(
        Dresser(_Strict(), lambda entry: {}, owners=owners), algorithms, lambda count: None, verify=verify
    )
    folders = [_folder(fd, *each) for fd, each in zip(descriptors, facts, strict=True)]
    made: list[list[str] | None] = []
    at = part * _PART
    for entry, size, replace, place in zip(unpack_entries(packed), *columns, strict=True):
        content = BytesReader(bytes(memory[at : at + size]))
        at += size
        runs = [(0, size)] if size else []
        try:
            made.append(maker.make(entry, content, runs, folders[place], entry.path, replace=replace))
        except (Refused, ImagefsError, OSError):
            made.append(None)
    return made


def _folder(fd: int, fresh: bool, windows: bool, limit: int, unnamed: bool, stale: bool) -> Folder:
    return Folder(fd, b"", Traits(NameRules(windows, limit), unnamed, stale), fresh=fresh)


class _Strict(ExtractReport):
    """Whatever would be told of a file is told by who gave it."""

    def tell(self, entry: Entry, code: str, message: str, *_: object, **__: object) -> None:
        raise Refused(code, message)
