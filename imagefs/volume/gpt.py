"""The GUID partition table: its two copies, each proved by its checksums, and which one to believe.

Must not know about the MBR. A copy counts only when header and entries both pass: a table that
fails its check is never used in part.
"""

from __future__ import annotations

import binascii
import struct
import uuid
from dataclasses import dataclass

from imagefs.interfaces import Finding
from imagefs.volume.layout import Sectors, Span
from imagefs.volume.roles import gpt_role

SIGNATURE = b"EFI PART"
#: 32,768 entries of the usual 128 bytes; the kernel and gdisk stop far earlier.
MAX_ENTRIES_BYTES = 4 << 20

_HEADER = struct.Struct("<8s4sII4xQQQQ16sQIII")
_ENTRY = struct.Struct("<16s16sQQQ72s")
_LEGACY_BOOT = 1 << 2


@dataclass(frozen=True, slots=True)
class GptHeader:
    """The fields of a header that passed its checksum; all LBAs as stated, none of them checked."""

    alternate_lba: int
    disk_guid: str
    entries_lba: int
    entry_count: int
    entry_size: int
    entries_crc: int


@dataclass(frozen=True, slots=True)
class GptCopy:
    """One copy of the table at ``lba``. ``problem`` is empty when it is good, else half a sentence."""

    lba: int
    header: GptHeader | None = None
    entries: bytes = b""
    problem: str = ""
    #: Where this copy says the other one is, even when it fails its check; -1 unknown.
    alternate_lba: int = -1


@dataclass(frozen=True, slots=True)
class Gpt:
    """A table that passed its checks: its header, its partitions, and what is wrong around it."""

    header: GptHeader
    spans: list[Span]
    findings: list[Finding]


def has_header(sectors: Sectors) -> bool:
    """Whether a primary header seems to be there; proves nothing."""
    return sectors.read(1, 8) == SIGNATURE


def read_backup(sectors: Sectors, primary: GptCopy) -> GptCopy:
    """The best backup: at the LBA the primary names, or in the last sector of the disk."""
    last = sectors.count - 1
    copies = [read_copy(sectors, lba) for lba in dict.fromkeys((primary.alternate_lba, last)) if lba > 1]
    good = [copy for copy in copies if not copy.problem]
    return good[0] if good else (copies[-1] if copies else GptCopy(last, problem="does not exist"))


def read_copy(sectors: Sectors, lba: int) -> GptCopy:
    """The copy whose header is in sector ``lba``, checked to the last byte."""
    sector = sectors.read(lba, sectors.size)
    if sector is None:
        return GptCopy(lba, problem="lies past the end of the disk or cannot be read")
    signature, _, header_size, crc, my_lba, alternate, *fields = _HEADER.unpack_from(sector)
    if signature != SIGNATURE:
        return GptCopy(lba, problem="has no signature")
    if not _HEADER.size <= header_size <= sectors.size:
        return GptCopy(lba, problem="states an impossible header size", alternate_lba=alternate)
    zeroed = sector[:16] + bytes(4) + sector[20:header_size]
    if binascii.crc32(zeroed) != crc:
        return GptCopy(lba, problem="fails its checksum", alternate_lba=alternate)
    if my_lba != lba:
        return GptCopy(lba, problem=f"belongs to sector {my_lba}", alternate_lba=alternate)
    _, _, guid, entries_lba, count, size, entries_crc = fields
    return _with_entries(
        sectors, lba, GptHeader(alternate, _guid(guid), entries_lba, count, size, entries_crc)
    )


def _with_entries(sectors: Sectors, lba: int, header: GptHeader) -> GptCopy:
    def bad(problem: str) -> GptCopy:
        return GptCopy(lba, problem=problem, alternate_lba=header.alternate_lba)

    if header.entry_size % 8 or not 128 <= header.entry_size <= 4096:
        return bad(f"has entries of {header.entry_size} bytes")
    length = header.entry_count * header.entry_size
    if length > MAX_ENTRIES_BYTES:
        return bad(f"states {header.entry_count} entries")
    entries = sectors.read(header.entries_lba, length)
    if entries is None:
        return bad("has its entries past the end of the disk or where it cannot be read")
    if binascii.crc32(entries) != header.entries_crc:
        return bad("has entries that fail their checksum")
    return GptCopy(lba, header, entries, alternate_lba=header.alternate_lba)


def believe(sectors: Sectors, primary: GptCopy, backup: GptCopy) -> Gpt | None:
    """The table to go by: the primary, else the backup, else None; with what that leaves to say."""
    findings = _compare(sectors, primary, backup)
    for copy in (primary, backup):
        if copy.header is not None:
            return Gpt(copy.header, _spans(copy.entries, copy.header.entry_size), findings)
    return None


def _compare(sectors: Sectors, primary: GptCopy, backup: GptCopy) -> list[Finding]:
    findings: list[Finding] = []
    if primary.header is None:
        message = f"the primary GPT header (sector 1) {primary.problem}; the backup is used"
        findings.append(Finding("warning", "gpt-primary-damaged", message, offset=sectors.size))
    if backup.header is None:
        message = f"the backup GPT header (sector {backup.lba}) {backup.problem}"
        offset = max(0, backup.lba) * sectors.size
        findings.append(Finding("warning", "gpt-backup-damaged", message, offset=offset))
    elif backup.lba != sectors.count - 1:
        message = (
            f"the backup GPT is in sector {backup.lba}, not at the end of the disk: the disk was enlarged"
        )
        findings.append(Finding("note", "gpt-backup-displaced", message, offset=backup.lba * sectors.size))
    if primary.header and backup.header and not _equal(primary, backup):
        message = "the two copies of the GPT differ though each is sound; the primary is used"
        findings.append(Finding("warning", "gpt-copies-differ", message, offset=backup.lba * sectors.size))
    return findings


def _equal(one: GptCopy, other: GptCopy) -> bool:
    if one.header is None or other.header is None:
        return False
    return one.entries == other.entries and one.header.disk_guid == other.header.disk_guid


def _spans(entries: bytes, entry_size: int) -> list[Span]:
    spans = []
    for position in range(0, len(entries), entry_size):
        kind, unique, first, last, flags, name = _ENTRY.unpack_from(entries, position)
        if any(kind):
            spans.append(
                Span(
                    number=position // entry_size + 1,
                    first=first,
                    count=last - first + 1,
                    type=_guid(kind),
                    uuid=_guid(unique),
                    name=_text(name),
                    role=gpt_role(_guid(kind)),
                    bootable=bool(flags & _LEGACY_BOOT),
                )
            )
    return spans


def _guid(data: bytes) -> str:
    return str(uuid.UUID(bytes_le=data))


def _text(data: bytes) -> str:
    return data.decode("utf-16-le", "replace").split("\0", 1)[0]
