"""Directory records of ISO 9660, with what Rock Ridge keeps behind them. Bytes in, values out.

Sources: ECMA-119 9.1, SUSP 1.12 and RRIP 1.12. Of numbers told in both orders the little-endian one is read.
"""

from __future__ import annotations

import struct
from calendar import timegm
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

_HEAD = struct.Struct("<BxI4xI4x7sB2x4xB")
IS_DIRECTORY, IS_ASSOCIATED, HAS_MORE = 0x02, 0x04, 0x80
_MAX_CONTINUED = 32
_MAX_NAME, _MAX_LINK = 1024, 65536
_SECOND = 1_000_000_000
_ROOT_PART, _UP, _HERE, _CONTINUES = 8, 4, 2, 1


@dataclass(slots=True)
class RockRidge:
    """``mode`` with type bits, None where there is none; ``child`` is the block of a directory that was moved
    elsewhere, ``moved`` marks it at its new place; ``packed`` says what kind of compression."""

    name: bytes = b""
    mode: int | None = None
    nlink: int = 1
    uid: int = 0
    gid: int = 0
    rdev: tuple[int, int] | None = None
    link: bytes | None = None
    times: dict[int, int | None] = field(default_factory=dict)
    child: int | None = None
    moved: bool = False
    packed: str = ""


@dataclass(frozen=True, slots=True)
class Record:
    """One directory record: its content is ``size`` bytes from ``block``; ``extra`` is what lies behind it."""

    length: int
    block: int
    size: int
    time_ns: int | None
    flags: int
    name: bytes
    extra: bytes


def decode(raw: bytes) -> Record | None:
    """The record at the start of ``raw``; None where there is none that makes sense."""
    if len(raw) < 34 or raw[0] < 34 or raw[0] > len(raw):
        return None
    length, block, size, time, flags, name_length = _HEAD.unpack_from(raw)
    end = 33 + name_length
    if not name_length or end > length:
        return None
    return Record(length, block, size, _short_time(time), flags, raw[33:end], raw[end + end % 2 : length])


def rock_ridge(record: Record, skip: int, more: Callable[[int, int, int], bytes]) -> RockRidge:
    """What Rock Ridge says of a record; ``more(block, offset, length)`` reads where it goes on."""
    found = RockRidge()
    link = _Link()
    for kind, body in _entries(record.extra[skip:], more):
        if kind == b"NM" and body and not body[0] & (_HERE | _UP):
            found.name = (found.name + body[1:])[:_MAX_NAME]
        elif kind == b"PX" and len(body) >= 32:
            found.mode, found.nlink, found.uid, found.gid = struct.unpack_from("<I4xI4xI4xI", body)
        elif kind == b"PN" and len(body) >= 16:
            found.rdev = _device(*struct.unpack_from("<I4xI", body))
        elif kind == b"SL" and body:
            link.add(body[1:])
            found.link = link.target()
        elif kind == b"TF" and body:
            found.times |= _times(body)
        elif kind == b"CL" and len(body) >= 8:
            found.child = struct.unpack_from("<I", body)[0]
        elif kind == b"RE":
            found.moved = True
        elif kind == b"ZF":
            found.packed = "compressed (zisofs)"
        elif kind == b"SF":
            found.packed = "kept sparsely (Rock Ridge SF)"
    return found


def _entries(area: bytes, more: Callable[[int, int, int], bytes]) -> Iterator[tuple[bytes, bytes]]:
    for _ in range(_MAX_CONTINUED):
        at, following = 0, None
        while at + 4 <= len(area):
            kind, length = area[at : at + 2], area[at + 2]
            if length < 4 or at + length > len(area) or kind == b"ST":
                break
            body = area[at + 4 : at + length]
            if kind == b"CE" and len(body) >= 24:
                following = struct.unpack_from("<I4xI4xI", body)
            else:
                yield kind, body
            at += length
        if following is None:
            return
        area = more(*following)


class _Link:
    """The target of a symlink, put together from its parts."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._open = False

    def add(self, body: bytes) -> None:
        at = 0
        while at + 2 <= len(body) and sum(map(len, self._parts)) < _MAX_LINK:
            flags, length = body[at], body[at + 1]
            part = body[at + 2 : at + 2 + length]
            part = b".." if flags & _UP else b"." if flags & _HERE else b"" if flags & _ROOT_PART else part
            if self._open:
                self._parts[-1] += part
            else:
                self._parts.append(part)
            self._open = bool(flags & _CONTINUES)
            at += 2 + length

    def target(self) -> bytes:
        return b"/" if self._parts == [b""] else b"/".join(self._parts)


def _device(high: int, low: int) -> tuple[int, int]:
    """RRIP has two halves of 32 bits; where the upper one is empty the lower one is Linux's old or new number."""
    if high:
        return high, low
    return (low >> 8) & 0xFFF, (low & 0xFF) | ((low >> 12) & 0xFFF00)


def _times(body: bytes) -> dict[int, int | None]:
    """By the bit of each: 0 creation, 1 modification, 2 access, 3 attributes."""
    flags, at, out = body[0], 1, {}
    size = 17 if flags & 0x80 else 7
    for bit in range(7):
        if flags >> bit & 1 and at + size <= len(body):
            raw = body[at : at + size]
            out[bit] = _long_time(raw) if size == 17 else _short_time(raw)
            at += size
    return out


def _short_time(raw: bytes) -> int | None:
    year, month, day, hour, minute, second = raw[:6]
    return _ns(1900 + year, month, day, hour, minute, second, 0, raw[6])


def _long_time(raw: bytes) -> int | None:
    if not raw[:16].isdigit():
        return None
    year, month, day = int(raw[:4]), int(raw[4:6]), int(raw[6:8])
    hour, minute, second, hundredths = (int(raw[at : at + 2]) for at in range(8, 16, 2))
    return _ns(year, month, day, hour, minute, second, hundredths, raw[16])


def _ns(
    year: int, month: int, day: int, hour: int, minute: int, second: int, hundredths: int, zone: int
) -> int | None:
    """``zone`` is a signed number of quarters of an hour east of Greenwich."""
    if not (1 <= month <= 12 and 1 <= day <= 31 and hour < 24 and minute < 60 and second < 60 and year):
        return None
    quarters = zone - 256 if zone > 127 else zone
    seconds = timegm((year, month, day, hour, minute, second, 0, 0, 0)) - quarters * 900
    return seconds * _SECOND + hundredths * 10_000_000
