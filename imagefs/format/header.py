"""Preamble and header: what is known of an image before its first byte of data (FORMAT.md, 2)."""

from __future__ import annotations

import enum
import struct
import zlib
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from imagefs.errors import FormatError
from imagefs.format.fields import (
    check,
    check_chunk_size,
    check_crc,
    decode_facts,
    encode_facts,
    uuid_bytes,
    uuid_or_none,
)

MAGIC = b"\x89imgfs\r\n"
VERSION = 1
#: Feature bits this version understands. An unknown incompatible bit refuses the image.
KNOWN_INCOMPATIBLE = 0
PREAMBLE = struct.Struct("<8sHHIQQ")
FIXED = struct.Struct("<16s16s16s32s32sQIIBBBBB3s32sII")
CRC = struct.Struct("<I")
MAX_HEADER = 28 * 1024
MIN_HEADER = PREAMBLE.size + FIXED.size + CRC.size
DIGEST_BLAKE3 = 1
CODEC_RAW = 0
CODEC_ZSTD = 1


class Kind(enum.IntEnum):
    """Full images stand alone; the others read through their parent."""

    FULL = 1
    INCREMENTAL = 2
    DIFFERENTIAL = 3


class Mode(enum.IntEnum):
    """Whether every sector was captured, or only what a file system uses."""

    ALL = 1
    USED = 2


_KINDS, _MODES = frozenset(Kind), frozenset(Mode)


@dataclass(frozen=True, slots=True)
class Header:
    """Everything a reader must know first. ``created`` is ns since 1970 UTC, sizes are bytes.

    ``parent``, ``parent_seal`` and ``parent_view`` are None/zeros in a full image.
    ``facts`` is descriptive: source identity, tool version, note.
    """

    image: UUID
    set: UUID
    kind: Kind
    created: int
    chunk_size: int
    sector_size: int
    parent: UUID | None = None
    parent_seal: bytes = bytes(32)
    parent_view: bytes = bytes(32)
    mode: Mode = Mode.ALL
    digest: int = DIGEST_BLAKE3
    codec: int = CODEC_ZSTD
    level: int = 0
    incompatible: int = 0
    compatible: int = 0
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return self.image.hex


def encode_header(header: Header) -> bytes:
    """Preamble and header as bytes, a multiple of 8 long, ending in their CRC-32."""
    facts = encode_facts(header.facts)
    body = FIXED.pack(
        header.image.bytes,
        header.set.bytes,
        uuid_bytes(header.parent),
        header.parent_seal,
        header.parent_view,
        header.created,
        header.chunk_size,
        header.sector_size,
        header.kind,
        header.mode,
        header.digest,
        header.codec,
        header.level,
        bytes(3),
        bytes(32),
        len(facts),
        0,
    )
    length = -(-(PREAMBLE.size + len(body) + len(facts) + CRC.size) // 8) * 8
    preamble = PREAMBLE.pack(MAGIC, VERSION, 0, length, header.incompatible, header.compatible)
    data = (preamble + body + facts).ljust(length - CRC.size, b"\0")
    return data + CRC.pack(zlib.crc32(data))


def header_length(preamble: bytes) -> int:
    """How many bytes preamble and header take; refuses what is no image or a newer one.

    ``preamble`` is the first 32 bytes of the object. Raises FormatError.
    """
    check(len(preamble) >= PREAMBLE.size, "too short to be an imagefs image")
    magic, version, _minor, length, incompatible, _ = PREAMBLE.unpack_from(preamble)
    check(magic == MAGIC, "not an imagefs image")
    if version != VERSION:
        raise FormatError(f"image format version {version} is unknown", hint="use a newer imagefs")
    if incompatible & ~KNOWN_INCOMPATIBLE:
        unknown = incompatible & ~KNOWN_INCOMPATIBLE
        raise FormatError(f"the image uses unknown features ({unknown:#x})", hint="use a newer imagefs")
    check(MIN_HEADER <= length <= MAX_HEADER and length % 8 == 0, f"a header of {length} bytes is impossible")
    return int(length)


def decode_header(data: bytes) -> Header:
    """The header in ``data`` (exactly its bytes). Raises FormatError, IntegrityError."""
    length = header_length(data)
    check(len(data) == length, f"the header is cut short at {len(data)} of {length} bytes")
    check_crc(data[: -CRC.size], CRC.unpack(data[-CRC.size :])[0], "header")
    _, _, _, _, incompatible, compatible = PREAMBLE.unpack_from(data)
    (
        image,
        set_,
        parent,
        seal,
        view,
        created,
        chunk_size,
        sector_size,
        kind,
        mode,
        digest,
        codec,
        level,
        *rest,
    ) = FIXED.unpack_from(data, PREAMBLE.size)
    reserved, encryption, facts_length, reserved2 = rest
    check(not any(reserved + encryption) and reserved2 == 0, "reserved header fields are in use")
    check_values(kind, mode, digest, codec, sector_size)
    check_chunk_size(chunk_size)
    start = PREAMBLE.size + FIXED.size
    check(start + facts_length + CRC.size <= length, "the header's facts run past its end")
    check((kind == Kind.FULL) == (not any(parent)), "kind and parent of the image contradict each other")
    return Header(
        image=UUID(bytes=image),
        set=UUID(bytes=set_),
        kind=Kind(kind),
        created=created,
        chunk_size=chunk_size,
        sector_size=sector_size,
        parent=uuid_or_none(parent),
        parent_seal=seal,
        parent_view=view,
        mode=Mode(mode),
        digest=digest,
        codec=codec,
        level=level,
        incompatible=incompatible,
        compatible=compatible,
        facts=decode_facts(data[start : start + facts_length]),
    )


def check_values(kind: int, mode: int, digest: int, codec: int, sector_size: int) -> None:
    check(kind in _KINDS, f"image kind {kind} is unknown")
    check(mode in _MODES, f"capture mode {mode} is unknown")
    check(digest == DIGEST_BLAKE3, f"digest {digest} is unknown")
    check(codec in (CODEC_RAW, CODEC_ZSTD), f"codec {codec} is unknown")
    sane = 512 <= sector_size <= 65536 and sector_size & (sector_size - 1) == 0
    check(sane, f"a sector size of {sector_size} is impossible")
