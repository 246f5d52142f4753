"""Decides what partition table a disk has, and in which sector size it counts.

The rules, in this order; where they leave the Linux kernel's, the reason stands beside them.

1. Sector 0 has a protective row (type 0xee): GPT, by the primary copy or else the backup, in the
   sector size of the caller or else in the other one. (The kernel wants the row to begin at sector 1;
   tools do not care, nor do we where there is a header.) If neither copy is good, the other rows of
   a hybrid MBR, or no table at all, with an error.
2. Sector 0 is the boot sector of a FAT, NTFS or exFAT file system: no table. Exception: rows that
   are beyond doubt (``mbr.convincing``): a stick that was one large file system before somebody
   partitioned it keeps the old boot sector, and the kernel shows the partitions.
3. Rows with sane boot flags: MBR. A hybrid ISO is an MBR disk, too, as on Linux: its first
   partition often starts at sector 0 and holds the whole disc, so that nothing is out of reach.
4. No rows, but a flawless primary GPT, and no file system on the whole disk: GPT, although the
   kernel would show nothing, because somebody has lost sector 0. A backup alone does not count
   here: it may be left over from an earlier life of the disk.
5. A signature and no rows, and no file system on the whole disk: an MBR without partitions.
6. Else no table: volume 0 is the whole disk.
"""

from __future__ import annotations

from imagefs.block.views import SliceReader
from imagefs.errors import IntegrityError, SourceError
from imagefs.interfaces import Finding, Reader
from imagefs.volume import gpt, mbr
from imagefs.volume.gpt import Gpt, GptCopy
from imagefs.volume.layout import Sectors, VolumeTable, fit, whole_disk
from imagefs.volume.mbr import MbrEntry
from imagefs.volume.probe import probe
from imagefs.volume.signatures.fat import parse_boot
from imagefs.volume.signatures.windows import is_exfat, is_ntfs

_SECTOR_SIZES = (512, 4096)
#: The kind of what cannot be read: something may well be there.
_UNREADABLE = "unreadable"


def read_table(reader: Reader, *, sector_size: int = 512) -> VolumeTable:
    """The partition table of the disk in ``reader``.

    ``sector_size`` is the device's, or 512 where nobody knows; the table says what it counts in.
    Bad content never raises: it becomes findings. Of the Reader's errors only one on sector 0
    comes through; elsewhere what cannot be read counts as damaged.
    """
    if sector_size < 512 or sector_size & (sector_size - 1):
        raise ValueError(f"sector size {sector_size}: not a power of two from 512 up")
    boot = reader.read_at(0, 512)
    if len(boot) < 512:
        return whole_disk(reader, sector_size)
    if mbr.has_signature(boot) and _is_protective(reader, boot, sector_size):
        return _protected_disk(reader, boot, sector_size)
    if mbr.has_signature(boot) and mbr.entries(boot) and mbr.flags_valid(boot):
        return _disk_with_rows(reader, boot, sector_size)
    return _disk_without_rows(reader, boot, sector_size)


def _is_protective(reader: Reader, boot: bytes, sector_size: int) -> bool:
    """Whether a row covers the disk from sector 1; one from elsewhere only if a GPT header is there."""
    rows = [row for row in mbr.entries(boot) if row.type == mbr.PROTECTIVE]
    return any(row.first == 1 for row in rows) or (bool(rows) and _has_gpt_header(reader, sector_size))


def _has_gpt_header(reader: Reader, sector_size: int) -> bool:
    return any(gpt.has_header(Sectors(reader, size)) for size in _sizes(sector_size))


def _is_file_system(boot: bytes) -> bool:
    return is_ntfs(boot) or is_exfat(boot) or parse_boot(boot) is not None


def _sizes(given: int) -> tuple[int, ...]:
    """The sector sizes to try, the caller's first."""
    return tuple(dict.fromkeys((given, *_SECTOR_SIZES)))


# -- GPT ------------------------------------------------------------------------------------------


def _protected_disk(reader: Reader, boot: bytes, sector_size: int) -> VolumeTable:
    table, sectors = _find_gpt(reader, sector_size)
    others = [row for row in mbr.entries(boot) if row.type != mbr.PROTECTIVE]
    if table is not None:
        hybrid = [_note("mbr-hybrid", "the MBR states partitions of its own; those of the GPT count")]
        return _gpt_disk(table, sectors, sector_size, hybrid if others else [])
    primary, backup = _copies(Sectors(reader, sector_size))
    message = f"the disk has a GPT, but neither copy is sound: its primary header {primary.problem}"
    message += f", its backup header (sector {backup.lba}) {backup.problem}"
    lost = Finding("error", "gpt-damaged", message, offset=sector_size)
    if others and mbr.flags_valid(boot):
        return _mbr_disk(boot, Sectors(reader, sector_size), [lost])
    return whole_disk(reader, sector_size, [lost])


def _copies(sectors: Sectors) -> tuple[GptCopy, GptCopy]:
    primary = gpt.read_copy(sectors, 1)
    return primary, gpt.read_backup(sectors, primary)


def _find_gpt(reader: Reader, given: int) -> tuple[Gpt | None, Sectors]:
    """A sound GPT and the sectors it counts in: any size's primary before any size's backup."""
    disks = [Sectors(reader, size) for size in _sizes(given)]
    disks.sort(key=lambda sectors: bool(gpt.read_copy(sectors, 1).problem))
    for sectors in disks:
        table = gpt.believe(sectors, *_copies(sectors))
        if table is not None:
            return table, sectors
    return None, Sectors(reader, given)


def _gpt_disk(table: Gpt, sectors: Sectors, given: int, findings: list[Finding]) -> VolumeTable:
    volumes, misfits = fit(table.spans, sectors)
    said = [*findings, *_other_size(sectors.size, given), *table.findings, *misfits]
    return VolumeTable("gpt", table.header.disk_guid, sectors.size, volumes, tuple(said))


# -- MBR ------------------------------------------------------------------------------------------


def _disk_with_rows(reader: Reader, boot: bytes, sector_size: int) -> VolumeTable:
    sectors = Sectors(reader, _counted_in(reader, boot, sector_size))
    findings = _other_size(sectors.size, sector_size)
    if _is_file_system(boot):
        if not mbr.convincing(mbr.entries(boot), sectors):
            return whole_disk(reader, sector_size)
        message = "sector 0 is the boot sector of a file system as well; its partitions count"
        findings.append(Finding("warning", "mbr-boot-sector", message, offset=0))
    if _has_gpt_header(reader, sector_size):
        message = "there is a GPT header, but no protective MBR row: as on Linux the MBR counts"
        findings.append(_note("gpt-ignored", message))
    return _mbr_disk(boot, sectors, findings)


def _mbr_disk(boot: bytes, sectors: Sectors, findings: list[Finding]) -> VolumeTable:
    spans, broken = mbr.spans(boot, sectors)
    volumes, misfits = fit(spans, sectors)
    if any(volume.start == 0 for volume in volumes) and _kind(sectors.reader) in ("iso9660", "udf"):
        misfits = [finding for finding in misfits if finding.code != "volume-overlap"]
        misfits.append(_note("hybrid-disc", "a disc image that is a partitioned disk as well"))
    return VolumeTable("mbr", mbr.disk_id(boot), sectors.size, volumes, (*findings, *broken, *misfits))


def _counted_in(reader: Reader, boot: bytes, given: int) -> int:
    """The sector size of an MBR, which does not say: another than ``given`` only on evidence.

    Namely when nothing is where the table points in the given size, and in the other one every row
    fits the disk and something is there. So for raw files of 4Kn disks, and for disks that were
    partitioned behind a USB bridge with sectors of its own.
    """
    rows = mbr.entries(boot)
    if any(_holds_something(row, Sectors(reader, given)) for row in rows):
        return given
    for size in _sizes(given)[1:]:
        sectors = Sectors(reader, size)
        fits = all(row.first + row.count <= sectors.count for row in rows)
        if fits and any(_holds_something(row, sectors) for row in rows):
            return size
    return given


def _holds_something(row: MbrEntry, sectors: Sectors) -> bool:
    """Whether the row points at a table of logical partitions, or at a file system we know."""
    sector = sectors.read(row.first, 512)
    if sector is None or row.first == 0:
        return False
    if row.extended:
        return mbr.has_signature(sector) and mbr.flags_valid(sector)
    part = SliceReader(sectors.reader, row.first * sectors.size, row.count * sectors.size)
    return _kind(part) not in ("", _UNREADABLE)


def _kind(reader: Reader) -> str:
    try:
        return probe(reader).kind
    except (SourceError, IntegrityError):
        return _UNREADABLE


# -- neither --------------------------------------------------------------------------------------


def _disk_without_rows(reader: Reader, boot: bytes, sector_size: int) -> VolumeTable:
    if _is_file_system(boot) or _kind(reader):
        return whole_disk(reader, sector_size)
    for sectors in (Sectors(reader, size) for size in _sizes(sector_size)):
        primary, backup = _copies(sectors)
        table = gpt.believe(sectors, primary, backup)
        if table is not None and not primary.problem:
            message = "sector 0 has no protective MBR row; other systems see no partitions here"
            bare = Finding("warning", "gpt-unprotected", message, offset=0)
            return _gpt_disk(table, sectors, sector_size, [bare])
    if mbr.has_signature(boot) and not mbr.entries(boot):
        return VolumeTable("mbr", mbr.disk_id(boot), sector_size, ())
    return whole_disk(reader, sector_size)


def _other_size(found: int, given: int) -> list[Finding]:
    if found == given:
        return []
    return [_note("sector-size", f"the partition table counts in sectors of {found} bytes, not {given}")]


def _note(code: str, message: str) -> Finding:
    return Finding("note", code, message)
