"""LZFSE and LZVN through Apple's reference implementation: the only module that knows the library ``lzfse``."""

from __future__ import annotations

import struct

from imagefs.browse import lzvn

#: A block is its kind, how many bytes it becomes and, for LZVN, how many it is; ``bvx$`` ends the stream.
_LZVN, _ANY, _END = b"bvxn", b"bvx", b"bvx$"
_END_OF_LZVN = b"\x06" + bytes(7)


def unpack_lzfse(data: bytes, size: int) -> bytes:
    """``size`` bytes out of a stream of LZFSE blocks. Raises ValueError for what is damaged."""
    declared = int.from_bytes(data[4:8], "little")
    if len(data) < 12 or not data.startswith(_ANY) or not 0 < declared <= size:
        raise ValueError("they are no blocks of LZFSE")
    return _decompressed(data, size)


def unpack_lzvn(data: bytes, size: int) -> bytes:
    """``size`` bytes out of bare LZVN. Raises ValueError for what is damaged."""
    end = data.rfind(_END_OF_LZVN) + len(_END_OF_LZVN)  # the library wants nothing behind it
    block = _LZVN + struct.pack("<II", size, end) + data[:end] + _END
    try:
        return _decompressed(block, size)
    except ValueError:
        return lzvn.decompress(data, size)


def _decompressed(stream: bytes, size: int) -> bytes:
    import lzfse

    try:
        plain = bytes(lzfse.decompress(stream))
    except (lzfse.error, MemoryError) as error:
        raise ValueError("they cannot be decompressed") from error
    if len(plain) != size:
        raise ValueError(f"they decompress to {len(plain)} bytes instead of {size}")
    return plain
