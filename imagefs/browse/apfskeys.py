"""APFS: from a secret to the key of an encrypted volume, by what lies in the container.

Two bags of keys (media_keybag_t) lead there: that of the container, encrypted with its UUID, has the wrapped key of
each volume and says where the volume's own bag is, which is encrypted with that one's UUID and has a record for each
secret. A record is a key wrapped with the secret, which unwraps the volume's. Sources: "Apple File System Reference"
(2020-06-22); for what is in a record, disks of macOS and dissect.apfs 1.1, of which nothing was taken over; J. Sylve's
"APFS Advent Challenge" (2022).

May need seconds, as the records say, so it runs in a worker process with limits.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Iterator
from typing import NamedTuple

from imagefs.block.sectorcipher import SectorCipher, unwrapped
from imagefs.browse.apfsdisk import SECTOR, Disk, Volume, broken, is_whole
from imagefs.browse.names import printable
from imagefs.errors import BrowseError, Locked
from imagefs.interfaces import Reader

_CONTAINERS, _VOLUMES = 0x6B657973, 0x72656373
_VOLUME_KEY, _UNLOCK = 2, 3
_VERSION = 2
#: The longest bag, the most rounds for a record, and for all those of a bag.
_MAX_BAG, _MAX_ROUNDS, _MAX_ALL_ROUNDS = 1 << 20, 10_000_000, 30_000_000
#: What the digests of records are made with, before their salt.
_MAGIC = bytes.fromhex("011620171505")
#: A flag of keys of 128 bits, from a volume of CoreStorage that became one of APFS.
_SHORT = 2
_entry = struct.Struct("<16sHH4x")
#: Tags in ASN.1: a sequence, fields of bytes by their number, the one that holds fields.
_SEQUENCE, _FIELD, _INNER = 0x30, 0x80, 0xA3


class Kept(NamedTuple):
    """An entry of a bag (keybag_entry_t)."""

    owner: bytes
    tag: int
    data: bytes


class Wrapped(NamedTuple):
    """A key wrapped with another. ``rounds`` and ``salt`` are for a secret; a volume's key has none."""

    uuid: bytes
    is_short: bool
    key: bytes
    rounds: int
    salt: bytes

    def open(self, key: bytes) -> bytes | None:
        """The key inside; None where ``key`` is wrong."""
        return unwrapped(key[:16], self.key[:24]) if self.is_short else unwrapped(key, self.key[:40])


class ApfsKeys:
    """What the worker holds: ``key`` tries a secret on every volume that is encrypted."""

    kind = "apfs"
    case_insensitive = False

    def __init__(self, reader: Reader) -> None:
        self._disk = Disk(reader)
        self._volumes = {each.uuid: each for each in self._disk.volumes() if each.encrypted}

    def locked(self) -> list[str]:
        """The UUIDs of encrypted volumes whose key lies in the container, in hexadecimal digits."""
        if not self._volumes or not self._disk.keybag[0]:
            return []
        bag = container_bag(self._disk)
        return [uuid.hex() for uuid in self._volumes if {_VOLUME_KEY, _UNLOCK} <= set(_of(bag, uuid))]

    def key(self, secret: list[bytes]) -> list[list[object]]:
        """[UUID, key] of every volume that the secret opens, which is alone in a list: no path that an error may name.
        Locked where it opens none."""
        found, failed = list[list[object]](), list[BrowseError]()
        for volume in self._volumes.values():
            try:
                found.append([volume.uuid.hex(), unlock(self._disk, volume, secret[0])])
            except BrowseError as error:  # another volume may be opened
                failed.append(error)
        if not found:
            raise next(
                (each for each in failed if isinstance(each, Locked)), failed[0] if failed else _wrong()
            )
        return found

    def close(self) -> None:
        pass


def unlock(disk: Disk, volume: Volume, secret: bytes) -> bytes:
    """The key of a volume (its VEK), of 32 bytes. Locked where no record takes the secret; BrowseError where that
    cannot be tried."""
    kept = _of(container_bag(disk), volume.uuid)
    if not {_VOLUME_KEY, _UNLOCK} <= set(kept):
        raise _elsewhere(volume)
    key = _wrapped(kept[_VOLUME_KEY])
    if key is None:
        raise broken(_named(volume), "the record of its key is of a kind that is not known")
    bag = _bag(disk, kept[_UNLOCK], volume.uuid, _VOLUMES)
    for opener in _openers(volume, [each.data for each in bag if each.tag == _UNLOCK], secret):
        found = key.open(opener)
        if found is None:
            raise broken(_named(volume), "its key does not fit the record that takes the secret")
        return found + hashlib.sha256(found + key.uuid).digest()[:16] if key.is_short else found
    raise _wrong()


def container_bag(disk: Disk) -> list[Kept]:
    """What the container keeps of its volumes; nothing where it has no bag."""
    return _bag(disk, struct.pack("<QQ", *disk.keybag), disk.uuid, _CONTAINERS) if disk.keybag[0] else []


def _openers(volume: Volume, records: list[bytes], secret: bytes) -> Iterator[bytes]:
    """The keys that the secret gives by ``records``. Raises BrowseError at the end where one could not be tried."""
    failed: BrowseError | None = None
    left, tried = _MAX_ALL_ROUNDS, False
    for data in records:
        try:
            record = _wrapped(data)
        except BrowseError as error:
            failed = error
            continue
        if record is None or not record.rounds:  # such as are for no secret
            continue
        if record.rounds > min(left, _MAX_ROUNDS):
            failed = broken(_named(volume), f"its secret is to go through more than {_MAX_ROUNDS} rounds")
            continue
        left, tried = left - record.rounds, True
        key = hashlib.pbkdf2_hmac("sha256", secret, record.salt, record.rounds, 32)
        found = record.open(key)
        if found is not None:
            yield found
    if failed is not None or not tried:
        raise failed or broken(_named(volume), "no record is for a password or recovery key")


def _bag(disk: Disk, place: bytes, uuid: bytes, kind: int) -> list[Kept]:
    """The entries of the bag at ``place`` (prange_t), encrypted with ``uuid``."""
    what = "the keys of the container" if kind == _CONTAINERS else "the keys of a volume"
    if len(place) < 16:
        raise broken(what, "where they are is cut off")
    block, count = struct.unpack_from("<QQ", place)
    if not 0 < count <= _MAX_BAG // disk.block_size:
        raise broken(what, f"they are said to fill {count} blocks")
    cipher = SectorCipher("aes-xts-plain64", uuid * 2)
    coded = b"".join(disk.read(each) for each in range(block, block + count))
    raw = cipher.decrypt(coded, block * (disk.block_size // SECTOR), SECTOR)
    if not is_whole(raw):
        raise broken(what, "they fail their checksum")
    (found,), (version, entries) = struct.unpack_from("<I", raw, 24), struct.unpack_from("<HH", raw, 32)
    if found != kind or version != _VERSION:
        raise broken(what, f"they are of the kind {found:#x} {version}, which is not known")
    return list(_entries(raw, entries, what))


def _entries(raw: bytes, count: int, what: str) -> Iterator[Kept]:
    at = 48
    for _ in range(count):
        data_at = at + _entry.size
        if data_at > len(raw):
            raise broken(what, "there are fewer than it says")
        owner, tag, length = _entry.unpack_from(raw, at)
        if data_at + length > len(raw):
            raise broken(what, "one of them is cut off")
        yield Kept(owner, tag, raw[data_at : data_at + length])
        at = data_at + length + 15 & ~15


def _of(bag: list[Kept], owner: bytes) -> dict[int, bytes]:
    """What a bag keeps of a volume, by tag."""
    return {each.tag: each.data for each in reversed(bag) if each.owner == owner}


def _wrapped(record: bytes) -> Wrapped | None:
    """The key in a record; None where that is of another kind. Raises BrowseError where its digest is another."""
    try:
        outer = _fields(next(value for tag, value, _ in _elements(record) if tag == _SEQUENCE))
        (digest, _), (salt, _), (inner, whole) = outer[_FIELD + 1], outer[_FIELD + 2], outer[_INNER]
        fields = {tag: value for tag, (value, _) in _fields(inner).items()}
        uuid, facts, key = (fields[_FIELD + number] for number in (1, 2, 3))
    except (LookupError, ValueError, StopIteration):
        return None
    wanted = hmac.digest(hashlib.sha256(_MAGIC + salt).digest(), whole, "sha256")
    if not hmac.compare_digest(wanted, digest):
        raise broken("a record of a key", "it fails its digest")
    rounds, salt = fields.get(_FIELD + 4, b""), fields.get(_FIELD + 5, b"")
    return Wrapped(uuid, bool(facts[:1] and facts[0] & _SHORT), key, int.from_bytes(rounds), salt)


def _fields(der: bytes) -> dict[int, tuple[bytes, bytes]]:
    return {tag: (value, whole) for tag, value, whole in _elements(der)}


def _elements(der: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """(tag, value, all of it) of the elements of DER one behind the other. LookupError, ValueError for nonsense."""
    at = 0
    while at < len(der):
        length, start = der[at + 1], at + 2
        if length & 0x80:
            start += length & 0x7F
            if start > at + 4:
                raise ValueError("longer than any record")
            length = int.from_bytes(der[at + 2 : start])
        end = start + length  # what is cut off fails its digest
        yield der[at], der[start:end], der[at:end]
        at = end


def _wrong() -> Locked:
    return Locked("the password or recovery key is wrong")


def _named(volume: Volume) -> str:
    return f"the APFS volume '{printable(volume.name.encode('utf-8', 'replace'))}'"


def _elsewhere(volume: Volume) -> BrowseError:
    return BrowseError(
        f"the key of {_named(volume)} is not in its container",
        hint="the chip of a Mac has it: copy the files there, while it runs",
    )
