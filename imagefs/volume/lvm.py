"""LVM2: physical volumes, the metadata they keep, and logical volumes as Readers over them.

Label, headers and checksum as ``lib/format_text/layout.h`` and ``lib/label/label.h`` of LVM2 have them; what segments
mean as its ``lib/*/*.c`` write them. Linear, striped, mirrored and RAID 1 volumes can be read; thin, cached, snapshots
and the rest are refused by name. libvslvm 20260901 was tried first: one striped volume, and it refuses the group.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from imagefs.block.joined import JoinedReader, StripedReader
from imagefs.block.views import SliceReader
from imagefs.errors import BrowseError, ImagefsError
from imagefs.interfaces import Reader
from imagefs.volume.facts import shown
from imagefs.volume.lvmtext import Section, parse

_SECTOR = 512
_MAGIC = b"\x20LVM2\x20x[5A%r0N*>"
_FIRST_CRC = 0xF597A6CF
_MAX_AREAS, _MAX_TEXT, _MAX_SEGMENTS, _MAX_LAYERS, _MAX_LEGS = 16, 16 << 20, 100_000, 3, 10
#: The superblock of dm-raid (``drivers/md/dm-raid.c``): which legs of a mirror can be believed.
_DM_RAID = b"DmRd"
_ALL = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class PhysicalVolume:
    """A label: the volume's ``id`` (without dashes) and its copy of the group's metadata, where it has a sound one."""

    id: str
    reader: Reader
    group: Section | None
    group_name: str

    @property
    def group_id(self) -> str:
        return str(self.group.get("id", "")) if self.group else ""

    @property
    def seqno(self) -> int:
        number = self.group.get("seqno") if self.group else 0
        return number if isinstance(number, int) else 0


@dataclass(frozen=True, slots=True)
class LogicalVolume:
    """``id`` stays when others come and go. ``reader`` is its content; None where it cannot be read, for the reason
    ``refused``."""

    name: str
    id: str
    size: int
    reader: Reader | None
    refused: str = ""


def read_physical(reader: Reader) -> PhysicalVolume | None:
    """The label in one of the first four sectors and the metadata it leads to; None where there is no sound label."""
    for sector in range(4):
        label = reader.read_at(sector * _SECTOR, _SECTOR)
        if (
            label[:8] == b"LABELONE"
            and label[24:32] == b"LVM2 001"
            and _crc(label[20:]) == _number(label, 16, 4)
        ):
            return _labelled(reader, label)
    return None


def _labelled(reader: Reader, label: bytes) -> PhysicalVolume:
    at = _number(label, 20, 4)
    name = label[at : at + 32].decode("ascii", "replace")
    best: tuple[Section | None, str] = (None, "")
    newest = -1
    lists = _areas(label, at + 40)
    for offset, size in lists[1] if len(lists) > 1 else ():
        text = _metadata(reader, offset, size)
        if text is None:
            continue
        found = _group(text)
        if found is not None and found[1].get("seqno", 0) > newest:
            newest = found[1].get("seqno", 0)
            best = found[1], found[0]
    return PhysicalVolume(name, reader, *best)


def _areas(label: bytes, at: int) -> list[list[tuple[int, int]]]:
    """Data areas, then metadata areas: each list of (offset, size) ends with zeros."""
    lists: list[list[tuple[int, int]]] = [[]]
    while at + 16 <= len(label) and len(lists) < 3:
        offset, size = _number(label, at, 8), _number(label, at + 8, 8)
        at += 16
        if offset:
            lists[-1].append((offset, size))
        else:
            lists.append([])
    return [each[:_MAX_AREAS] for each in lists]


def _metadata(reader: Reader, start: int, size: int) -> bytes | None:
    """The text that a metadata area's header points at. It is written round a ring behind that header."""
    head = reader.read_at(start, _SECTOR)
    if len(head) < _SECTOR or head[4:20] != _MAGIC or _crc(head[4:]) != _number(head, 0, 4):
        return None
    offset, length = _number(head, 40, 8), _number(head, 48, 8)
    sum_, flags = _number(head, 56, 4), _number(head, 60, 4)
    if not 0 < length <= min(size, _MAX_TEXT) or not _SECTOR <= offset < size or flags & 1:
        return None
    text = reader.read_at(start + offset, min(length, size - offset))
    text += reader.read_at(start + _SECTOR, length - len(text))
    return text if _crc(text) == sum_ else None


def _group(text: bytes) -> tuple[str, Section] | None:
    """(name, section) of the volume group."""
    try:
        facts = parse(text.rstrip(b"\0").decode("utf-8", "replace"))
    except ValueError:
        return None
    for name, value in facts.items():
        if isinstance(value, dict) and "physical_volumes" in value and isinstance(value.get("seqno"), int):
            return name, value
    return None


def logical_volumes(members: Sequence[PhysicalVolume]) -> Iterator[LogicalVolume]:
    """What a group of physical volumes holds, by the newest metadata; hidden parts of others are left out."""
    newest = max(members, key=lambda member: member.seqno)
    group = _Group(newest.group or {}, {member.id: member.reader for member in reversed(members)})
    for name in group.visible():
        try:
            reader = group.reader(name)
            yield LogicalVolume(name, group.id(name), reader.size, reader)
        except ImagefsError as error:
            yield LogicalVolume(name, group.id(name), group.size(name), None, error.message)


class _Group:
    """A volume group by its metadata, whose words are not trusted to be of the right kind."""

    def __init__(self, facts: Section, disks: Mapping[str, Reader]) -> None:
        self._disks = disks
        self._extent: int = _sure(facts, "extent_size", int) * _SECTOR
        self._physical = _sections(facts, "physical_volumes")
        self._logical = _sections(facts, "logical_volumes")
        self._stores = {
            str(segment.get("cow_store"))
            for volume in self._logical.values()
            for segment in _segments(volume)
            if segment.get("type") == "snapshot"
        }

    def visible(self) -> list[str]:
        """What a user knows by name: a snapshot is its store, not the volume that ties it to its origin."""
        found = []
        for name, each in self._logical.items():
            kinds = {str(segment.get("type")) for segment in _segments(each)}
            shown = "VISIBLE" in _sure(each, "status", list) and not kinds & {
                "snapshot",
                "thin-pool",
                "cache-pool",
            }
            if shown or name in self._stores:
                found.append(name)
        return found

    def id(self, name: str) -> str:
        return shown(self._logical[name].get("id", ""))

    def size(self, name: str) -> int:
        counts = (segment.get("extent_count", 0) for segment in _segments(self._logical[name]))
        return int(sum(count for count in counts if isinstance(count, int)) * self._extent)

    def reader(self, name: str, layer: int = 0) -> Reader:
        """The content of a logical volume. Raises BrowseError."""
        if name in self._stores:
            raise BrowseError(f"{name} is a snapshot of LVM, which cannot be read here")
        volume = self._logical.get(name)
        if volume is None or layer > _MAX_LAYERS:
            raise BrowseError(f"the metadata of LVM does not add up at {shown(name)}")
        parts, at = [], 0
        for segment in sorted(_segments(volume), key=lambda each: _sure(each, "start_extent", int)):
            count = _sure(segment, "extent_count", int)
            if _sure(segment, "start_extent", int) != at or count <= 0:
                raise BrowseError(f"the metadata of LVM leaves a gap in {name}")
            at += count
            parts.append(self._segment(name, segment, count * self._extent, layer))
        if not parts:
            raise BrowseError(f"the metadata of LVM says nothing of where {name} lies")
        return parts[0] if len(parts) == 1 else JoinedReader(parts)

    def _segment(self, name: str, segment: Section, size: int, layer: int) -> Reader:
        kind = str(segment.get("type", "")).partition("+")[0]
        if kind in ("striped", "linear"):
            return self._striped(segment, size)
        if kind == "mirror":
            legs = _sure(segment, "mirrors", list)
            return self._cut(self.reader(str(legs[0]), layer + 1), size)
        if kind == "raid1":
            return self._cut(self._raid1(name, segment, layer), size)
        raise BrowseError(f"{name} is a {shown(kind, 20)} volume of LVM, which cannot be read here")

    def _striped(self, segment: Section, size: int) -> Reader:
        stripes = _sure(segment, "stripes", list)
        pairs = list(zip(stripes[::2], stripes[1::2], strict=False))
        each = size // len(pairs) if pairs else 0
        places = [self._place(str(disk), extent, each) for disk, extent in pairs]
        if len(places) == 1:
            return places[0]
        unit = _sure(segment, "stripe_size", int) * _SECTOR
        if not places or unit <= 0 or each % unit:
            raise BrowseError("the metadata of LVM has stripes that do not add up")
        return StripedReader(places, unit)

    def _place(self, name: str, extent: Any, length: int) -> Reader:
        """``length`` bytes of a physical volume. Raises BrowseError for one that is not on this disk."""
        facts = self._physical.get(name)
        if facts is None or not isinstance(extent, int) or extent < 0:
            raise BrowseError(f"the metadata of LVM does not add up at {shown(name)}")
        disk = self._disks.get(str(facts.get("id", "")).replace("-", ""))
        if disk is None:
            where = shown(facts.get("device", ""))
            raise BrowseError(
                f"a part of it lies on another disk of its volume group ({shown(name)}, once {where})"
            )
        start = _sure(facts, "pe_start", int) * _SECTOR + extent * self._extent
        return self._cut(disk, length, start)

    @staticmethod
    def _cut(reader: Reader, length: int, start: int = 0) -> Reader:
        if start < 0 or start + length > reader.size:
            raise BrowseError("a part of it lies past the end of its physical volume")
        return SliceReader(reader, start, length)

    def _raid1(self, name: str, segment: Section, layer: int) -> Reader:
        """The leg that has been written to last and that none calls failed."""
        words = [str(each) for each in _sure(segment, "raids", list)[: 2 * _MAX_LEGS]]
        best: tuple[int, Reader] | None = None
        failed = 0
        for number, (meta, leg) in enumerate(zip(words[::2], words[1::2], strict=False)):
            try:
                block = self.reader(meta, layer + 1).read_at(0, 64)
                reader = self.reader(leg, layer + 1)
            except BrowseError:
                continue
            if block[:4] != _DM_RAID or _number(block, 32, 8) != _ALL or _number(block, 12, 4) != number:
                continue  # not in step with the others
            if best is None or _number(block, 16, 8) > best[0]:
                best, failed = (_number(block, 16, 8), reader), _number(block, 24, 8)
                if failed >> number & 1:
                    best = None
        if best is None:
            raise BrowseError(f"no leg of the mirror {name} is known to be whole")
        return best[1]


def _segments(volume: Section) -> list[Section]:
    found = [each for key, each in volume.items() if key.startswith("segment") and isinstance(each, dict)]
    if len(found) > _MAX_SEGMENTS:
        raise BrowseError("the metadata of LVM has more segments than can be")
    return found


def _sections(facts: Section, name: str) -> dict[str, Section]:
    found = facts.get(name, {})
    return (
        {key: each for key, each in found.items() if isinstance(each, dict)}
        if isinstance(found, dict)
        else {}
    )


def _sure(facts: Section, name: str, kind: type) -> Any:
    value = facts.get(name)
    if not isinstance(value, kind):
        raise BrowseError(f"the metadata of LVM lacks {name}")
    return value


def _crc(data: bytes) -> int:
    return zlib.crc32(data, _FIRST_CRC ^ 0xFFFF_FFFF) ^ 0xFFFF_FFFF


def _number(data: bytes, offset: int, length: int) -> int:
    return int.from_bytes(data[offset : offset + length], "little")
