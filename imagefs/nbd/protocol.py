"""The NBD protocol: bytes <-> values. Pure: no sockets, no threads, no readers.

The reference is doc/proto.md of the NetworkBlockDevice project (github.com/NetworkBlockDevice/nbd);
names here are its names without their prefixes. A client is hostile: what it sends is bounded here,
and what makes no sense is a ``Violation`` (the connection ends) or an ``Invalid`` (the option is refused).
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Sequence
from dataclasses import dataclass

GREETING_MAGIC = b"NBDMAGIC"
OPTION_MAGIC = b"IHAVEOPT"
OPTION_REPLY_MAGIC = 0x3E889045565A9
REQUEST_MAGIC = 0x25609513
SIMPLE_REPLY_MAGIC = 0x67446698
CHUNK_MAGIC = 0x668E33EF

CLIENT_FLAGS_SIZE = 4
OPTION_HEADER = struct.Struct(">8sII")
REQUEST = struct.Struct(">IHHQQI")
_OPTION_REPLY = struct.Struct(">QIII")
_SIMPLE_REPLY = struct.Struct(">IIQ")
_CHUNK = struct.Struct(">IHHQI")
_U16, _U32, _U64 = struct.Struct(">H"), struct.Struct(">I"), struct.Struct(">Q")

#: The most that an option may carry: a name and a few queries of 4,096 bytes each.
MAX_OPTION = 64 * 1024
MAX_STRING = 4096
#: The most bytes of one read; what clients may take for granted without being told.
MAX_REQUEST = 32 * 1024 * 1024
#: The unfragmented read that a server must not refuse.
MIN_UNFRAGMENTED = 64 * 1024

ALLOCATION = "base:allocation"


class HandshakeFlag(enum.IntFlag):
    """What server and client say of themselves first; both sides use the same bits."""

    FIXED_NEWSTYLE = 1
    NO_ZEROES = 2


class ExportFlag(enum.IntFlag):
    """The transmission flags: what can be done with an export."""

    HAS_FLAGS = 1
    READ_ONLY = 2
    SEND_DF = 1 << 7
    CAN_MULTI_CONN = 1 << 8


class Option(enum.IntEnum):
    """What a client may ask for before it reads."""

    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    INFO = 6
    GO = 7
    STRUCTURED_REPLY = 8
    LIST_META_CONTEXT = 9
    SET_META_CONTEXT = 10


class Rep(enum.IntEnum):
    """How the server answers an option."""

    ACK = 1
    SERVER = 2
    INFO = 3
    META_CONTEXT = 4
    ERR_UNSUP = 2**31 + 1
    ERR_INVALID = 2**31 + 3
    ERR_UNKNOWN = 2**31 + 6


class Info(enum.IntEnum):
    """The facts of an export that INFO and GO give."""

    EXPORT = 0
    NAME = 1
    DESCRIPTION = 2
    BLOCK_SIZE = 3


class Command(enum.IntEnum):
    """What a client may ask for when it reads."""

    READ = 0
    WRITE = 1
    DISC = 2
    FLUSH = 3
    TRIM = 4
    CACHE = 5
    WRITE_ZEROES = 6
    BLOCK_STATUS = 7


class CommandFlag(enum.IntFlag):
    """The flags of a request that mean something to a server that only reads."""

    DF = 1 << 2
    REQ_ONE = 1 << 3


class ChunkType(enum.IntEnum):
    """What a chunk of a structured reply holds."""

    NONE = 0
    OFFSET_DATA = 1
    OFFSET_HOLE = 2
    BLOCK_STATUS = 5
    ERROR = 2**15 + 1
    ERROR_OFFSET = 2**15 + 2


class Error(enum.IntEnum):
    """The error numbers of the protocol, which are not those of the machine."""

    PERM = 1
    IO = 5
    INVAL = 22
    OVERFLOW = 75


class StatusFlag(enum.IntFlag):
    """The bits of base:allocation."""

    HOLE = 1
    ZERO = 2


class Violation(Exception):
    """The client broke the protocol, and the connection cannot go on."""


class Invalid(Exception):
    """An option makes no sense; it is refused, and the client may send another."""


@dataclass(frozen=True, slots=True)
class OptionHeader:
    """An option by its number, which may be unknown, and how many bytes follow."""

    option: int
    length: int


@dataclass(frozen=True, slots=True)
class InfoRequest:
    """What INFO and GO ask: an export, and the facts wanted, which may be unknown."""

    name: str
    wanted: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class MetaRequest:
    """What LIST_META_CONTEXT and SET_META_CONTEXT ask."""

    name: str
    queries: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Request:
    """One request: ``cookie`` comes back in its reply; ``command`` may be unknown."""

    flags: int
    command: int
    cookie: int
    offset: int
    length: int


# -- the client's side, decoded -----------------------------------------------------------------------


def parse_client_flags(data: bytes) -> HandshakeFlag:
    """Four bytes → flags. Raises Violation for any we have not offered."""
    (number,) = _U32.unpack(data)
    if number & ~int(HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES):
        raise Violation(f"unknown client flags {number:#x}")
    return HandshakeFlag(number)


def parse_option_header(data: bytes) -> OptionHeader:
    magic, option, length = OPTION_HEADER.unpack(data)
    if magic != OPTION_MAGIC:
        raise Violation("an option without its magic")
    if length > MAX_OPTION:
        raise Violation(f"option {option} of {length} bytes")
    return OptionHeader(option, length)


def parse_name(data: bytes) -> str:
    """The name of an export, as EXPORT_NAME has it. Raises Invalid."""
    if len(data) > MAX_STRING:
        raise Invalid("a name is too long")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise Invalid("a name is not UTF-8") from error


def parse_info(data: bytes) -> InfoRequest:
    """Raises Invalid."""
    name, rest = _string(data)
    count, rest = _number(rest, _U16)
    if len(rest) != 2 * count:
        raise Invalid("the list of facts wanted has another length than it says")
    return InfoRequest(name, struct.unpack(f">{count}H", rest))


def parse_meta(data: bytes) -> MetaRequest:
    """Raises Invalid."""
    name, rest = _string(data)
    count, rest = _number(rest, _U32)
    queries: list[str] = []
    while rest and len(queries) < count:  # each takes four bytes at least, whatever the count says
        query, rest = _string(rest)
        queries.append(query)
    if rest or len(queries) != count:
        raise Invalid("the list of queries has another length than it says")
    return MetaRequest(name, tuple(queries))


def parse_request(data: bytes) -> Request:
    """28 bytes → a request. Raises Violation."""
    magic, flags, command, cookie, offset, length = REQUEST.unpack(data)
    if magic != REQUEST_MAGIC:
        raise Violation("a request without its magic")
    return Request(flags, command, cookie, offset, length)


def _string(data: bytes) -> tuple[str, bytes]:
    length, rest = _number(data, _U32)
    if length > len(rest):
        raise Invalid("a string ends after its option")
    return parse_name(rest[:length]), rest[length:]


def _number(data: bytes, kind: struct.Struct) -> tuple[int, bytes]:
    if len(data) < kind.size:
        raise Invalid("an option ends too early")
    return int(kind.unpack_from(data)[0]), data[kind.size :]


# -- the server's side, encoded -----------------------------------------------------------------------


def greeting() -> bytes:
    flags = HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES
    return GREETING_MAGIC + OPTION_MAGIC + _U16.pack(flags)


def option_reply(option: int, kind: Rep, data: bytes = b"") -> bytes:
    return _OPTION_REPLY.pack(OPTION_REPLY_MAGIC, option, kind, len(data)) + data


def server_data(name: str) -> bytes:
    """The data of a SERVER reply."""
    encoded = name.encode()
    return _U32.pack(len(encoded)) + encoded


def export_name_data(size: int, flags: ExportFlag, *, zeroes: bool) -> bytes:
    """The whole answer to EXPORT_NAME, which has no header."""
    return _U64.pack(size) + _U16.pack(flags) + bytes(124 if zeroes else 0)


def export_data(size: int, flags: ExportFlag) -> bytes:
    return _U16.pack(Info.EXPORT) + _U64.pack(size) + _U16.pack(flags)


def text_data(info: Info, text: str) -> bytes:
    """The data of an INFO reply that is a text: NAME or DESCRIPTION."""
    return _U16.pack(info) + text.encode()


def block_size_data(minimum: int, preferred: int, maximum: int) -> bytes:
    return struct.pack(">HIII", Info.BLOCK_SIZE, minimum, preferred, maximum)


def meta_context_data(number: int, name: str) -> bytes:
    return _U32.pack(number) + name.encode()


def simple_reply(cookie: int, error: int = 0) -> bytes:
    """The header of a simple reply; the data of a read follow it when there is no error."""
    return _SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, error, cookie)


def chunk(cookie: int, kind: ChunkType, payload: bytes = b"", *, done: bool) -> bytes:
    """One chunk of a structured reply; ``done`` marks the last."""
    return _CHUNK.pack(CHUNK_MAGIC, done, kind, cookie, len(payload)) + payload


def data_payload(offset: int, data: bytes) -> bytes:
    return _U64.pack(offset) + data


def hole_payload(offset: int, length: int) -> bytes:
    return struct.pack(">QI", offset, length)


def error_payload(error: Error, message: str, offset: int | None = None) -> bytes:
    """Of an ERROR chunk, or with ``offset`` of an ERROR_OFFSET chunk."""
    text = message.encode()[:MAX_STRING].decode(errors="ignore").encode()
    where = b"" if offset is None else _U64.pack(offset)
    return struct.pack(">IH", error, len(text)) + text + where


def status_payload(context: int, rows: Sequence[tuple[int, StatusFlag]]) -> bytes:
    """``rows`` of (length, flags), one behind the other from the offset that was asked for."""
    numbers = [number for row in rows for number in row]
    return struct.pack(f">I{len(numbers)}I", context, *numbers)
