"""Volumes encrypted sector by sector, as dm-crypt does it: AES in the modes XTS and CBC, decrypted in bulk.

The only module that knows ``cryptography``, which is in the extra ``inner``. One call decrypts the blocks of many
sectors; what a mode adds to each (IEEE 1619 for XTS, SP 800-38A for CBC) is arithmetic on arrays, since a call a
sector costs 11 µs, so 46 MB/s at 512 bytes. Words for modes as in the kernel's
``Documentation/admin-guide/device-mapper/dm-crypt.rst``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from imagefs.block.identity import clean
from imagefs.block.views import clamp
from imagefs.errors import BrowseError
from imagefs.interfaces import Reader

Words = npt.NDArray[np.uint64]
_BLOCK = 16
#: Sectors are numbered in these units, whatever their size.
_UNIT = 512
#: So few sectors are quicker one by one.
_FEW = 32
#: The longest stretch that is decrypted at once.
_PIECE = 4 << 20


class SectorCipher:
    """``spec`` is a cipher in dm-crypt's words (``aes-xts-plain64``). Raises BrowseError for one that is not known."""

    def __init__(self, spec: str, key: bytes) -> None:
        self.spec = spec
        name, _, rest = spec.lower().partition("-")
        self._mode, _, iv = rest.partition("-")
        self._iv, _, digest = iv.partition(":")
        known = self._mode in ("xts", "cbc") and self._iv in ("plain", "plain64", "plain64be", "essiv")
        halves = 2 if self._mode == "xts" else 1
        if name != "aes" or not known or len(key) // halves not in (16, 24, 32) or len(key) % halves:
            raise BrowseError(
                f"the cipher {clean(spec, 40)} with a key of {8 * len(key)} bits cannot be decrypted",
                hint="AES in the modes xts and cbc can; for others unlock pN.raw of a mount with cryptsetup",
            )
        half = len(key) // halves
        self._data, self._tweak = _ecb(key[:half]), _ecb(key[-half:])
        self._twice = halves == 2 and key[:half] == key[half:]  # which OpenSSL may refuse, and APFS has
        if self._iv == "essiv":
            try:
                self._essiv = _ecb(hashlib.new(digest, key).digest())
            except ValueError as error:
                raise BrowseError(
                    f"the cipher {clean(spec, 40)} needs a digest that is not known here"
                ) from error
        self._key = key

    @property
    def fingerprint(self) -> tuple[str, bytes]:
        """The same for the same cipher and key."""
        return self.spec, hashlib.sha256(self._key).digest()

    def decrypt(self, data: bytes, sector: int, sector_size: int) -> bytes:
        """Whole sectors of ``sector_size``; ``sector`` is the number of the first, in units of 512 bytes."""
        count = len(data) // sector_size
        blocks = np.frombuffer(data, "<u8").reshape(count, sector_size // _BLOCK, 2)
        ivs = self._ivs(sector, count, sector_size // _UNIT)
        if self._mode == "xts" and count <= _FEW and not self._twice:
            return _xts_each(self._key, data, ivs, sector_size)
        if self._mode == "xts":
            tweaks = _tweaks(self._encrypted(self._tweak, ivs), sector_size // _BLOCK)
            plain = self._decrypted(blocks ^ tweaks) ^ tweaks
        else:
            before = np.concatenate((ivs[:, None, :], blocks[:, :-1, :]), axis=1)
            plain = self._decrypted(blocks) ^ before
        return plain.tobytes()

    def _ivs(self, sector: int, count: int, step: int) -> Words:
        ivs = np.zeros((count, 2), "<u8")
        numbers = np.arange(count, dtype="<u8") * np.uint64(step) + np.uint64(sector)
        if self._iv == "plain64be":
            ivs[:, 1] = numbers.byteswap()
        else:
            ivs[:, 0] = numbers & np.uint64(0xFFFF_FFFF) if self._iv == "plain" else numbers
        return self._encrypted(self._essiv, ivs) if self._iv == "essiv" else ivs

    @staticmethod
    def _encrypted(cipher: Any, words: Words) -> Words:
        return np.frombuffer(cipher.encryptor().update(words.tobytes()), "<u8").reshape(words.shape)

    def _decrypted(self, words: Words) -> Words:
        return np.frombuffer(self._data.decryptor().update(words.tobytes()), "<u8").reshape(words.shape)


def _ecb(key: bytes) -> Any:
    try:
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
    except ImportError as error:
        raise BrowseError(
            "encrypted volumes need the package cryptography, which is not installed",
            hint="install it with `make install EXTRAS=inner`, or `pip install 'imagefs[inner]'`",
        ) from error
    return Cipher(algorithms.AES(key), modes.ECB())


def unwrapped(key: bytes, wrapped: bytes) -> bytes | None:
    """The key that is ``wrapped`` with another (RFC 3394); None where that other one is wrong."""
    _ecb(key)
    from cryptography.hazmat.primitives import keywrap

    try:
        return keywrap.aes_key_unwrap(key, wrapped)
    except keywrap.InvalidUnwrap:
        return None


def _xts_each(key: bytes, data: bytes, ivs: Words, sector_size: int) -> bytes:
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    cipher = algorithms.AES(key)
    return b"".join(
        Cipher(cipher, modes.XTS(iv.tobytes())).decryptor().update(data[at : at + sector_size])
        for iv, at in zip(ivs, range(0, len(data), sector_size), strict=True)
    )


def _tweaks(first: Words, count: int) -> Words:
    """Of each sector ``first`` times x to the power of 0, 1, … ``count`` in GF(2^128); twice as many in each round."""
    found = np.empty((len(first), count, 2), "<u8")
    found[:, 0] = first
    have = 1
    while have < count:
        more = min(have, count - have)
        part = found[:, :more]
        for power in [min(have, 64)] * max(1, have // 64):
            part = _times_power(part, power)
        found[:, have : have + more] = part
        have += more
    return found


def _times_power(words: Words, power: int) -> Words:
    """Times x to the ``power`` (1 to 64): a shift of 128 bits, of which what falls out is reduced by
    x^128 = x^7 + x^2 + x + 1."""
    low, high = words[..., 0], words[..., 1]
    back = np.uint64(64 - power)
    if power == 64:
        out, low, high = high, np.zeros_like(low), low
    else:
        out, up = high >> back, np.uint64(power)
        low, high = low << up, high << up | low >> back
    low = low ^ out ^ out << np.uint64(1) ^ out << np.uint64(2) ^ out << np.uint64(7)
    high = high ^ out >> np.uint64(63) ^ out >> np.uint64(62) ^ out >> np.uint64(57)
    return np.stack((low, high), axis=-1)


class DecryptedReader:
    """``size`` bytes of ``reader`` from ``start``, decrypted. The first sector has the number ``sector``, in units of
    512 bytes. It owns nothing, and cannot tell bytes that nobody has from others: that is for ``LostReader``."""

    def __init__(
        self, reader: Reader, cipher: SectorCipher, *, start: int, size: int, sector: int, sector_size: int
    ) -> None:
        self.size = max(0, min(size, reader.size - start)) // sector_size * sector_size
        self._reader: Reader | None = reader
        self._cipher = cipher
        self._start = start
        self._sector = sector
        self._sector_size = sector_size

    @property
    def unit(self) -> int:
        """Bytes of a sector: who changes one of them changes them all."""
        return self._sector_size

    @property
    def key(self) -> Hashable:
        """What the same bytes of ``reader`` are decrypted with at another time, if this is equal; no secret."""
        return self._cipher.fingerprint, self._sector

    def parts(self, offset: int, length: int) -> Iterator[tuple[Reader, int, int]]:
        """(reader, offset in it, bytes) of a range."""
        if self._reader is None:
            raise BrowseError("the encrypted volume is closed")
        yield self._reader, self._start + offset, clamp(self.size, offset, length)

    def read_at(self, offset: int, length: int, /) -> bytes:
        count = clamp(self.size, offset, length)
        reader, unit = self._reader, self._sector_size
        if reader is None:
            raise BrowseError("the encrypted volume is closed")
        first, end = offset // unit * unit, -(-(offset + count) // unit) * unit
        parts = []
        for at in range(first, end, _PIECE):
            data = reader.read_at(self._start + at, min(_PIECE, end - at))
            parts.append(self._cipher.decrypt(data, self._sector + at // _UNIT, unit))
        plain = parts[0] if len(parts) == 1 else b"".join(parts)
        return plain[offset - first : offset - first + count]

    def close(self) -> None:
        self._reader = None
