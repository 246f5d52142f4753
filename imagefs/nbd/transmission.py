"""The second half of a connection: requests and their replies, one after the other.

A read is answered in pieces, so that a connection holds little memory whatever is asked for, and
what cannot be read is an error at its offset: no client ever gets bytes that failed their check.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from imagefs.block.views import extents_of
from imagefs.errors import ImagefsError, line_of
from imagefs.interfaces import HOLES
from imagefs.nbd import protocol
from imagefs.nbd.exports import statuses
from imagefs.nbd.handshake import ALLOCATION_ID, Session
from imagefs.nbd.protocol import ChunkType, Command, CommandFlag, Error, Request, Violation
from imagefs.nbd.stream import Stream

#: The most bytes that are read and sent at once.
PIECE = 1024 * 1024


class _Refused(Exception):
    """The request is answered with this error."""

    def __init__(self, error: Error, message: str) -> None:
        super().__init__(message)
        self.error = error


def serve(stream: Stream, session: Session, *, log: Callable[[str], None]) -> None:
    """Answer requests until the client says that it is done. Raises Violation, stream.Gone."""
    answers = _Answers(stream, session, log)
    while True:
        stream.wait()
        request = protocol.parse_request(stream.read(protocol.REQUEST.size))
        if request.command == Command.DISC:
            return
        answers.give(request)


class _Answers:
    """The replies of one session."""

    def __init__(self, stream: Stream, session: Session, log: Callable[[str], None]) -> None:
        self._stream = stream
        self._session = session
        self._reader = session.export.reader
        self._log = log

    def give(self, request: Request) -> None:
        try:
            self._answer(request)
        except _Refused as error:
            self._error(request, error.error, str(error))

    def _answer(self, request: Request) -> None:
        if request.command == Command.READ:
            self._check(request, CommandFlag.DF if self._session.structured else 0)
            self._read(request)
        elif request.command == Command.BLOCK_STATUS and self._session.allocation:
            self._check(request, CommandFlag.REQ_ONE)
            self._status(request)
        elif request.command in (Command.WRITE, Command.TRIM, Command.WRITE_ZEROES):
            if request.command == Command.WRITE:
                self._skip_payload(request)
            raise _Refused(Error.PERM, "an image is never written to")
        else:
            raise _Refused(Error.INVAL, f"command {request.command} was not agreed on")

    def _check(self, request: Request, allowed: int) -> None:
        if request.flags & ~int(allowed):  # ~ of a flag itself knows only its siblings
            raise _Refused(Error.INVAL, f"flags {request.flags:#x} do not go with command {request.command}")
        if request.length == 0:
            raise _Refused(Error.INVAL, "nothing was asked for")
        if request.offset + request.length > self._reader.size:
            raise _Refused(Error.INVAL, f"the export ends at {self._reader.size}")

    def _skip_payload(self, request: Request) -> None:
        if request.length > protocol.MAX_REQUEST:
            raise Violation(f"a write of {request.length} bytes")
        self._stream.discard(request.length)

    def _read(self, request: Request) -> None:
        if request.length > protocol.MAX_REQUEST:
            raise _Refused(Error.INVAL, f"a read is at most {protocol.MAX_REQUEST} bytes")
        if not self._session.structured:
            self._read_simply(request)
            return
        if request.flags & CommandFlag.DF:
            if request.length > PIECE:
                raise _Refused(Error.OVERFLOW, f"at most {PIECE} bytes come unfragmented")
            self._send_chunks(request, iter((self._whole(request.offset, request.length),)))
            return
        self._send_chunks(request, self._content(request.offset, request.length))

    def _read_simply(self, request: Request) -> None:
        """A simple reply says first whether all of it can be read, so a long one is read twice: once
        to know, and again (mostly from the cache) to send. If that fails, only hanging up is left."""
        pieces = list(_cut(request.offset, request.length))
        try:
            held = [self._bytes(*piece) for piece in pieces[:1]]
            for piece in pieces[1:]:
                self._bytes(*piece)
        except Exception as error:
            raise self._failed(*pieces[0], error) from error
        self._stream.send(protocol.simple_reply(request.cookie) + held[0])
        for piece in pieces[1:]:
            try:
                data = self._bytes(*piece)
            except Exception as error:
                raise Violation(str(self._failed(*piece, error))) from error
            self._stream.send(data)

    def _content(self, offset: int, length: int) -> Iterator[tuple[ChunkType, bytes]]:
        """The chunks of a read: holes as such, everything else in pieces."""
        for extent in extents_of(self._reader, offset, length):
            if extent.state in HOLES:
                yield ChunkType.OFFSET_HOLE, protocol.hole_payload(extent.offset, extent.length)
                continue
            for piece in _cut(extent.offset, extent.length):
                yield from self._data(*piece)

    def _data(self, offset: int, length: int) -> Iterator[tuple[ChunkType, bytes]]:
        """One piece as data; where it cannot be read as such, block by block."""
        try:
            data = self._bytes(offset, length)
        except Exception:  # told below, by the block that is bad
            for block in _cut(offset, length, self._session.export.block_size):
                yield self._whole(*block)
        else:
            yield ChunkType.OFFSET_DATA, protocol.data_payload(offset, data)

    def _whole(self, offset: int, length: int) -> tuple[ChunkType, bytes]:
        """One chunk: all of it as data, or an error at its offset."""
        try:
            data = self._bytes(offset, length)
        except Exception as error:
            failed = self._failed(offset, length, error)
            return ChunkType.ERROR_OFFSET, protocol.error_payload(failed.error, str(failed), offset)
        return ChunkType.OFFSET_DATA, protocol.data_payload(offset, data)

    def _bytes(self, offset: int, length: int) -> bytes:
        """What a Reader gives, and not a byte less: the client would take what follows for data."""
        data = self._reader.read_at(offset, length)
        if len(data) != length:
            raise RuntimeError(f"{len(data)} bytes instead of {length} at {offset}")
        return data

    def _send_chunks(self, request: Request, chunks: Iterator[tuple[ChunkType, bytes]]) -> None:
        """Send them as they come; the last one says that it is."""
        kind, payload = next(chunks)
        for following in chunks:
            self._stream.send(protocol.chunk(request.cookie, kind, payload, done=False))
            kind, payload = following
        self._stream.send(protocol.chunk(request.cookie, kind, payload, done=True))

    def _status(self, request: Request) -> None:
        one = bool(request.flags & CommandFlag.REQ_ONE)
        try:
            rows = statuses(self._reader, request.offset, request.length, one=one)
        except Exception as error:
            raise self._failed(request.offset, request.length, error) from error
        payload = protocol.status_payload(ALLOCATION_ID, rows)
        self._stream.send(protocol.chunk(request.cookie, ChunkType.BLOCK_STATUS, payload, done=True))

    def _failed(self, offset: int, length: int, error: Exception) -> _Refused:
        """EIO for whatever went wrong, a bug too: a client must never take it for data."""
        name = self._session.export.name
        self._log(line_of(error, f"{length} bytes at {offset} of {name}"))
        return _Refused(Error.IO, error.message if isinstance(error, ImagefsError) else "a bug in imagefs")

    def _error(self, request: Request, error: Error, message: str) -> None:
        if self._session.structured:
            payload = protocol.error_payload(error, message)
            self._stream.send(protocol.chunk(request.cookie, ChunkType.ERROR, payload, done=True))
        else:
            self._stream.send(protocol.simple_reply(request.cookie, error))


def _cut(offset: int, length: int, size: int = PIECE) -> Iterator[tuple[int, int]]:
    """(offset, length) of the pieces of a range, cut where ``size`` divides the disk."""
    end = offset + length
    while offset < end:
        stop = min(end, (offset // size + 1) * size)
        yield offset, stop - offset
        offset = stop
