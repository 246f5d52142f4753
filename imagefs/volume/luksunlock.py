"""LUKS: from a secret to the key of the volume. The only module that knows ``argon2``, which is in the extra ``inner``.

May need gigabytes and minutes, as the header says, so it runs in a worker process with limits. Sources as in
``luks.py``; the anti-forensic splitter is that of section 2.4 of the first, Argon2 is RFC 9106.
"""

from __future__ import annotations

import hashlib
import hmac

from imagefs.block.sectorcipher import SectorCipher
from imagefs.errors import BrowseError, Locked
from imagefs.interfaces import Reader
from imagefs.volume.facts import shown
from imagefs.volume.luks import Check, Kdf, LuksHeader, Slot, read_header

_SECTOR = 512


class LuksKey:
    """What the worker holds: ``key`` tries a secret."""

    kind = "luks"
    case_insensitive = False

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._header = read_header(reader)

    def key(self, secret: list[bytes]) -> bytes:
        """The key of the volume. Locked where no keyslot takes the secret, which is alone in a list: no path that an
        error may name."""
        return unlock(self._reader, self._header, secret[0])

    def close(self) -> None:
        pass


def unlock(reader: Reader, header: LuksHeader, secret: bytes) -> bytes:
    """The key of the volume. Locked where no keyslot takes the secret; BrowseError where that cannot be tried."""
    failed: BrowseError | None = None
    for slot in header.slots:
        try:
            key = _open_slot(reader, slot, secret)
            if any(_fits(check, slot, key) for check in header.checks):
                return key
        except BrowseError as error:  # another slot may do
            failed = error
    if failed is not None:
        raise failed
    raise Locked("the passphrase or key file is wrong: no keyslot takes it")


def _open_slot(reader: Reader, slot: Slot, secret: bytes) -> bytes:
    material = slot.key_size * slot.stripes
    length = -(-material // _SECTOR) * _SECTOR
    raw = reader.read_at(slot.offset, length)
    if len(raw) < length:
        raise BrowseError(f"keyslot {slot.number} lies past the end of the volume")
    cipher = SectorCipher(slot.cipher, _derive(slot.kdf, secret, slot.area_key_size))
    return _merged(cipher.decrypt(raw, 0, _SECTOR)[:material], slot)


def _derive(kdf: Kdf, secret: bytes, length: int) -> bytes:
    if kdf.kind == "pbkdf2":
        return _pbkdf2(kdf.digest, secret, kdf.salt, kdf.rounds, length)
    try:
        from argon2.low_level import Type, hash_secret_raw
    except ImportError as error:
        raise BrowseError(
            "its passphrase goes through Argon2, for which the package argon2-cffi is not installed",
            hint="install it with `make install EXTRAS=inner`, or `pip install 'imagefs[inner]'`",
        ) from error
    kind = Type.ID if kdf.kind == "argon2id" else Type.I
    return hash_secret_raw(
        secret,
        kdf.salt,
        time_cost=kdf.rounds,
        memory_cost=kdf.memory,
        parallelism=kdf.lanes,
        hash_len=length,
        type=kind,
    )


def _pbkdf2(digest: str, secret: bytes, salt: bytes, rounds: int, length: int) -> bytes:
    try:
        return hashlib.pbkdf2_hmac(digest, secret, salt, max(1, rounds), length)
    except ValueError as error:
        raise BrowseError(
            f"it was made with the digest {shown(digest, 20)}, which is not known here"
        ) from error


def _merged(material: bytes, slot: Slot) -> bytes:
    """The key out of its stripes: each is mixed into the next through a digest that spreads every bit."""
    size, have = slot.key_size, bytes(slot.key_size)
    for at in range(0, len(material), size):
        have = _xor(have, material[at : at + size])
        if at + size < len(material):
            have = _diffused(have, slot.digest)
    return have


def _diffused(block: bytes, digest: str) -> bytes:
    out = b""
    width = hashlib.new(digest).digest_size
    for number, at in enumerate(range(0, len(block), width)):
        part = block[at : at + width]
        out += hashlib.new(digest, number.to_bytes(4, "big") + part).digest()[: len(part)]
    return out


def _xor(one: bytes, other: bytes) -> bytes:
    return (int.from_bytes(one) ^ int.from_bytes(other)).to_bytes(len(one))


def _fits(check: Check, slot: Slot, key: bytes) -> bool:
    if slot.number not in check.slots:
        return False
    found = _pbkdf2(check.digest, key, check.salt, check.rounds, len(check.value))
    return hmac.compare_digest(found, check.value)
