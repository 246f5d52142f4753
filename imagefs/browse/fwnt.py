"""XPRESS-Huffman and LZX through libfwnt: the only module that knows pyfwnt.

It comes with the optional extra ``wof`` (LGPL-3+), and is imported when the first such file is opened. libfwnt
20260602 refuses LZX blocks without a long match, one chunk of a hundred, and translates operands of x86
calls in the last ten bytes of a chunk, or at minus their own place, as it should not: such chunks go to
``lzx``, which is some twenty times as slow (2 MB/s).
"""

from __future__ import annotations

from collections.abc import Callable

from imagefs.browse.lzx import decompress
from imagefs.errors import BrowseError

_CALL = b"\xe8"
#: (compressed bytes, how many they must become) → bytes. Raises ValueError for what is damaged.
Unpack = Callable[[bytes, int], bytes]


def unpacker(*, lzx: bool, shown: str) -> Unpack:
    """LZX as in WIM files, else XPRESS with Huffman codes; BrowseError where the extra is missing."""
    try:
        import pyfwnt
    except ImportError as error:
        raise BrowseError(
            f"'{shown}' is compressed by Windows (CompactOS), and what can decode that is not installed",
            hint="install the extra: pip install 'imagefs[wof]'",
            path=shown,
        ) from error
    function = pyfwnt.lzx_decompress if lzx else pyfwnt.lzxpress_huffman_decompress

    def unpack(data: bytes, size: int) -> bytes:
        try:
            plain = bytes(function(data, size))
        except (OSError, MemoryError, OverflowError, SystemError) as error:
            raise ValueError("they cannot be decompressed") from error
        if len(plain) != size:
            raise ValueError(f"they decompress to {len(plain)} bytes instead of {size}")
        return plain

    def unpack_lzx(data: bytes, size: int) -> bytes:
        try:
            return _calls(unpack(data, size))
        except ValueError:
            return decompress(data, size)

    return unpack_lzx if lzx else unpack


def _calls(plain: bytes) -> bytes:
    """``plain`` if libfwnt left every operand of a call as it should. Raises ValueError where that may not be so."""
    size, at = len(plain), plain.find(_CALL)
    while 0 <= at < size - 6:
        if at >= size - 10 or (at and int.from_bytes(plain[at + 1 : at + 5], "little", signed=True) == -at):
            raise ValueError("they cannot be decompressed for certain")
        at = plain.find(_CALL, at + 5)
    return plain
