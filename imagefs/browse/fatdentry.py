"""Directory entries of FAT and exFAT as they lie on the disk, for what TSK does not hand on right.

TSK converts FAT times through the time zone of the process, ignores the UTC offset of exFAT, swaps
its read-only and hidden bits, and reads past exFAT's valid data length, where stale bytes lie.
FAT knows no time zone, and exFAT may have none: such times are those of the clock on the wall where they
were written, and are read as times of the zone we are told. Layouts: the FAT and exFAT specifications.
"""

from __future__ import annotations

import calendar
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo

from imagefs.browse.names import could_be_short, fold
from imagefs.interfaces import Entry, Reader

#: TSK numbers the 32-byte slots of the data area from 3.
FIRST_INODE = 3
SLOT = 32
READ_ONLY = 0x01
#: The flag of an entry whose times were told without a zone.
LOCAL_TIMES = "local-times"
#: exFAT: the bit of an entry's type that a deleted one lacks.
_IN_USE = 0x80


@dataclass(frozen=True, slots=True)
class Dentry:
    """``is_local`` where the times were told without a zone; ``valid_length`` is exFAT's valid data length,
    None where there is none. ``is_contiguous``: exFAT says that the clusters follow one another from
    ``first_cluster`` on."""

    attributes: int = 0
    mtime_ns: int | None = None
    atime_ns: int | None = None
    crtime_ns: int | None = None
    is_local: bool = False
    short_name: bytes = b""
    valid_length: int | None = None
    first_cluster: int = 0
    is_contiguous: bool = False


class Dentries:
    """Finds the directory entry that a TSK address of a FAT or exFAT file system stands for."""

    def __init__(self, reader: Reader, *, exfat: bool, zone: tzinfo = UTC) -> None:
        self._zone = zone
        self._reader = reader
        self._exfat = exfat
        self._start = _data_start(reader.read_at(0, 512), exfat=exfat)

    def by_short_name(self, entries: Iterable[Entry], name: bytes) -> Entry | None:
        """The one of ``entries`` whose short name is ``name``, without case."""
        if self._exfat or not could_be_short(name):
            return None
        key = fold(name)
        return next((each for each in entries if fold(self.get(int(each.inode)).short_name) == key), None)

    @property
    def start(self) -> int:
        """Where the first slot lies; 0 where that makes no sense."""
        return self._start

    def get(self, inode: int) -> Dentry:
        """The entry of ``inode``, deleted or not; an empty one for the root and for what is not there."""
        if inode < FIRST_INODE or not self._start:
            return Dentry()
        raw = self._reader.read_at(self._start + (inode - FIRST_INODE) * SLOT, 2 * SLOT)
        if len(raw) < SLOT:
            return Dentry()
        return _decode_exfat(raw, self._zone) if self._exfat else _decode_fat(raw, self._zone)


def _data_start(boot: bytes, *, exfat: bool) -> int:
    """Byte offset of the first slot: exFAT's cluster heap; the root directory of FAT12/16."""
    if len(boot) < 512:
        return 0
    if exfat:
        shift = boot[108]
        return int(struct.unpack_from("<I", boot, 88)[0] << shift) if 9 <= shift <= 12 else 0
    sector, _, reserved, fats = struct.unpack_from("<HBHB", boot, 11)
    per_fat = struct.unpack_from("<H", boot, 22)[0] or struct.unpack_from("<I", boot, 36)[0]
    return int((reserved + fats * per_fat) * sector)


def _decode_fat(raw: bytes, zone: tzinfo) -> Dentry:
    attributes, tenths, c_time, c_date, a_date = struct.unpack_from("<B1xBHHH", raw, 11)
    high, m_time, m_date, low = struct.unpack_from("<4H", raw, 20)
    return Dentry(
        attributes,
        mtime_ns=_in_zone(_dos_ns(m_date, m_time, 0), zone),
        atime_ns=_in_zone(_dos_ns(a_date, 0, 0), zone),
        crtime_ns=_in_zone(_dos_ns(c_date, c_time, tenths), zone),
        is_local=True,
        short_name=_short_name(raw),
        first_cluster=high << 16 | low,
    )


def _short_name(raw: bytes) -> bytes:
    """The name of eight and three characters, in the code page that DOS had in most places."""
    base, suffix = (
        part.decode("cp437").rstrip(" ") for part in (raw[:8].replace(b"\5", b"\xe5", 1), raw[8:11])
    )
    return f"{base}.{suffix}".rstrip(".").encode()


def _decode_exfat(raw: bytes, zone: tzinfo) -> Dentry:
    if raw[0] & ~_IN_USE != 0x05:
        return Dentry()
    c_time, c_date, m_time, m_date, a_time, a_date = struct.unpack_from("<6H", raw, 8)
    c_tenths, m_tenths, c_zone, m_zone, a_zone = raw[20:25]
    stream = raw[SLOT:]
    # A set that goes on in another cluster: the stream entry is elsewhere and stays unknown.
    known = len(stream) == SLOT and stream[0] & ~_IN_USE == 0x40
    valid = struct.unpack_from("<Q", stream, 8)[0] if known else None
    return Dentry(
        raw[4],
        mtime_ns=_zoned(_dos_ns(m_date, m_time, m_tenths), m_zone, zone),
        atime_ns=_zoned(_dos_ns(a_date, a_time, 0), a_zone, zone),
        crtime_ns=_zoned(_dos_ns(c_date, c_time, c_tenths), c_zone, zone),
        is_local=not m_zone & a_zone & c_zone & 0x80,
        valid_length=valid,
        first_cluster=struct.unpack_from("<I", stream, 20)[0] if known else 0,
        is_contiguous=known and bool(stream[1] & 2),
    )


def _dos_ns(date: int, time: int, tenths: int) -> int | None:
    """A DOS date and time, ``tenths`` in 10 ms steps; None when it is no date."""
    year, month, day = 1980 + (date >> 9), (date >> 5) & 15, date & 31
    hour, minute, second = time >> 11, (time >> 5) & 63, (time & 31) * 2
    if not (1 <= month <= 12 and 1 <= day <= calendar.monthrange(year, month)[1]):
        return None
    if hour > 23 or minute > 59 or second > 59 or tenths > 199:
        return None
    seconds = calendar.timegm((year, month, day, hour, minute, second, 0, 0, 0))
    return seconds * 1_000_000_000 + tenths * 10_000_000


def _in_zone(local_ns: int | None, zone: tzinfo) -> int | None:
    """The time at which clocks of ``zone`` showed ``local_ns``; the first one where they did so twice."""
    if local_ns is None or zone is UTC:
        return local_ns
    shown = datetime.fromtimestamp(local_ns // 1_000_000_000, UTC).replace(tzinfo=zone)
    offset = shown.utcoffset() or timedelta()
    return local_ns - round(offset.total_seconds()) * 1_000_000_000


def _zoned(local_ns: int | None, told: int, zone: tzinfo = UTC) -> int | None:
    """Local time to UTC: bit 7 says that the rest, signed, is the offset in quarters of an hour."""
    if local_ns is None or not told & 0x80:
        return _in_zone(local_ns, zone)
    quarters = told & 0x7F
    if quarters >= 64:
        quarters -= 128
    return local_ns - quarters * 900 * 1_000_000_000
