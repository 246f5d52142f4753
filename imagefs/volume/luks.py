"""LUKS headers, versions 1 and 2: what they say, bounded and checked; no key is tried here.

Sources: "LUKS On-Disk Format Specification" 1.2.3 and "LUKS2 On-Disk Format Specification" 1.1 of the cryptsetup
project. A header says where keyslots lie and how a key is made from a secret; ``luksunlock.py`` does it.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from imagefs.errors import BrowseError
from imagefs.interfaces import Reader
from imagefs.volume.facts import shown

MAGIC, _SECOND = b"LUKS\xba\xbe", b"SKUL\xba\xbe"
_ACTIVE = 0x00AC71F3
_SLOTS_1 = 8
#: Where the second header of version 2 may lie, and so how long the first may be.
_SIZES = tuple(1 << bits for bits in range(14, 23))
_MAX_KEY, _MAX_STRIPES, _MAX_SALT, _MAX_SLOTS = 512, 1 << 16, 1024, 32
_MAX_MATERIAL = 16 << 20
#: Kilobytes and rounds of Argon2 that cryptsetup itself stays below; rounds of PBKDF2 fit into 32 bits.
_MAX_MEMORY, _MAX_TIME, _MAX_LANES = 4 << 20, 1 << 16, 64


@dataclass(frozen=True, slots=True)
class Kdf:
    """How a secret becomes a key: ``pbkdf2`` has ``digest`` and ``rounds``; argon2i and argon2id have ``rounds``,
    ``memory`` in KiB and ``lanes``."""

    kind: str
    salt: bytes
    rounds: int
    digest: str = ""
    memory: int = 0
    lanes: int = 0


@dataclass(frozen=True, slots=True)
class Slot:
    """A keyslot: ``key_size`` bytes of the volume's key, spread over ``stripes`` and encrypted at ``offset``."""

    number: str
    kdf: Kdf
    cipher: str
    area_key_size: int
    offset: int
    key_size: int
    stripes: int
    digest: str


@dataclass(frozen=True, slots=True)
class Check:
    """What tells the right key: PBKDF2 of it is ``value``. ``slots`` are those whose key it is."""

    salt: bytes
    rounds: int
    digest: str
    value: bytes
    slots: frozenset[str]


@dataclass(frozen=True, slots=True)
class LuksHeader:
    """The encrypted bytes are ``size`` (None: all that follow) from ``start``; the first sector has the number
    ``sector`` in units of 512 bytes. ``refused`` says why they cannot be decrypted, empty when they can."""

    version: int
    uuid: str
    label: str
    cipher: str
    start: int
    size: int | None
    sector: int
    sector_size: int
    slots: tuple[Slot, ...]
    checks: tuple[Check, ...]
    refused: str = ""


def read_header(reader: Reader) -> LuksHeader:
    """The header on ``reader``. Raises BrowseError for one that is damaged or makes no sense."""
    head = reader.read_at(0, 4096)
    if head[:6] == MAGIC and head[6:8] == b"\0\1":
        return _version_1(head)
    return _version_2(reader)


def _damaged(why: str) -> BrowseError:
    return BrowseError(
        f"its LUKS header is damaged: {why}", hint="restore it with cryptsetup luksHeaderRestore"
    )


# -- version 1 ------------------------------------------------------------------------------------


def _version_1(head: bytes) -> LuksHeader:
    if len(head) < 592:
        raise _damaged("it is cut short")
    cipher = f"{_text(head[8:40])}-{_text(head[40:72])}"
    digest, key_size = _text(head[72:104]), _big(head, 108)
    if not 0 < key_size <= _MAX_KEY:
        raise _damaged(f"a key of {key_size} bytes")
    slots = []
    for number in range(_SLOTS_1):
        at = 208 + 48 * number
        stripes = _big(head, at + 44)
        if _big(head, at) != _ACTIVE or not 0 < stripes <= _MAX_STRIPES or key_size * stripes > _MAX_MATERIAL:
            continue
        kdf = Kdf("pbkdf2", head[at + 8 : at + 40], _big(head, at + 4), digest)
        offset = _big(head, at + 40) * 512
        slots.append(Slot(str(number), kdf, cipher, key_size, offset, key_size, stripes, digest))
    numbers = frozenset(slot.number for slot in slots)
    check = Check(head[132:164], _big(head, 164), digest, head[112:132], numbers)
    start = _big(head, 104) * 512
    return LuksHeader(1, _text(head[168:208]), "", cipher, start, None, 0, 512, tuple(slots), (check,))


# -- version 2 ------------------------------------------------------------------------------------


def _version_2(reader: Reader) -> LuksHeader:
    """Of the two copies the one with the higher number whose checksum holds."""
    places = [(0, MAGIC), *((size, _SECOND) for size in _SIZES)]
    found = [each for offset, magic in places if (each := _copy(reader, offset, magic)) is not None]
    if not found:
        raise _damaged("neither of its two copies has the checksum it states")
    head, area = max(found, key=lambda each: int.from_bytes(each[0][16:24], "big"))
    try:
        facts = json.loads(area.split(b"\0", 1)[0])
        return _described(head, facts)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(
            f"its JSON makes no sense ({error.__class__.__name__}: {shown(error, 100)})"
        ) from error


def _copy(reader: Reader, offset: int, magic: bytes) -> tuple[bytes, bytes] | None:
    """(binary header, JSON area) where the checksum holds."""
    head = reader.read_at(offset, 4096)
    size = int.from_bytes(head[8:16], "big")
    if head[:8] != magic + b"\0\2" or size not in _SIZES or int.from_bytes(head[256:264], "big") != offset:
        return None
    area = reader.read_at(offset + 4096, size - 4096)
    try:
        digest = hashlib.new(_text(head[72:104]), head[:448] + bytes(64) + head[512:] + area).digest()
    except ValueError:
        return None
    same = len(area) == size - 4096 and head[448 : 448 + len(digest)] == digest
    return (head, area) if same else None


def _described(head: bytes, facts: Mapping[str, Any]) -> LuksHeader:
    uuid, label = _text(head[168:208]), _text(head[24:72])
    segments = facts["segments"]
    needs = facts.get("config", {}).get("requirements", {}).get("mandatory", [])
    segment = segments["0"] if len(segments) == 1 and "0" in segments else {}
    refused = _refused(segment, needs)
    if refused:
        return LuksHeader(2, uuid, label, "", 0, 0, 0, 512, (), (), refused)
    size = None if segment["size"] == "dynamic" else int(segment["size"])
    sector_size, start, sector = int(segment["sector_size"]), int(segment["offset"]), int(segment["iv_tweak"])
    if sector_size not in (512, 1024, 2048, 4096) or min(start, sector, size or 0) < 0 or start % 512:
        raise ValueError("a segment that cannot be")
    checks = tuple(_checks(facts["digests"]))
    return LuksHeader(
        2,
        uuid,
        label,
        str(segment["encryption"]),
        start,
        size,
        sector,
        sector_size,
        tuple(_slots(facts["keyslots"])),
        checks,
    )


def _refused(segment: Mapping[str, Any], needs: Any) -> str:
    if needs:
        if any("reencrypt" in str(need) for need in needs):
            return "it was being encrypted or decrypted anew when the image was made"
        return f"it needs {shown(', '.join(str(need) for need in needs), 80)}, which is not known here"
    if segment.get("type") != "crypt":
        return "its data is not one encrypted segment"
    return "its sectors carry checksums (dm-integrity)" if "integrity" in segment else ""


def _slots(found: Mapping[str, Any]) -> Iterator[Slot]:
    """The keyslots that a secret can open, those that are preferred first, none that are to be ignored."""
    rows = sorted(found.items(), key=lambda row: (-int(row[1].get("priority", 1)), int(row[0])))
    for number, row in rows[:_MAX_SLOTS]:
        if row["type"] != "luks2" or int(row.get("priority", 1)) == 0:
            continue
        area, af = row["area"], row["af"]
        key_size, stripes, offset = int(row["key_size"]), int(af["stripes"]), int(area["offset"])
        sound = 0 < key_size <= _MAX_KEY and 0 < stripes <= _MAX_STRIPES and offset >= 0
        if not sound or key_size * stripes > _MAX_MATERIAL:
            raise ValueError(f"keyslot {number} cannot be")
        area_key = int(area["key_size"])
        kdf = _kdf(row["kdf"])
        yield Slot(number, kdf, str(area["encryption"]), area_key, offset, key_size, stripes, str(af["hash"]))


def _kdf(row: Mapping[str, Any]) -> Kdf:
    salt = _salt(row["salt"])
    if row["type"] == "pbkdf2":
        return Kdf("pbkdf2", salt, _rounds(row["iterations"]), str(row["hash"]))
    if row["type"] not in ("argon2i", "argon2id"):
        raise ValueError(f"a key derivation called {shown(row['type'], 20)}")
    memory, lanes, rounds = int(row["memory"]), int(row["cpus"]), int(row["time"])
    if not (8 <= memory <= _MAX_MEMORY and 0 < lanes <= _MAX_LANES and 0 < rounds <= _MAX_TIME):
        raise ValueError("more memory or time for a key than cryptsetup would take")
    return Kdf(row["type"], salt, rounds, "", memory, lanes)


def _checks(found: Mapping[str, Any]) -> Iterator[Check]:
    for _, row in sorted(found.items())[:_MAX_SLOTS]:
        if row["type"] == "pbkdf2" and "0" in row["segments"]:
            slots = frozenset(str(slot) for slot in row["keyslots"])
            yield Check(
                _salt(row["salt"]), _rounds(row["iterations"]), str(row["hash"]), _salt(row["digest"]), slots
            )


def _rounds(value: Any) -> int:
    if not 0 < int(value) < 1 << 32:
        raise ValueError("a number of rounds that cannot be")
    return int(value)


def _salt(value: Any) -> bytes:
    found = base64.b64decode(value, validate=True)
    if not 0 < len(found) <= _MAX_SALT:
        raise ValueError("a salt that cannot be")
    return found


def _text(data: bytes) -> str:
    return data.split(b"\0", 1)[0].decode("utf-8", "replace")


def _big(data: bytes, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 4], "big")
