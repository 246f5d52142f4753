"""The first half of a connection: greeting and options, until the client has chosen an export.

Fixed newstyle only. TLS is not offered: a unix socket has its folder's permissions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from imagefs.nbd import protocol
from imagefs.nbd.exports import Export, find_export
from imagefs.nbd.protocol import ALLOCATION, ExportFlag, HandshakeFlag, Info, Invalid, Option, Rep, Violation
from imagefs.nbd.stream import Stream

#: What a client gets for choosing: seconds, and options.
HANDSHAKE_SECONDS = 60.0
MAX_OPTIONS = 1024
#: Reads may begin and end at any byte.
MINIMUM_BLOCK = 1
#: The number of base:allocation on a connection.
ALLOCATION_ID = 1


@dataclass(frozen=True, slots=True)
class Session:
    """What was agreed: the export, structured replies or not, base:allocation or not."""

    export: Export
    structured: bool = False
    allocation: bool = False


class _Refused(Exception):
    """The option is answered with this error; the client may send another."""

    def __init__(self, kind: Rep, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def negotiate(
    stream: Stream, exports: Sequence[Export], *, seconds: float = HANDSHAKE_SECONDS
) -> Session | None:
    """The session that the client chose; None when it wants none. Raises Violation, stream.Gone."""
    deadline = time.monotonic() + seconds
    stream.send(protocol.greeting())
    flags = protocol.parse_client_flags(stream.read(protocol.CLIENT_FLAGS_SIZE, deadline=deadline))
    talk = _Negotiation(stream, exports, flags)
    for _ in range(MAX_OPTIONS):
        header = protocol.parse_option_header(stream.read(protocol.OPTION_HEADER.size, deadline=deadline))
        data = stream.read(header.length, deadline=deadline)
        if header.option == Option.ABORT:
            stream.send(protocol.option_reply(header.option, Rep.ACK))
            return None
        talk.take(header.option, data)
        if talk.session is not None:
            return talk.session
    raise Violation(f"{MAX_OPTIONS} options and no choice")


class _Negotiation:
    """What has been agreed so far on one connection; ``session`` is set when it is over."""

    def __init__(self, stream: Stream, exports: Sequence[Export], flags: HandshakeFlag) -> None:
        self.session: Session | None = None
        self._stream = stream
        self._exports = exports
        self._flags = flags
        self._structured = False
        #: The export for which base:allocation was selected, as the client named it.
        self._allocation_of: str | None = None

    def take(self, option: int, data: bytes) -> None:
        """Answer one option."""
        if option == Option.EXPORT_NAME:
            self._export_name(data)
            return
        if not self._flags & HandshakeFlag.FIXED_NEWSTYLE:
            raise Violation(f"option {option} from a client that does not know answers")
        answers: dict[int, Callable[[bytes], Iterator[tuple[Rep, bytes]]]] = {
            Option.LIST: self._list,
            Option.INFO: self._info,
            Option.GO: self._info,
            Option.STRUCTURED_REPLY: self._structured_reply,
            Option.LIST_META_CONTEXT: self._list_meta_context,
            Option.SET_META_CONTEXT: self._set_meta_context,
        }
        try:
            if option not in answers:
                raise _Refused(Rep.ERR_UNSUP, f"option {option} is not supported")
            replies = [*answers[option](data), (Rep.ACK, b"")]
        except _Refused as error:
            replies = [(error.kind, str(error).encode())]
        except Invalid as error:
            replies = [(Rep.ERR_INVALID, str(error).encode())]
        self._stream.send(b"".join(protocol.option_reply(option, kind, reply) for kind, reply in replies))
        if option == Option.GO and replies[-1][0] is Rep.ACK:
            name = protocol.parse_info(data).name
            self.session = self._agreed(self._find(name), name)

    def _export_name(self, data: bytes) -> None:
        """There is no answer that says no: a name that does not exist ends the connection."""
        try:
            name = protocol.parse_name(data)
            export = self._find(name)
        except (Invalid, _Refused) as error:
            raise Violation(str(error)) from error
        zeroes = not self._flags & HandshakeFlag.NO_ZEROES
        self._stream.send(protocol.export_name_data(export.reader.size, self._export_flags(), zeroes=zeroes))
        self.session = self._agreed(export, name)

    def _list(self, data: bytes) -> Iterator[tuple[Rep, bytes]]:
        _must_be_empty(data)
        for export in self._exports:
            yield Rep.SERVER, protocol.server_data(export.name)

    def _info(self, data: bytes) -> Iterator[tuple[Rep, bytes]]:
        asked = protocol.parse_info(data)
        export = self._find(asked.name)
        yield Rep.INFO, protocol.export_data(export.reader.size, self._export_flags())
        if Info.NAME in asked.wanted:
            yield Rep.INFO, protocol.text_data(Info.NAME, export.name)
        if Info.DESCRIPTION in asked.wanted and export.description:
            yield Rep.INFO, protocol.text_data(Info.DESCRIPTION, export.description)
        if Info.BLOCK_SIZE in asked.wanted:
            sizes = protocol.block_size_data(MINIMUM_BLOCK, export.block_size, protocol.MAX_REQUEST)
            yield Rep.INFO, sizes

    def _structured_reply(self, data: bytes) -> Iterator[tuple[Rep, bytes]]:
        _must_be_empty(data)
        self._structured = True
        yield from ()

    def _list_meta_context(self, data: bytes) -> Iterator[tuple[Rep, bytes]]:
        asked = self._meta_request(data)
        if not asked.queries or {"base:", ALLOCATION} & set(asked.queries):
            yield Rep.META_CONTEXT, protocol.meta_context_data(0, ALLOCATION)

    def _set_meta_context(self, data: bytes) -> Iterator[tuple[Rep, bytes]]:
        self._allocation_of = None  # each selection replaces the one before, a failed one too
        asked = self._meta_request(data)
        if ALLOCATION in asked.queries:
            self._allocation_of = asked.name
            yield Rep.META_CONTEXT, protocol.meta_context_data(ALLOCATION_ID, ALLOCATION)

    def _meta_request(self, data: bytes) -> protocol.MetaRequest:
        if not self._structured:
            raise Invalid("structured replies have to be agreed first")
        asked = protocol.parse_meta(data)
        self._find(asked.name)
        return asked

    def _find(self, name: str) -> Export:
        export = find_export(self._exports, name)
        if export is None:
            raise _Refused(Rep.ERR_UNKNOWN, f"there is no export {name[:100]!r}")
        return export

    def _export_flags(self) -> ExportFlag:
        flags = ExportFlag.HAS_FLAGS | ExportFlag.READ_ONLY | ExportFlag.CAN_MULTI_CONN
        return flags | (ExportFlag.SEND_DF if self._structured else 0)

    def _agreed(self, export: Export, name: str) -> Session:
        return Session(export, self._structured, allocation=self._allocation_of == name)


def _must_be_empty(data: bytes) -> None:
    if data:
        raise Invalid("the option takes no data")
