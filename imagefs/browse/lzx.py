"""LZX as WIM files and CompactOS have it, for the chunks that libfwnt does not take: plain and slow.

Chunks of at most 32 KiB, each by itself. Bits come from the top of little-endian words of 16. A block has a type
and a size; all but stored ones have codes for literals and match headers, for long lengths and (aligned
ones) for the low bits of offsets, whose code lengths are told as differences to those of the block before.
Source: [MS-PATCH] 2 with the differences that wimlib tells in ``lzx_decompress.c``.
"""

from __future__ import annotations

import struct

_WINDOW = 32768
_SLOTS, _LENGTHS, _LONGEST = 30, 249, 16
_VERBATIM, _ALIGNED, _STORED = 1, 2, 3
_EXTRA = [0, 0, *(max(0, slot // 2 - 1) for slot in range(2, _SLOTS))]
_BASE = [sum(1 << extra for extra in _EXTRA[:slot]) - 2 for slot in range(_SLOTS)]
#: The size of file that the translation of calls takes for granted, and how close to the end none begins.
_FILE_SIZE, _TAIL = 12_000_000, 10

#: (symbol, bits) by the next ``_Code.bits`` bits.
_Table = list[tuple[int, int]]


class _Code:
    """A canonical Huffman code. ValueError where lengths make none."""

    def __init__(self, lengths: list[int]) -> None:
        self.bits = max(lengths)
        self.table: _Table = []
        for length, symbol in sorted((length, symbol) for symbol, length in enumerate(lengths) if length):
            self.table += [(symbol, length)] * (1 << self.bits - length)
            if len(self.table) > 1 << self.bits:
                raise ValueError("they have a code that cannot be")


class _Bits:
    """Words of 16 bits; two past the end are zeros, more are an error."""

    def __init__(self, data: bytes) -> None:
        self._data = data + bytes(4 + len(data) % 2)
        self._size = len(data)
        self._at = self._have = self._held = 0

    def _fill(self, count: int) -> None:
        while self._have < count:
            if self._at + 2 > len(self._data):
                raise ValueError("they end too early")
            word = self._data[self._at] | self._data[self._at + 1] << 8
            self._held = (self._held << 16 | word) & 0xFFFFFFFFFFFF
            self._at += 2
            self._have += 16

    def take(self, count: int) -> int:
        self._fill(count)
        self._have -= count
        return self._held >> self._have & (1 << count) - 1

    def symbol(self, code: _Code) -> int:
        self._fill(code.bits)
        at = self._held >> self._have - code.bits & (1 << code.bits) - 1
        if at >= len(code.table):
            raise ValueError("they have a symbol without a meaning")
        symbol, length = code.table[at]
        self._have -= length
        return symbol

    def stored(self, count: int) -> bytes:
        """Whole bytes behind the padding, which is 1 to 16 bits; behind an odd number of them comes another."""
        self._fill(1)
        at = self._at - (self._have - 1) // 16 * 2
        if at + count > self._size:
            raise ValueError("they end too early")
        self._at, self._have = at + count + count % 2, 0
        return self._data[at : at + count]


def decompress(data: bytes, size: int) -> bytes:
    """``size`` bytes, at most a window. Raises ValueError."""
    if size > _WINDOW:
        raise ValueError("they are more than a window")
    bits, out, recent = _Bits(data), bytearray(), [1, 1, 1]
    main, lengths = [0] * (256 + 8 * _SLOTS), [0] * _LENGTHS
    while len(out) < size:
        kind = bits.take(3)
        end = len(out) + (_WINDOW if bits.take(1) else bits.take(16))
        if end > size or end == len(out):
            raise ValueError("they have a block that cannot be")
        if kind == _STORED:
            raw = bits.stored(12 + end - len(out))
            recent[:] = struct.unpack_from("<3I", raw)
            out += raw[12:]
        elif kind in (_VERBATIM, _ALIGNED):
            low = _Code([bits.take(3) for _ in range(8)]) if kind == _ALIGNED else None
            _read_lengths(bits, main, 0, 256)
            _read_lengths(bits, main, 256, len(main))
            _read_lengths(bits, lengths, 0, _LENGTHS)
            _block(bits, out, end, (_Code(main), _Code(lengths), low), recent)
        else:
            raise ValueError("they have a block of unknown type")
    return _translated(out)


def _read_lengths(bits: _Bits, lengths: list[int], at: int, end: int) -> None:
    """Code lengths ``at`` to ``end``, changed in place."""
    code = _Code([bits.take(4) for _ in range(20)])
    while at < end:
        symbol, count = bits.symbol(code), 1
        if symbol == 17:
            count, value = 4 + bits.take(4), 0
        elif symbol == 18:
            count, value = 20 + bits.take(5), 0
        else:
            if symbol == 19:
                count, symbol = 4 + bits.take(1), bits.symbol(code)
            if symbol > _LONGEST:
                raise ValueError("they have a code that cannot be")
            value = (lengths[at] - symbol) % (_LONGEST + 1)
        if at + count > end:
            raise ValueError("they have a code that cannot be")
        lengths[at : at + count] = [value] * count
        at += count


def _block(
    bits: _Bits, out: bytearray, end: int, codes: tuple[_Code, _Code, _Code | None], recent: list[int]
) -> None:
    main, long, low = codes
    while len(out) < end:
        symbol = bits.symbol(main)
        if symbol < 256:
            out.append(symbol)
            continue
        slot, length = divmod(symbol - 256, 8)
        length += 2 + (bits.symbol(long) if length == 7 else 0)
        if slot < 3:
            recent[0], recent[slot] = recent[slot], recent[0]
        else:
            recent[:] = [_offset(bits, slot, low), recent[0], recent[1]]
        offset = recent[0]
        if not 0 < offset <= len(out) or len(out) + length > end:
            raise ValueError("they repeat what is not there")
        start = len(out) - offset
        if offset >= length:
            out += out[start : start + length]
        else:
            out += (out[start:] * (length // offset + 1))[:length]


def _offset(bits: _Bits, slot: int, low: _Code | None) -> int:
    extra = _EXTRA[slot]
    if low is None or extra < 3:
        return _BASE[slot] + bits.take(extra)
    return _BASE[slot] + (bits.take(extra - 3) << 3) + bits.symbol(low)


def _translated(out: bytearray) -> bytes:
    """The operands of x86 calls, absolute in what was compressed, relative again."""
    at = out.find(b"\xe8")
    while 0 <= at < len(out) - _TAIL:
        value = struct.unpack_from("<i", out, at + 1)[0]
        if 0 <= value < _FILE_SIZE:
            struct.pack_into("<i", out, at + 1, value - at)
        elif -at <= value < 0:
            struct.pack_into("<i", out, at + 1, value + _FILE_SIZE)
        at = out.find(b"\xe8", at + 5)
    return bytes(out)
