"""LZVN, one of Apple's compressions, where the library refuses: blocks of HFS+ may go on behind their end.

Source: the opcodes of ``lzvn_decode_base.c`` in Apple's reference implementation of LZFSE (BSD licence).
An opcode copies ``literals`` of the input, then repeats bytes that lie ``distance`` back in the output.
"""

from __future__ import annotations

_END = 0x06
_NOTHING = (0x0E, 0x16)


def decompress(data: bytes, size: int) -> bytes:
    """``size`` bytes out of ``data``. Raises ValueError for what is damaged, or longer or shorter than that."""
    out, at, distance = bytearray(), 0, 0
    try:
        while data[at] != _END:
            if data[at] in _NOTHING:
                at += 1
                continue
            length, literals, match, new = _opcode(data, at)
            distance = distance if new is None else new
            at += length
            if at + literals >= len(data) or len(out) + literals + match > size:
                raise ValueError("they do not end where they should")
            out += data[at : at + literals]
            at += literals
            if match:
                _repeat(out, distance, match)
    except IndexError as error:
        raise ValueError("they end too early") from error
    if len(out) != size:
        raise ValueError(f"they decompress to {len(out)} bytes instead of {size}")
    return bytes(out)


def _opcode(data: bytes, at: int) -> tuple[int, int, int, int | None]:
    """(its own length, literals, length of the match, distance or None for that of the last match)."""
    code = data[at]
    high, low = code >> 4, code & 15
    if high == 14:
        return (1, low, 0, None) if low else (2, data[at + 1] + 16, 0, None)
    if high == 15:
        return (1, 0, low, None) if low else (2, 0, data[at + 1] + 16, None)
    if high in (10, 11):
        word = data[at + 1] | data[at + 2] << 8
        return 3, code >> 3 & 3, ((code & 7) << 2 | word & 3) + 3, word >> 2
    if high in (7, 13):
        raise ValueError("they have a code that means nothing")
    literals, match = code >> 6, (code >> 3 & 7) + 3
    if code & 7 == 7:
        return 3, literals, match, data[at + 1] | data[at + 2] << 8
    if code & 7 == 6:
        if code < 0x40:
            raise ValueError("they have a code that means nothing")
        return 1, literals, match, None
    return 2, literals, match, (code & 7) << 8 | data[at + 1]


def _repeat(out: bytearray, distance: int, count: int) -> None:
    """Append ``count`` bytes from ``distance`` back, which may be those appended."""
    if not 0 < distance <= len(out):
        raise ValueError("they repeat what was not there")
    start = len(out) - distance
    piece = bytes(out[start : start + count])
    out += (piece * -(-count // len(piece)))[:count]
