"""What the end of an image tells: everything that a listing needs, under the seal. One read each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar
from uuid import UUID

from imagefs.errors import ImagefsError, IntegrityError, StoreError
from imagefs.format.codec import digest_of
from imagefs.format.fields import TAIL_SIZE, check
from imagefs.format.header import PREAMBLE, Header, decode_header, header_length
from imagefs.format.trailer import (
    FOOTER_SIZE,
    HEADER_COPY,
    SUMMARY_TYPE,
    Footer,
    Section,
    Summary,
    decode_footer,
    decode_summary,
    decode_table,
    seal_of,
)
from imagefs.interfaces import Reader

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Tail:
    """What the last 64 KiB of an image tell. ``trailer`` is the section table and the footer."""

    header: Header
    header_bytes: bytes
    summary: Summary
    summary_bytes: bytes
    trailer: bytes
    seal: bytes
    sections: dict[bytes, Section]
    size: int

    @property
    def id(self) -> str:
        return self.header.id

    @property
    def chunks(self) -> int:
        return -(-self.summary.disk_size // self.header.chunk_size)


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """One image as a listing sees it: its object's name and what its tail says."""

    name: str
    tail: Tail

    @property
    def id(self) -> str:
        return self.tail.id

    @property
    def uuid(self) -> UUID:
        return self.tail.header.image

    @property
    def header(self) -> Header:
        return self.tail.header

    @property
    def summary(self) -> Summary:
        return self.tail.summary

    @property
    def created(self) -> int:
        """ns since 1970 UTC."""
        return self.tail.header.created


def read_tail(reader: Reader, name: str = "") -> Tail:
    """The tail of the image in ``reader``, checked against its seal. Costs one read.

    Raises FormatError for what is no image, IntegrityError for a damaged one; both name ``name``.
    """
    return named(name, lambda: _read_tail(reader))


def _read_tail(reader: Reader) -> Tail:
    start = max(0, reader.size - TAIL_SIZE)
    tail = reader.read_at(start, TAIL_SIZE)
    check(len(tail) >= FOOTER_SIZE, "too short to be an imagefs image")
    try:
        footer = decode_footer(tail[-FOOTER_SIZE:], reader.size)
    except ImagefsError:
        # Something that never was an image deserves that answer, not one about its footer.
        header_length(reader.read_at(0, PREAMBLE.size))
        raise

    def part(section: Section) -> bytes:
        check(section.offset >= start, f"section {section.type.decode()} lies outside the tail")
        return tail[section.offset - start : section.offset - start + section.length]

    return _assemble(footer, tail[footer.table_offset - start :], part)


def tail_of(header: bytes, summary: bytes, trailer: bytes, size: int) -> Tail:
    """A tail from its parts, as ``Tail`` has them, of an object of ``size`` bytes; checked as one that is read."""
    footer = decode_footer(trailer[-FOOTER_SIZE:], size)
    check(len(trailer) == size - footer.table_offset, "the section table is cut short")
    parts = {HEADER_COPY: header, SUMMARY_TYPE: summary}
    return _assemble(footer, trailer, lambda section: parts[section.type])


def _assemble(footer: Footer, trailer: bytes, part: Callable[[Section], bytes]) -> Tail:
    table = trailer[:-FOOTER_SIZE]
    sections = {each.type: each for each in decode_table(table, footer.table_offset)}
    parts = {}
    for type_ in (HEADER_COPY, SUMMARY_TYPE):
        check(type_ in sections, f"the image has no section {type_.decode()}")
        parts[type_] = checked(sections[type_], part(sections[type_]))
    if seal_of(parts[HEADER_COPY], table) != footer.seal:
        raise IntegrityError("the seal does not match")
    header = decode_header(parts[HEADER_COPY])
    check(header.image == footer.image, "header and footer name different images")
    summary = decode_summary(parts[SUMMARY_TYPE])
    return Tail(
        header,
        parts[HEADER_COPY],
        summary,
        parts[SUMMARY_TYPE],
        trailer,
        footer.seal,
        sections,
        footer.object_size,
    )


def check_tail(reader: Reader, tail: Tail, name: str) -> None:
    """Hold an object against a tail that was read from it, or remembered, earlier.

    Raises IntegrityError when it is not the same image any more, and what ``read_tail`` raises.
    """
    length = len(tail.trailer)
    if reader.size == tail.size and reader.read_at(tail.size - length, length) == tail.trailer:
        return
    if read_tail(reader, name).seal != tail.seal:
        raise IntegrityError(
            f"{name} is not the image any more that was there a moment ago",
            hint="give the command again",
            image=name,
        )


def named(name: str, work: Callable[[], Value]) -> Value:
    """``work()``, with the image's name put before what it raises."""
    try:
        return work()
    except ImagefsError as error:
        if name and not isinstance(error, StoreError) and "image" not in error.data:
            error.message = f"{name}: {error.message}"
            error.data["image"] = name
        raise


def checked(section: Section, data: bytes) -> bytes:
    """``data``, which must be the bytes of ``section``; IntegrityError if they are not."""
    if len(data) != section.length or digest_of(data) != section.digest:
        name = section.type.decode("ascii", "replace")
        raise IntegrityError(f"the digest of section {name} does not match", offset=section.offset)
    return data
