"""What a partition table comes to: the values, and how stated partitions are fitted to a real disk.

Must not know the kinds of tables: both parsers hand in ``Span``s, in sectors, as the table states
them; here they become ``Volume``s, in bytes, that lie inside the disk.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from imagefs.errors import IntegrityError, SourceError
from imagefs.interfaces import Finding, Reader, Volume

#: A hostile table may state thousands of bad partitions; so many findings say enough.
MAX_FINDINGS = 100


@dataclass(frozen=True, slots=True)
class VolumeTable:
    """The partition table of a disk. ``scheme`` is ``gpt``, ``mbr`` or ``none``.

    ``disk_id`` is the GPT disk GUID (lower case), the MBR id as 8 hex digits, or empty.
    ``sector_size`` is what the table counts in, which may differ from what the caller believed.
    ``volumes`` are in order of number. Scheme ``none`` has exactly one: number 0, the whole disk.
    """

    scheme: str
    disk_id: str
    sector_size: int
    volumes: tuple[Volume, ...]
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True, slots=True)
class Span:
    """A partition as the table states it: ``count`` sectors from ``first``. Nothing is checked yet."""

    number: int
    first: int
    count: int
    type: str
    uuid: str = ""
    name: str = ""
    role: str = ""
    bootable: bool = False


@dataclass(frozen=True, slots=True)
class Sectors:
    """A disk counted in sectors of ``size`` bytes; a rest smaller than a sector does not count."""

    reader: Reader
    size: int

    @property
    def count(self) -> int:
        return self.reader.size // self.size

    def read(self, lba: int, length: int) -> bytes | None:
        """``length`` bytes from sector ``lba``; None where the disk ends first or cannot be read.

        An unreadable copy of a table is a damaged copy: the other one may still be good.
        """
        offset = lba * self.size
        if lba < 0 or offset + length > self.reader.size:
            return None
        try:
            return self.reader.read_at(offset, length)
        except (SourceError, IntegrityError):
            return None


def whole_disk(reader: Reader, sector_size: int, findings: Iterable[Finding] = ()) -> VolumeTable:
    """The table of a disk that has none: one volume, number 0."""
    return VolumeTable("none", "", sector_size, (Volume(0, 0, reader.size),), tuple(findings))


def fit(spans: list[Span], sectors: Sectors) -> tuple[tuple[Volume, ...], list[Finding]]:
    """The spans that exist on the disk, as Linux would show them, and what is wrong with the others.

    A span that starts past the end is dropped, one that runs past it is cut, an empty one is
    dropped; overlapping ones all stay, since only the reader of the findings can tell which is true.
    """
    volumes: list[Volume] = []
    findings: list[Finding] = []
    for span in sorted(spans, key=lambda span: span.number):
        finding = _misfit(span, sectors)
        if finding is not None:
            findings.append(finding)
        if finding is None or finding.code == "volume-truncated":
            volumes.append(_volume(span, sectors))
    findings += _overlaps(volumes)
    return tuple(volumes), _bounded(findings)


def _volume(span: Span, sectors: Sectors) -> Volume:
    start = span.first * sectors.size
    length = min(span.count * sectors.size, sectors.reader.size - start)
    return Volume(span.number, start, length, span.type, span.uuid, span.name, span.role, span.bootable)


def _misfit(span: Span, sectors: Sectors) -> Finding | None:
    start, length = span.first * sectors.size, span.count * sectors.size
    disk = sectors.reader.size
    if length <= 0:
        return Finding("warning", "volume-empty", f"p{span.number} has no sectors and is left out")
    if start >= disk:
        message = f"p{span.number} starts at byte {start}, past the end of the disk, and is left out"
        return Finding("warning", "volume-outside", message, offset=start, length=length)
    if start + length > disk:
        message = f"p{span.number} runs {start + length - disk} bytes past the end of the disk and is cut"
        return Finding("warning", "volume-truncated", message, offset=start, length=length)
    return None


def _overlaps(volumes: list[Volume]) -> list[Finding]:
    """One finding for each volume that begins before an earlier one ends."""
    findings: list[Finding] = []
    last: Volume | None = None
    for volume in sorted(volumes, key=lambda volume: (volume.start, volume.number)):
        if last is None or volume.start >= last.start + last.length:
            last = volume
            continue
        end = min(volume.start + volume.length, last.start + last.length)
        message = f"{last.id} and {volume.id} overlap by {end - volume.start} bytes"
        findings.append(
            Finding("warning", "volume-overlap", message, offset=volume.start, length=end - volume.start)
        )
        if volume.start + volume.length > last.start + last.length:
            last = volume
    return findings


def _bounded(findings: list[Finding]) -> list[Finding]:
    if len(findings) <= MAX_FINDINGS:
        return findings
    rest = len(findings) - MAX_FINDINGS
    more = Finding("warning", "more-findings", f"{rest} more partitions of this table do not fit the disk")
    return [*findings[:MAX_FINDINGS], more]
