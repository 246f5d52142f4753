"""Heads of pictures: against pictures that Pillow wrote, and against what is no picture at all."""

from __future__ import annotations

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features
from PIL.TiffImagePlugin import IFDRational

from fixtures.past import jpeg, png, tiff
from imagefs.block.views import BytesReader
from imagefs.errors import BrowseError
from imagefs.tui.picture import Picture, look_at

FORMATS = ["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "ICO", *(["AVIF"] if features.check("avif") else [])]


def look(data: bytes) -> Picture | None:
    return look_at(BytesReader(data))


def written(kind: str, size: tuple[int, int], **options: object) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, (10, 90, 160)).save(out, kind, **options)
    return out.getvalue()


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("size", [(200, 120), (17, 31)])
def test_dimensions_are_what_pillow_wrote(kind: str, size: tuple[int, int]) -> None:
    options = {"sizes": [size]} if kind == "ICO" else {}
    found = look(written(kind, size, **options))
    assert found is not None
    assert (found.width, found.height) == size
    assert found.format.lower().startswith({"ICO": "icon"}.get(kind, kind.lower()))


def test_lossless_progressive_animated() -> None:
    lossless = look(written("WEBP", (50, 40), lossless=True))
    assert lossless is not None
    assert (lossless.width, lossless.height) == (50, 40)
    assert ("lossless", "yes") in lossless.facts
    progressive = look(written("JPEG", (50, 40), progressive=True))
    assert progressive is not None
    assert dict(progressive.facts)["colours"] == "8 bit colour, progressive"
    frames = [Image.new("RGB", (9, 9), (shade, 0, 0)) for shade in (0, 99)]
    out = io.BytesIO()
    frames[0].save(out, "PNG", save_all=True, append_images=frames[1:])
    animated = look(out.getvalue())
    assert animated is not None
    assert dict(animated.facts)["frames"] == "2"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_that_pillow_wrote(kind: str) -> None:
    exif = Image.Exif()
    exif[0x10F], exif[0x110], exif[0x112], exif[0x13B] = "Example", "Example X100", 6, "A. Nobody"
    more = exif.get_ifd(0x8769)
    more[0x9003], more[0x829A], more[0x829D], more[0x8827] = (
        "2026:11:03 10:15:00",
        IFDRational(1, 250),
        IFDRational(28, 10),
        200,
    )
    gps = exif.get_ifd(0x8825)
    gps[1], gps[2], gps[3], gps[4] = "S", (33.0, 52.0, 4.0), "E", (151.0, 12.0, 36.0)
    found = look(written(kind, (60, 40), exif=exif))
    assert found is not None
    facts = dict(found.facts)
    assert facts["camera"] == "Example X100"
    assert facts["artist"] == "A. Nobody"
    assert facts["turned"] == "turned right"
    if kind != "TIFF":  # Pillow keeps no further directories there
        assert facts["taken"] == "2026:11:03 10:15:00"
        assert facts["exposure"] == "1/250 s, f/2.8, ISO 200"
        assert facts["place"] == "-33.86778, 151.21000"


def test_the_fixture_is_read_as_pillow_reads_it() -> None:
    theirs = Image.open(io.BytesIO(png(64, 32)))
    assert theirs.size == (64, 32)
    exif = Image.Exif()
    exif.load(tiff())
    assert exif[0x110] == "Example X100"
    found = look(jpeg())
    assert found is not None
    assert found.words == "JPEG 4032 × 3024"
    assert dict(found.facts)["place"] == "53.54587, 9.96667"


@pytest.mark.parametrize(
    "data", [b"", b"BM", b"\xff\xd8\xff", b"GIF89a", b"RIFF", b"II*\0", b"text", b"\0" * 64]
)
def test_what_only_begins_like_one(data: bytes) -> None:
    found = look(data)
    assert found is None or not found.width


SEEDS = [
    png(8, 8),
    jpeg(),
    *(written(kind, (16, 16)) for kind in ("GIF", "BMP", "WEBP", "TIFF", *FORMATS[7:])),
]


class Counting:
    """Counts what is read, and of how much."""

    def __init__(self, data: bytes) -> None:
        self._reader = BytesReader(data)
        self.size = 1 << 50  # the file says so
        self.reads = self.bytes = 0

    def read_at(self, offset: int, length: int, /) -> bytes:
        self.reads += 1
        self.bytes += length
        return self._reader.read_at(offset, length)

    def close(self) -> None:
        pass


@settings(max_examples=150)
@given(
    st.sampled_from(SEEDS),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=12),
    st.integers(0, 600),
)
def test_hostile_heads_end_soon_and_never_raise(
    seed: bytes, changes: list[tuple[int, int]], length: int
) -> None:
    data = bytearray(seed[:length] + b"\xff" * 64)
    for at, value in changes:
        if at < len(data):
            data[at] = value
    reader = Counting(bytes(data))
    found = look_at(reader)
    assert reader.reads < 2500
    assert reader.bytes < 3 << 20
    if found is not None:
        assert all(value.isprintable() and len(value) < 300 for _, value in found.lines())


def test_what_cannot_be_read_is_said() -> None:
    class Broken(Counting):
        def read_at(self, offset: int, length: int, /) -> bytes:
            if offset:
                raise BrowseError("a bad place")
            return super().read_at(offset, length)

    with pytest.raises(BrowseError):
        look_at(Broken(png(8, 8)))
