"""What follows the data: summary, section table, seal and footer (FORMAT.md, 6)."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from blake3 import blake3

from imagefs.format.fields import MAX_DISK_SIZE, TAIL_SIZE, check, check_crc, decode_facts, encode_facts

FOOTER_MAGIC = b"\x89imgend\n"
FOOTER = struct.Struct("<8sQQII32s16sQI")
FOOTER_SIZE = FOOTER.size + 4
SECTION = struct.Struct("<4sIQQ32s8s")
SUMMARY = struct.Struct("<QQQ32sQQQQQQQB15sII")
SUMMARY_FIELDS = (
    "disk_size",
    "started",
    "ended",
    "view",
    "stored",
    "zero",
    "skipped",
    "unreadable",
    "absent",
    "frame_bytes",
    "read_bytes",
    "consistency",
)
STANDS_FOR = struct.Struct("<16s32s32s")
MAX_SECTIONS = 64

DIRECTORY, EXTENTS, RANGES = b"IDIR", b"EXTS", b"RNGS"
SUMMARY_TYPE, HEADER_COPY, STANDS_FOR_TYPE = b"SUMM", b"HEAD", b"STND"
KNOWN_SECTIONS = (DIRECTORY, EXTENTS, RANGES, SUMMARY_TYPE, HEADER_COPY, STANDS_FOR_TYPE)
#: A reader that does not know a section with this flag refuses the image.
CRITICAL = 1


@dataclass(frozen=True, slots=True)
class Section:
    """One row of the section table; ``digest`` is the BLAKE3-256 of the section's bytes."""

    type: bytes
    offset: int
    length: int
    digest: bytes
    flags: int = CRITICAL


@dataclass(frozen=True, slots=True)
class Footer:
    """The last 96 bytes: where the section table is, and the seal."""

    object_size: int
    table_offset: int
    table_length: int
    seal: bytes
    image: UUID


@dataclass(frozen=True, slots=True)
class Summary:
    """What is known only at the end; authoritative. Sizes in bytes, times in ns since 1970 UTC.

    The five counts are of chunks of this layer; ``consistency`` is 0 unknown, 1 not in use while
    captured, 2 snapshot, 3 live. ``facts``: volumes seen, note.
    """

    disk_size: int
    started: int
    ended: int
    view: bytes
    stored: int = 0
    zero: int = 0
    skipped: int = 0
    unreadable: int = 0
    absent: int = 0
    frame_bytes: int = 0
    read_bytes: int = 0
    consistency: int = 0
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StandsFor:
    """An image that this one replaces, so that its children stay readable after a merge."""

    image: UUID
    seal: bytes
    view: bytes


def encode_summary(summary: Summary) -> bytes:
    facts = encode_facts(summary.facts)
    return (
        SUMMARY.pack(
            summary.disk_size,
            summary.started,
            summary.ended,
            summary.view,
            summary.stored,
            summary.zero,
            summary.skipped,
            summary.unreadable,
            summary.absent,
            summary.frame_bytes,
            summary.read_bytes,
            summary.consistency,
            bytes(15),
            len(facts),
            0,
        )
        + facts
    )


def decode_summary(data: bytes) -> Summary:
    check(len(data) >= SUMMARY.size, "the summary is cut short")
    *values, reserved, facts_length, reserved2 = SUMMARY.unpack_from(data)
    check(not any(reserved) and reserved2 == 0, "reserved summary fields are in use")
    check(len(data) == SUMMARY.size + facts_length, "the summary has the wrong length")
    check(values[0] <= MAX_DISK_SIZE, f"a disk of {values[0]} bytes is impossible")
    numbers = dict(zip(SUMMARY_FIELDS, values, strict=True))
    return Summary(**numbers, facts=decode_facts(data[SUMMARY.size :]))


def encode_table(sections: Sequence[Section]) -> bytes:
    return b"".join(
        SECTION.pack(part.type, part.flags, part.offset, part.length, part.digest, bytes(8))
        for part in sections
    )


def decode_table(data: bytes, table_offset: int) -> list[Section]:
    """The sections, each once, each wholly before the table, no unknown critical one."""
    check(len(data) % SECTION.size == 0, "the section table has a broken length")
    sections, seen = [], set()
    for type_, flags, offset, length, digest, reserved in SECTION.iter_unpack(data):
        check(not any(reserved), "reserved fields of the section table are in use")
        known = type_ in KNOWN_SECTIONS
        check(known or not flags & CRITICAL, f"the image has an unknown section {type_!r}")
        check(type_ not in seen, f"section {type_!r} is there twice")
        check(offset + length <= table_offset, f"section {type_!r} runs past the section table")
        seen.add(type_)
        sections.append(Section(type_, offset, length, digest, flags))
    return sections


def encode_stands_for(rows: Sequence[StandsFor]) -> bytes:
    return b"".join(STANDS_FOR.pack(row.image.bytes, row.seal, row.view) for row in rows)


def decode_stands_for(data: bytes) -> list[StandsFor]:
    check(len(data) % STANDS_FOR.size == 0, "the stands-for list has a broken length")
    return [StandsFor(UUID(bytes=raw), seal, view) for raw, seal, view in STANDS_FOR.iter_unpack(data)]


def seal_of(header: bytes, table: bytes) -> bytes:
    """BLAKE3-256 over the header's bytes and the section table's, so over everything they cover."""
    return blake3(header).update(table).digest()


def encode_footer(footer: Footer) -> bytes:
    data = FOOTER.pack(
        FOOTER_MAGIC,
        footer.object_size,
        footer.table_offset,
        footer.table_length,
        0,
        footer.seal,
        footer.image.bytes,
        0,
        0,
    )
    return data + zlib.crc32(data).to_bytes(4, "little")


def decode_footer(data: bytes, object_size: int) -> Footer:
    """The footer in the last 96 bytes of an object of ``object_size`` bytes."""
    check(len(data) == FOOTER_SIZE, "too short to be an imagefs image")
    magic, size, offset, length, reserved, seal, image, reserved2, reserved3 = FOOTER.unpack_from(data)
    check(magic == FOOTER_MAGIC, "the image has no footer: it is unfinished or cut short")
    check_crc(data[: FOOTER.size], int.from_bytes(data[FOOTER.size :], "little"), "footer")
    check(reserved == reserved2 == reserved3 == 0, "reserved footer fields are in use")
    check(size == object_size, f"the image is {object_size} bytes long but was written with {size}")
    check(length <= MAX_SECTIONS * SECTION.size, f"a section table of {length} bytes is impossible")
    check(offset + length == object_size - FOOTER_SIZE, "the section table is not where the footer says")
    check(object_size - offset <= TAIL_SIZE, "the section table lies outside the tail")
    return Footer(size, offset, length, seal, UUID(bytes=image))
