"""What the head of a picture says: format, dimensions, and of EXIF who took it, when and where.

Written for hostile files: plain Python, a few reads of bounded size, every count bounded, no pixel decoded;
whatever does not fit together is left out. The formats are read as their specifications have them: PNG
(ISO/IEC 15948), JPEG (ITU T.81, JFIF), GIF89a, BMP (BITMAPINFOHEADER), TIFF 6.0, EXIF 2.32 (CIPA DC-008), WebP
(RFC 9649), ICO, and HEIF/AVIF (ISO/IEC 14496-12, 23008-12: ``ispe`` alone).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from imagefs.interfaces import Reader

#: Segments, chunks, boxes or tags looked at in one file, and bytes read of any of them.
_MOST = 500
_EXIF_BYTES = 256 << 10
_TEXT = 200


@dataclass(slots=True)
class Picture:
    """``facts`` are further (name, value) pairs in the order they are told."""

    format: str
    width: int = 0
    height: int = 0
    facts: list[tuple[str, str]] = field(default_factory=list)

    @property
    def words(self) -> str:
        return f"{self.format} {self.width} × {self.height}"

    def lines(self) -> list[tuple[str, str]]:
        size = [("dimensions", f"{self.width} × {self.height}")] if self.width and self.height else []
        return [("picture", self.format), *size, *self.facts]


def look_at(reader: Reader) -> Picture | None:
    """The picture that a file is by its first bytes, None for anything else. Raises what reading raises."""
    head = reader.read_at(0, 64)
    for magic, read in _READERS:
        if head.startswith(magic):
            with suppress(struct.error, ValueError, IndexError, OverflowError):
                return read(reader, head)
            return None
    if head[4:8] == b"ftyp":
        with suppress(struct.error, ValueError, IndexError, OverflowError):
            return _heif(reader, head)
    return None


def _png(reader: Reader, head: bytes) -> Picture | None:
    if head[12:16] != b"IHDR":
        return None
    width, height, depth, colour, _, _, interlace = struct.unpack_from(">IIBBBBB", head, 16)
    kinds = {0: "grey", 2: "RGB", 3: "palette", 4: "grey with alpha", 6: "RGB with alpha"}
    found = Picture("PNG", width, height, [("colours", f"{depth} bit {kinds.get(colour, 'unknown')}")])
    if interlace:
        found.facts.append(("interlaced", "yes"))
    at = 8
    for _ in range(_MOST):
        header = reader.read_at(at, 8)
        if len(header) < 8 or header[4:] == b"IEND":
            break
        (length,) = struct.unpack_from(">I", header)
        if header[4:] == b"acTL":
            frames = struct.unpack(">I", reader.read_at(at + 8, 4))[0]
            found.facts.append(("frames", str(frames)))
        elif header[4:] == b"eXIf":
            found.facts += _exif(reader.read_at(at + 8, min(length, _EXIF_BYTES)))
        elif header[4:] == b"tEXt":
            key, _, value = reader.read_at(at + 8, min(length, 1024)).partition(b"\0")
            found.facts.append((key.decode("latin-1")[:24].lower(), _text(value)))
        at += 12 + length
    return found


def _jpeg(reader: Reader, _head: bytes) -> Picture | None:
    found, at, exif = Picture("JPEG"), 2, False
    for _ in range(_MOST):
        segment = reader.read_at(at, 4)
        if len(segment) < 4 or segment[0] != 0xFF:
            break
        kind = segment[1]
        if kind == 0xFF:  # fill
            at += 1
            continue
        if kind in (0xD9, 0xDA):  # the end, or where pixels begin
            break
        if 0xD0 <= kind <= 0xD7 or kind == 0x01:
            at += 2
            continue
        length = struct.unpack_from(">H", segment, 2)[0]
        if length < 2:
            break
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
            depth, found.height, found.width, parts = struct.unpack(">BHHB", reader.read_at(at + 4, 6))
            way = "progressive" if kind == 0xC2 else "baseline" if kind == 0xC0 else f"SOF{kind - 0xC0}"
            colours = {1: "grey", 3: "colour", 4: "CMYK"}.get(parts, f"{parts} parts")
            found.facts.insert(0, ("colours", f"{depth} bit {colours}, {way}"))
        elif kind == 0xE1 and not exif and reader.read_at(at + 4, 6) == b"Exif\0\0":
            exif = True
            found.facts += _exif(reader.read_at(at + 10, min(length, _EXIF_BYTES)))
        at += 2 + length
    return found


def _gif(reader: Reader, head: bytes) -> Picture:
    width, height, packed = struct.unpack_from("<HHB", head, 6)
    return Picture(
        head[:6].decode("ascii"), width, height, [("colours", f"{2 << (packed & 7)} in a palette")]
    )


def _bmp(reader: Reader, head: bytes) -> Picture | None:
    size = struct.unpack_from("<I", head, 14)[0]
    if size == 12:
        width, height, _, depth = struct.unpack_from("<HHHH", head, 18)
    elif size >= 40:
        width, height, _, depth = struct.unpack_from("<iiHH", head, 18)
    else:
        return None
    return Picture("BMP", abs(width), abs(height), [("colours", f"{depth} bit")])


def _webp(reader: Reader, head: bytes) -> Picture | None:
    if head[8:12] != b"WEBP":
        return None
    found, at = Picture("WebP"), 12
    for _ in range(_MOST):
        chunk = reader.read_at(at, 18)
        if len(chunk) < 8:
            break
        kind, length, body = chunk[:4], struct.unpack_from("<I", chunk, 4)[0], chunk[8:]
        if kind == b"VP8X":
            found.width = int.from_bytes(body[4:7], "little") + 1
            found.height = int.from_bytes(body[7:10], "little") + 1
            if body[0] & 2:
                found.facts.append(("animated", "yes"))
        elif kind == b"VP8 " and not found.width and body[3:6] == b"\x9d\x01\x2a":
            found.width, found.height = (each & 0x3FFF for each in struct.unpack_from("<HH", body, 6))
        elif kind == b"VP8L" and not found.width and body[:1] == b"\x2f":
            bits = struct.unpack_from("<I", body, 1)[0]
            found.width, found.height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
            found.facts.append(("lossless", "yes"))
        elif kind == b"EXIF":
            found.facts += _exif(reader.read_at(at + 8, min(length, _EXIF_BYTES)).removeprefix(b"Exif\0\0"))
        at += 8 + length + (length & 1)
    return found


def _tiff(reader: Reader, _head: bytes) -> Picture | None:
    data = _Tiff(lambda at, length: reader.read_at(at, length))
    tags = dict(data.tags(data.first))
    width, height = data.number(tags, 0x100), data.number(tags, 0x101)
    return Picture("TIFF", width or 0, height or 0, _camera(data, tags))


def _ico(reader: Reader, head: bytes) -> Picture | None:
    count = struct.unpack_from("<H", head, 4)[0]
    if not 0 < count <= 64:
        return None
    table = reader.read_at(6, 16 * count)
    sizes = [(table[at] or 256, table[at + 1] or 256) for at in range(0, len(table) - 15, 16)]
    if not sizes:
        return None
    return Picture("icon", *max(sizes), [("pictures", str(len(sizes)))])


def _heif(reader: Reader, head: bytes) -> Picture | None:
    """The largest ``ispe`` in ``meta/iprp/ipco`` is that of the picture; others are of its tiles and thumbnails."""
    brands = {b"heic": "HEIF", b"heix": "HEIF", b"mif1": "HEIF", b"avif": "AVIF", b"avis": "AVIF"}
    name = brands.get(head[8:12])
    if name is None:
        return None
    sizes = [(0, 0)]
    for kind, start, end in _boxes(reader, 0, reader.size):
        if kind != b"meta":
            continue
        for _, at, stop in _inside(reader, start + 4, end, (b"iprp", b"ipco")):
            for each, first, _ in _boxes(reader, at, stop):
                if each == b"ispe":
                    width, height = struct.unpack(">II", reader.read_at(first + 4, 8))
                    sizes.append((width, height))
    return Picture(name, *max(sizes, key=lambda size: size[0] * size[1]))


def _inside(reader: Reader, start: int, end: int, way: tuple[bytes, ...]) -> Iterator[tuple[bytes, int, int]]:
    for kind, first, stop in _boxes(reader, start, end):
        if kind == way[0]:
            if len(way) == 1:
                yield kind, first, stop
            else:
                yield from _inside(reader, first, stop, way[1:])


def _boxes(reader: Reader, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """(type, start of the content, end) of each box of ISO/IEC 14496-12 from ``at`` on."""
    for _ in range(_MOST):
        head = reader.read_at(at, 16)
        if len(head) < 8 or at >= end:
            return
        length, start = struct.unpack_from(">I", head)[0], at + 8
        if length == 1 and len(head) == 16:
            length, start = struct.unpack_from(">Q", head, 8)[0], at + 16
        stop = end if length == 0 else at + length
        if stop <= at + 7 or stop > end:
            return
        yield head[4:8], start, stop
        at = stop


_READERS = (
    (b"\x89PNG\r\n\x1a\n", _png),
    (b"\xff\xd8\xff", _jpeg),
    (b"GIF87a", _gif),
    (b"GIF89a", _gif),
    (b"BM", _bmp),
    (b"RIFF", _webp),
    (b"II*\0", _tiff),
    (b"MM\0*", _tiff),
    (b"\0\0\1\0", _ico),
)

# -- EXIF, which is TIFF within ----------------------------------------------------------------------

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8}
_EXIF_TAGS, _GPS_TAGS = 0x8769, 0x8825
_TURNED = {
    1: "upright",
    2: "mirrored",
    3: "upside down",
    4: "mirrored, upside down",
    5: "mirrored, turned left",
    6: "turned right",
    7: "mirrored, turned right",
    8: "turned left",
}


class _Tiff:
    """Tags of TIFF read through ``read(offset, length)``, which may give less."""

    def __init__(self, read: Any) -> None:
        self._read = read
        head = read(0, 8)
        self._order = "<" if head[:2] == b"II" else ">"
        magic, self.first = struct.unpack(self._order + "HI", head[2:8])
        if head[:2] not in (b"II", b"MM") or magic != 42:
            raise ValueError("no TIFF")

    def tags(self, at: int) -> Iterator[tuple[int, tuple[int, int, bytes]]]:
        """(tag, (type, count, value or where it is)) of one directory."""
        count = struct.unpack(self._order + "H", self._read(at, 2))[0]
        data = self._read(at + 2, 12 * min(count, _MOST))
        for start in range(0, len(data) - 11, 12):
            tag, kind, number = struct.unpack_from(self._order + "HHI", data, start)
            yield tag, (kind, number, data[start + 8 : start + 12])

    def value(self, tags: dict[int, tuple[int, int, bytes]], tag: int) -> tuple[int, bytes]:
        """(type, bytes) of a value, at most so many as a text may have; (0, b"") where there is none."""
        kind, count, raw = tags.get(tag, (0, 0, b""))
        length = min(_SIZES.get(kind, 0) * count, 1024)
        if length > 4:
            raw = self._read(struct.unpack(self._order + "I", raw)[0], length)
        return kind, raw[:length]

    def number(self, tags: dict[int, tuple[int, int, bytes]], tag: int) -> int | None:
        kind, raw = self.value(tags, tag)
        if kind == 3 and len(raw) >= 2:
            return int(struct.unpack_from(self._order + "H", raw)[0])
        if kind == 4 and len(raw) >= 4:
            return int(struct.unpack_from(self._order + "I", raw)[0])
        return None

    def text(self, tags: dict[int, tuple[int, int, bytes]], tag: int) -> str:
        kind, raw = self.value(tags, tag)
        return _text(raw) if kind == 2 else ""

    def ratios(self, tags: dict[int, tuple[int, int, bytes]], tag: int) -> list[float]:
        kind, raw = self.value(tags, tag)
        if kind != 5:
            return []
        pairs = struct.iter_unpack(self._order + "II", raw[: len(raw) // 8 * 8])
        return [above / below for above, below in pairs if below]


def _exif(raw: bytes) -> list[tuple[str, str]]:
    with suppress(struct.error, ValueError, IndexError, OverflowError):
        data = _Tiff(lambda at, length: raw[at : at + length])
        return _camera(data, dict(data.tags(data.first)))
    return []


def _camera(data: _Tiff, tags: dict[int, tuple[int, int, bytes]]) -> list[tuple[str, str]]:
    """Who took the picture with what, when and where, as far as it is told."""
    make, model = data.text(tags, 0x10F), data.text(tags, 0x110)
    more = dict(_directory(data, tags, _EXIF_TAGS))
    exposure, aperture = data.ratios(more, 0x829A), data.ratios(more, 0x829D)
    focal, turned = data.ratios(more, 0x920A), data.number(tags, 0x112)
    told = [
        ("camera", model if model.startswith(make) else f"{make} {model}".strip()),
        ("lens", data.text(more, 0xA434)),
        ("taken", data.text(more, 0x9003) or data.text(tags, 0x132)),
        ("exposure", _exposure(exposure, aperture, data.number(more, 0x8827))),
        ("focal length", f"{focal[0]:g} mm" if focal else ""),
        ("turned", _TURNED.get(turned, "") if turned not in (None, 1) else ""),
        ("place", _where(data, dict(_directory(data, tags, _GPS_TAGS)))),
        ("artist", data.text(tags, 0x13B)),
        ("copyright", data.text(tags, 0x8298)),
        ("software", data.text(tags, 0x131)),
    ]
    return [(name, value) for name, value in told if value]


def _directory(
    data: _Tiff, tags: dict[int, tuple[int, int, bytes]], tag: int
) -> Iterator[tuple[int, tuple[int, int, bytes]]]:
    at = data.number(tags, tag)
    with suppress(struct.error):
        if at is not None:
            yield from data.tags(at)


def _exposure(seconds: list[float], aperture: list[float], iso: int | None) -> str:
    words = []
    if seconds and seconds[0] > 0:
        words.append(f"1/{1 / seconds[0]:.0f} s" if seconds[0] < 0.4 else f"{seconds[0]:g} s")
    words += [f"f/{aperture[0]:g}"] if aperture else []
    return ", ".join([*words, *([f"ISO {iso}"] if iso else [])])


def _where(data: _Tiff, tags: dict[int, tuple[int, int, bytes]]) -> str:
    """Degrees north and east, as maps take them."""
    parts = []
    for name, value, minus in ((1, 2, "S"), (3, 4, "W")):
        degrees = data.ratios(tags, value)
        if len(degrees) != 3:
            return ""
        found = degrees[0] + degrees[1] / 60 + degrees[2] / 3600
        parts.append(-found if data.text(tags, name) == minus else found)
    return f"{parts[0]:.5f}, {parts[1]:.5f}" if abs(parts[0]) <= 90 and abs(parts[1]) <= 180 else ""


def _text(raw: bytes) -> str:
    """As far as its NUL, without what a terminal might take for more than text."""
    text = raw.partition(b"\0")[0].decode("utf-8", "replace").strip()[:_TEXT]
    return "".join(char if char.isprintable() else "?" for char in text)
