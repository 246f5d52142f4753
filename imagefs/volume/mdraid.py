"""Linux software RAID: the superblocks of its members, and which members of a mirror can be believed.

Versions 0.90 (``struct mdp_superblock_s``) and 1.0, 1.1, 1.2 (``struct mdp_superblock_1``) of the kernel's
``include/uapi/linux/raid/md_p.h``, with their checksums (``calc_sb_csum`` and ``calc_sb_1_csum`` of
``drivers/md/md.c``). Sizes and offsets there are in sectors of 512 bytes, in 0.90 in KiB; here in bytes.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from imagefs.volume.facts import Window, text

MAGIC_1 = b"\xfc\x4e\x2b\xa9"
_MAGIC_0 = 0xA92B4EFC
_SECTOR = 512
#: What ``level`` says, in words.
LEVELS = {
    -4: "multipath",
    -1: "linear",
    0: "RAID 0",
    1: "RAID 1",
    4: "RAID 4",
    5: "RAID 5",
    6: "RAID 6",
    10: "RAID 10",
}
#: Bits of ``feature_map``.
_RECOVERING, _RESHAPING, _BAD_BLOCKS, _CLUSTERED = 2, 4, 8, 256
_SPARE = 0xFFFF
#: ``max_dev`` of a superblock that fits into its 4 KiB.
_MAX_ROLES = 1920
_BAD_BLOCK_BYTES = 128 << 10


@dataclass(frozen=True, slots=True)
class Member:
    """One superblock. ``start`` and ``size`` are the bytes of the member that hold the array's; ``role`` is its
    place in the array, None for a spare or a failed one; ``whole`` tells that it holds all of the array's data."""

    version: str
    array: str
    name: str
    level: int
    members: int
    role: int | None
    events: int
    start: int
    size: int
    whole: bool
    reshaping: bool = False
    bad: tuple[tuple[int, int], ...] = ()

    @property
    def level_text(self) -> str:
        return LEVELS.get(self.level, f"RAID level {self.level}")


def read_member(window: Window) -> Member | None:
    """The superblock of a member; None where there is none whose checksum holds."""
    last = ((window.size // _SECTOR - 16) & ~7) * _SECTOR
    for offset, version in ((0, "1.1"), (4096, "1.2"), (last, "1.0")):
        found = _version_1(window, offset, version)
        if found is not None:
            return found
    return read_old_member(window)


def freshest(members: Sequence[Member]) -> Member | None:
    """The member of a mirror to read from: of those that hold everything, the one with most events."""
    able = [member for member in members if member.whole]
    return max(able, key=lambda member: (member.events, -(member.role or 0)), default=None)


def is_stale(member: Member, best: Member) -> bool:
    """Whether the array went on without this member; md lets a clean one be a single event behind."""
    return not member.whole or member.events + 1 < best.events


# -- version 1 ------------------------------------------------------------------------------------


def _version_1(window: Window, offset: int, version: str) -> Member | None:
    block = window.at(offset, 4096)
    if block[:8] != MAGIC_1 + b"\1\0\0\0" or _number(block, 144, 8) * _SECTOR != offset:
        return None
    count = _number(block, 220, 4)
    if count > _MAX_ROLES or _number(block, 216, 4) != _sum_1(block, count):
        return None
    features, number = _number(block, 8, 4), _number(block, 160, 4)
    role = _number(block, 256 + 2 * number, 2) if number < count else _SPARE
    members = _number(block, 92, 4)
    start, held = _number(block, 128, 8) * _SECTOR, _number(block, 136, 8) * _SECTOR
    size = min(_number(block, 80, 8) * _SECTOR, held, max(0, window.size - start))
    return Member(
        version,
        str(uuid.UUID(bytes=block[16:32])),
        text(block[32:64]),
        int.from_bytes(block[72:76], "little", signed=True),
        members,
        role if role < members else None,
        _number(block, 200, 8),
        start,
        size,
        whole=role < members and not features & _RECOVERING,
        reshaping=bool(features & _RESHAPING),
        bad=tuple(_bad_blocks(window, block, offset, start, size)) if features & _BAD_BLOCKS else (),
    )


def _sum_1(block: bytes, count: int) -> int:
    raw = block[: 256 + 2 * count]
    total = sum(struct.unpack_from(f"<{len(raw) // 4}I", raw)) - _number(raw, 216, 4)
    if len(raw) % 4:
        total += _number(raw, len(raw) - 2, 2)
    return _folded(total)


def _bad_blocks(
    window: Window, block: bytes, offset: int, start: int, size: int
) -> Iterator[tuple[int, int]]:
    """(first, end) in bytes of the array of what this member is known not to hold: a table of one word for each
    run, 54 bits of sector on the member and 10 of length, up to the first word of ones."""
    shift, sectors = block[184 + 1], _number(block, 186, 2)
    where = offset + int.from_bytes(block[188:192], "little", signed=True) * _SECTOR
    table = window.at(where, min(sectors * _SECTOR, _BAD_BLOCK_BYTES)) if shift < 16 else b""
    ranges = []
    for (word,) in struct.iter_unpack("<Q", table):
        if word == 0xFFFF_FFFF_FFFF_FFFF:
            break
        first = ((word >> 10) << shift) * _SECTOR - start
        end = first + ((word & 0x3FF) << shift) * _SECTOR
        if max(first, 0) < min(end, size):
            ranges.append((max(first, 0), min(end, size)))
    at = 0
    for first, end in sorted(ranges):
        if end > max(first, at):
            yield max(first, at), end
            at = end


# -- version 0.90 ---------------------------------------------------------------------------------


def read_old_member(window: Window) -> Member | None:
    """A superblock 0.90: in the last 64 KiB that begin at a multiple of them, in its machine's order of bytes."""
    offset = (window.size & ~0xFFFF) - 0x10000
    block = window.at(offset, 4096) if offset >= 0 else b""
    for order in ("<", ">"):
        words = struct.unpack(f"{order}1024I", block) if block else ()
        if words and words[0] == _MAGIC_0 and words[1] == 0 and words[38] == _folded(sum(words) - words[38]):
            return _member_0(words, order, offset)
    return None


def _member_0(words: tuple[int, ...], order: str, room: int) -> Member:
    low, high = (39, 40) if order == "<" else (40, 39)
    number, state = words[992 + 3], words[992 + 4]
    able = state & 0b1111 == 0b0110 and number < words[10]  # active and in sync, neither faulty nor removed
    array = uuid.UUID(bytes=struct.pack(">4I", words[5], *words[13:16]))
    level = words[7] - (1 << 32) if words[7] >> 31 else words[7]
    return Member(
        "0.90",
        str(array),
        "",
        level,
        words[10],
        number if able else None,
        words[high] << 32 | words[low],
        0,
        min(words[8] * 1024, room),
        whole=able,
        reshaping=words[2] > 90 and words[44] | words[45] not in (0, 0xFFFF_FFFF),
    )


def _folded(total: int) -> int:
    return (total & 0xFFFF_FFFF) + (total >> 32) & 0xFFFF_FFFF


def _number(block: bytes, offset: int, length: int) -> int:
    return int.from_bytes(block[offset : offset + length], "little")
