"""Images made to harm: correctly sealed, and lying. Everything is bounded, refused and named."""

from __future__ import annotations

import json
import resource
import zlib
from typing import Any
from uuid import UUID

import numpy as np
import pytest
import zstandard

from imagefs.errors import ChainError, FormatError, ImagefsError, IntegrityError
from imagefs.format.codec import FrameHeader, digest_of, encode_frame
from imagefs.format.header import FIXED, PREAMBLE, Header, Kind, encode_header
from imagefs.format.index import DirectoryEntry, encode_directory, make_rows
from imagefs.format.trailer import DIRECTORY, EXTENTS, HEADER_COPY, RANGES, SUMMARY_TYPE, StandsFor
from imagefs.image.catalog import Catalog, ImageInfo, scan
from imagefs.interfaces import State
from imagefs.ops.verify import verify_image
from imagefs.store import MemoryStore
from tests.support.images import CHUNK, SET, Craft, disk_bytes, full_of, noise, text

HUGE = 2**62
DATA = text(3 * CHUNK) + noise(100)
Z = int(State.ZERO)


def only(craft: Craft) -> tuple[Catalog, ImageInfo]:
    store = MemoryStore()
    craft.put(store)
    catalog = scan(store)
    if catalog.damaged:
        raise catalog.damaged[0][1]
    return catalog, catalog.images[0]


def read(craft: Craft) -> bytes:
    return disk_bytes(*only(craft))


def family(*crafts: Craft) -> Catalog:
    store = MemoryStore()
    for craft in crafts:
        craft.put(store)
    return scan(store)


def child_of(parent: ImageInfo, **changes: Any) -> Craft:
    given: dict[str, Any] = {"kind": Kind.INCREMENTAL, "parent": parent, "created": 10**18 + 5}
    return Craft(**({"disk_size": parent.summary.disk_size} | given | changes))


# -- huge disks -----------------------------------------------------------------------------------


def test_a_disk_of_four_exabytes_costs_nothing() -> None:
    chunks = HUGE // CHUNK
    craft = Craft(
        HUGE,
        chunks=[(0, text(CHUNK)), (2**40, noise(CHUNK))],
        extents=[(1, 2**40 - 1, Z), (2**40 + 1, chunks - 2**40 - 1, int(State.SKIPPED))],
    )
    assert len(craft.build()) < 20_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    catalog, info = only(craft)
    disk = catalog.open_disk(info)
    assert disk.size == HUGE
    assert disk.read_at(0, CHUNK) == text(CHUNK)
    assert disk.read_at(2**40 * CHUNK - 5, 10) == bytes(5) + noise(5)
    assert disk.read_at(HUGE - 3, 100) == bytes(3)
    assert [extent.state for extent in disk.extents(0, HUGE)] == [1, 2, 1, 3]
    assert disk.view_digest()
    assert {finding.code for finding in verify_image(catalog, info).findings} == {"view"}
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024  # KiB


def test_the_largest_disk_there_is() -> None:
    size = 2**63 - 1
    catalog, info = only(Craft(size, extents=[(0, -(-size // CHUNK), Z)]))
    assert catalog.open_disk(info).read_at(size - 1, 5) == b"\0"


def test_a_child_of_a_huge_disk() -> None:
    store = MemoryStore()
    Craft(HUGE, extents=[(0, HUGE // CHUNK, Z)]).put(store)
    parent = scan(store).images[0]
    child_of(parent, chunks=[(2**47, b"x" * CHUNK)]).put(store)
    catalog = scan(store)
    disk = catalog.open_disk(catalog.images[-1])
    assert disk.read_at(2**47 * CHUNK - 1, 3) == b"\0xx"


# -- lying about places ---------------------------------------------------------------------------

LIES: dict[str, tuple[dict[str, Any], str]] = {
    "stored and zero": ({"extents": [(0, 1, Z)]}, "index has 4"),
    "extents overlap": ({"extents": [(0, 3, Z), (2, 1, Z)], "chunks": [(3, DATA[-100:])]}, "overlap"),
    "extents not sorted": (
        {"extents": [(2, 1, Z), (0, 1, Z)], "chunks": [(1, b"a" * CHUNK), (3, b"b")]},
        "overlap",
    ),
    "extent past the end": ({"extents": [(4, 1, Z)]}, "past the end"),
    "endless extent": ({"extents": [(0, 2**63 - 1, Z)], "chunks": []}, "past the end"),
    "extent that wraps": ({"extents": [(2**63 - 1, 2**63 - 1, Z)], "chunks": []}, "past the end"),
    "extent called stored": ({"extents": [(3, 1, 1)], "chunks": []}, "unknown state"),
    "extent called absent": ({"extents": [(3, 1, 0)], "chunks": []}, "unknown state"),
    "extent of state 9": ({"extents": [(3, 1, 9)], "chunks": []}, "unknown state"),
    "empty extent": ({"extents": [(3, 0, Z)], "chunks": []}, "empty"),
    "a chunk is nowhere": ({"chunks": [(0, DATA[:CHUNK]), (3, DATA[-100:])]}, "should be stored"),
    "row past the end": ({"chunks": [(n, b"a" * CHUNK) for n in (0, 1, 2, 4)]}, "past the end"),
    "more rows than chunks": ({"chunks": [(n, b"a" * CHUNK) for n in range(6)]}, "more rows"),
    "rows out of order": (
        {"chunks": [(1, b"a" * CHUNK), (0, b"b" * CHUNK)], "extents": [(2, 2, Z)]},
        "order",
    ),
    "a row twice": ({"chunks": [(0, b"a" * CHUNK)] * 2, "extents": [(2, 2, Z)]}, "order"),
    "summary counts wrong": ({"summary": {"stored": 3}}, "summary counts"),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies_about_places_are_refused(lie: str) -> None:
    changes, words = LIES[lie]
    with pytest.raises(FormatError, match=words):
        read(full_of(DATA, **changes))


def rows_with(**columns: Any) -> Any:
    """Four rows as full_of(DATA) has them, some columns replaced."""
    given = {
        "chunk_no": [0, 1, 2, 3],
        "offset": [216] * 4,
        "stored_length": [10] * 4,
        "codec": bytes([1] * 4),
        "digest": bytes(128),
    }
    return make_rows(**(given | columns))


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"offset": [216, 2**63, 600, 800]}, "past the end of the image"),
        ({"offset": [216, 2**64 - 70, 600, 800]}, "past the end of the image"),
        ({"offset": [216, 10**6, 600, 800]}, "past the end of the image"),
        ({"stored_length": [10, 2**32 - 1, 10, 10]}, "past its index block"),
        ({"chunk_no": [0, 1, 2, 2**64 - 1]}, "past the end of the disk"),
    ],
)
def test_rows_that_point_elsewhere(columns: dict[str, Any], words: str) -> None:
    with pytest.raises(FormatError, match=words):
        read(full_of(DATA, rows=rows_with(**columns)))


def test_rows_that_point_at_something_else_of_the_image() -> None:
    """Inside the object, but no frame: the digest speaks."""
    with pytest.raises(IntegrityError, match="chunk 0 is damaged"):
        read(full_of(DATA, rows=rows_with(offset=[0, 216, 216, 216])))


def test_an_unknown_codec_in_a_row() -> None:
    with pytest.raises(IntegrityError, match="codec 7 is unknown"):
        read(Craft(CHUNK, **framed(text(CHUNK), text(CHUNK), codec=7)))


@pytest.mark.parametrize(
    "entries",
    [
        [DirectoryEntry(0, 2**60, 32 + 53 * 4, 4, bytes(32))],
        [DirectoryEntry(0, 0, 2**32 - 1, 4, bytes(32))],
        [DirectoryEntry(0, 0, 32, 0, bytes(32))],
        [DirectoryEntry(0, 0, 32 + 53 * 70_000, 70_000, bytes(32))],
        [DirectoryEntry(5, 0, 85, 1, bytes(32)), DirectoryEntry(5, 0, 85, 1, bytes(32))],
        [DirectoryEntry(5, 0, 85, 1, bytes(32)), DirectoryEntry(1, 0, 85, 1, bytes(32))],
    ],
)
def test_directories_that_lie(entries: list[DirectoryEntry]) -> None:
    with pytest.raises(FormatError, match="index"):
        read(full_of(DATA, sections={DIRECTORY: (encode_directory(entries), 1)}))


def test_a_block_that_is_not_the_one_of_the_directory() -> None:
    """Two entries that point at one good block: the second contradicts it."""
    craft = full_of(text(6 * CHUNK), blocks=[3])
    _, info = only(craft)
    first = craft._append_blocks(bytearray(craft.encoded_header()), rows_with())[0]
    assert info.summary.stored == 6
    twice = [first, DirectoryEntry(4, first.offset, first.length, first.rows, first.digest)]
    with pytest.raises(ImagefsError):
        read(full_of(text(8 * CHUNK), sections={DIRECTORY: (encode_directory(twice), 1)}))


def test_blocks_whose_rows_interleave_in_a_child() -> None:
    """Sorted inside, not from block to block: what is read is right, or it is refused."""
    parent = family(full_of(text(8 * CHUNK))).images[0]
    pieces = [noise(CHUNK, n) for n in range(4)]
    store = MemoryStore()
    full_of(text(8 * CHUNK), image=parent.uuid).put(store)
    parent = scan(store).images[0]
    child_of(parent, chunks=[(1, pieces[0]), (6, pieces[1]), (3, pieces[2]), (7, pieces[3])], blocks=[2]).put(
        store
    )
    catalog = scan(store)
    expected = bytearray(text(8 * CHUNK))
    for number, piece in zip((1, 6, 3, 7), pieces, strict=True):
        expected[number * CHUNK : (number + 1) * CHUNK] = piece
    try:
        found = disk_bytes(catalog, catalog.images[-1])
    except FormatError:
        return
    assert found == bytes(expected)


def test_stored_and_extent_in_a_child() -> None:
    store = MemoryStore()
    full_of(DATA).put(store)
    parent = scan(store).images[0]
    child_of(parent, chunks=[(1, b"a" * CHUNK)], extents=[(0, 2, Z)]).put(store)
    catalog = scan(store)
    with pytest.raises(FormatError, match="both stored and listed"):
        disk_bytes(catalog, catalog.images[-1])


# -- frames ---------------------------------------------------------------------------------------


def framed(stored: bytes, plain: bytes, codec: int = 1) -> dict[str, Any]:
    header = FrameHeader(0, codec, len(plain), len(stored), digest_of(plain), 0)
    return {"chunks": [(0, plain)], "frames": [(codec, encode_frame(header) + stored)]}


def test_a_zstd_bomb_is_not_decoded() -> None:
    """A few kilobytes that declare 256 MiB."""
    bomb = zstandard.ZstdCompressor(level=3).compress(bytes(256 * 2**20))
    assert len(bomb) < 2**15
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(IntegrityError, match="declares 268435456 bytes instead of 16384"):
        read(Craft(CHUNK, **framed(bomb, text(CHUNK))))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 * 1024


def test_a_frame_without_a_declared_size() -> None:
    stream = zstandard.ZstdCompressor(write_content_size=False).compress(text(CHUNK))
    with pytest.raises(IntegrityError, match="declares"):
        read(Craft(CHUNK, **framed(stream, text(CHUNK))))


@pytest.mark.parametrize("junk", [b"", b"\0" * 20, noise(500)])
def test_frames_of_junk(junk: bytes) -> None:
    with pytest.raises(IntegrityError, match="chunk 0 is damaged"):
        read(Craft(CHUNK, **framed(junk, text(CHUNK))))


def test_a_raw_chunk_of_the_wrong_length() -> None:
    with pytest.raises(IntegrityError, match="100 bytes instead of 16384"):
        read(Craft(CHUNK, **framed(text(100), text(CHUNK), codec=0)))


def test_verify_tells_of_a_frame_header_that_contradicts_the_index() -> None:
    stored = text(CHUNK)
    header = FrameHeader(5, 0, CHUNK, CHUNK, digest_of(stored), 0)
    craft = Craft(CHUNK, chunks=[(0, stored)], frames=[(0, encode_frame(header) + stored)])
    catalog, info = only(craft)
    assert disk_bytes(catalog, info) == stored
    codes = {finding.code: finding.message for finding in verify_image(catalog, info).findings}
    assert "contradicts the index" in codes["chunk"]


# -- header and sections --------------------------------------------------------------------------


def header_with(**changes: Any) -> bytes:
    given: dict[str, Any] = {
        "image": Craft(0).image,
        "set": SET,
        "kind": Kind.FULL,
        "created": 10**18,
        "chunk_size": CHUNK,
        "sector_size": 512,
    }
    return encode_header(Header(**(given | changes)))


def with_header(data: bytes) -> Craft:
    return full_of(DATA, header_bytes=data, image=UUID(bytes=data[32:48]))


def test_an_unknown_incompatible_bit_is_refused() -> None:
    with pytest.raises(FormatError, match="unknown features") as caught:
        read(with_header(header_with(incompatible=1 << 17)))
    assert "newer" in caught.value.hint


def test_an_unknown_compatible_bit_is_ignored() -> None:
    assert read(with_header(header_with(compatible=2**64 - 1))) == DATA


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"chunk_size": 8192}, "chunk size"),
        ({"chunk_size": 3 * CHUNK}, "chunk size"),
        ({"chunk_size": 2**31}, "chunk size"),
        ({"chunk_size": 0}, "chunk size"),
        ({"sector_size": 0}, "sector size"),
        ({"sector_size": 513}, "sector size"),
        ({"kind": 0}, "kind"),
        ({"kind": 2}, "contradict"),
        ({"mode": 7}, "mode"),
        ({"digest": 2}, "digest"),
        ({"codec": 9}, "codec"),
    ],
)
def test_impossible_headers(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(FormatError, match=words):
        read(with_header(header_with(**changes)))


def facts_header(facts: bytes) -> bytes:
    """A header around any bytes in the place of its facts."""
    body = bytearray(header_with())
    fixed = body[: PREAMBLE.size + FIXED.size - 8]
    length = -(-(len(fixed) + 8 + len(facts) + 4) // 8) * 8
    fixed[12:16] = length.to_bytes(4, "little")
    data = bytes(fixed) + len(facts).to_bytes(4, "little") + bytes(4) + facts
    data = data.ljust(length - 4, b"\0")
    return data + zlib.crc32(data).to_bytes(4, "little")


@pytest.mark.parametrize(
    "facts",
    [
        b"[" * 20_000,
        b'{"a":' * 4_000 + b"1" + b"}" * 4_000,
        b"[]",
        b"1",
        b"",
        b"\xff\xfe",
        b'{"n":' + b"9" * 20_000 + b"}",
        b'{"open": ',
    ],
    ids=lambda value: repr(value[:12]),
)
def test_json_bombs(facts: bytes) -> None:
    with pytest.raises(FormatError, match="facts"):
        read(with_header(facts_header(facts)))


def test_facts_of_strange_shapes_do_not_disturb() -> None:
    for facts in ({"source": [1, 2]}, {"source": None}, {"tool": {"a": []}}, {"source": {"serial": 5}}):
        assert read(with_header(facts_header(json.dumps(facts).encode()))) == DATA


def test_an_unknown_section() -> None:
    assert read(full_of(DATA, sections={b"NEWS": (b"of no importance", 0)})) == DATA
    with pytest.raises(FormatError, match="unknown section"):
        read(full_of(DATA, sections={b"NEWS": (b"of importance", 1)}))


@pytest.mark.parametrize("type_", [HEADER_COPY, SUMMARY_TYPE, DIRECTORY, EXTENTS])
def test_a_missing_section(type_: bytes) -> None:
    data = bytes(CHUNK) + DATA
    with pytest.raises(FormatError):
        read(full_of(data, sections={type_: (None, 0)}))


@pytest.mark.parametrize("type_", [SUMMARY_TYPE, DIRECTORY, EXTENTS, RANGES, b"STND"])
@pytest.mark.parametrize("data", [b"x", noise(1000), bytes(17 * 5)], ids=["short", "noise", "zeros"])
def test_sections_of_junk(type_: bytes, data: bytes) -> None:
    """Sealed junk: reading or verifying names it, and nothing else happens."""
    try:
        catalog, info = only(full_of(DATA, sections={type_: (data, 1)}))
        found = verify_image(catalog, info, threads=1).findings
        assert [finding.code for finding in found if finding.severity == "error"]
        assert disk_bytes(catalog, info) == DATA  # only what reading does not need may be junk
    except FormatError:
        pass


def test_a_section_in_front_of_the_tail() -> None:
    """The summary must be within the last 64 KiB; padding between pushes it out."""
    with pytest.raises(FormatError, match="outside the tail"):
        read(full_of(DATA, sections={b"PADD": (bytes(70_000), 0), HEADER_COPY: (header_with(), 1)}))


# -- parents --------------------------------------------------------------------------------------


def parent_and_child(**changes: Any) -> Catalog:
    store = MemoryStore()
    full_of(DATA).put(store, "a.imagefs")
    child_of(scan(store).images[0], chunks=[(1, b"n" * CHUNK)], **changes).put(store, "b.imagefs")
    return scan(store)


def newest_of(catalog: Catalog) -> bytes:
    return disk_bytes(catalog, catalog.images[-1])


def test_a_child_reads_through_its_parent() -> None:
    assert newest_of(parent_and_child()) == DATA[:CHUNK] + b"n" * CHUNK + DATA[2 * CHUNK :]


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({"parent_seal": b"s" * 32}, "another seal"),
        ({"parent_view": b"v" * 32}, "another seal"),
        ({"chunk_size": 2 * CHUNK}, "another chunk or sector size"),
        ({"sector_size": 4096}, "another chunk or sector size"),
        ({"created": 10**18}, "made later"),
        ({"created": 1}, "made later"),
    ],
)
def test_the_wrong_parent(header: dict[str, Any], words: str) -> None:
    catalog = parent_and_child(header=header)
    child = next(info for info in catalog.images if info.header.parent)
    with pytest.raises(ChainError, match=words):
        disk_bytes(catalog, child)
    assert "chain" in {finding.code for finding in verify_image(catalog, child).findings}


def test_a_missing_parent() -> None:
    catalog = parent_and_child()
    assert isinstance(catalog.store, MemoryStore)
    del catalog.store.objects["a.imagefs"]
    catalog = scan(catalog.store)
    with pytest.raises(ChainError, match="is not in the set") as caught:
        newest_of(catalog)
    assert caught.value.data["image"] == catalog.images[0].id


def test_an_image_that_is_its_own_parent_and_rings() -> None:
    """Headers are made before seals are known, so a ring takes a lie in a seal, and ``created`` too."""
    store = MemoryStore()
    full_of(DATA).put(store)
    real = scan(store).images[0]
    one = child_of(real, header={})
    one.header = {"parent": one.image}
    one.put(store)
    catalog = scan(store)
    with pytest.raises(ChainError):
        disk_bytes(catalog, catalog.by_uuid[one.image])
    two = child_of(real, created=10**18 + 9, header={"parent": one.image})
    one.header = {"parent": two.image}
    one.put(store)
    two.put(store)
    catalog = scan(store)
    for craft in (one, two):
        info = catalog.by_uuid[craft.image]
        with pytest.raises(ChainError):
            disk_bytes(catalog, info)
        assert not verify_image(catalog, info).ok
        assert len(catalog.descendants(info)) == 2


def test_a_differential_on_an_incremental_is_refused() -> None:
    catalog = parent_and_child()
    assert isinstance(catalog.store, MemoryStore)
    child_of(catalog.images[-1], kind=Kind.DIFFERENTIAL, created=10**18 + 9).put(catalog.store)
    catalog = scan(catalog.store)
    with pytest.raises(ChainError, match="not a full image"):
        newest_of(catalog)


@pytest.mark.parametrize(("size", "chunks"), [(DATA[:-100], 3), (DATA + bytes(CHUNK), 5)])
def test_absent_chunks_past_the_parents_end(size: bytes, chunks: int) -> None:
    """Grown or shrunk, the child must bring every chunk that is not whole in both disks."""
    store = MemoryStore()
    full_of(DATA).put(store)
    parent = scan(store).images[0]
    child_of(parent, disk_size=len(size) - 1).put(store)
    catalog = scan(store)
    with pytest.raises(FormatError, match="past the parent's disk are missing"):
        newest_of(catalog)
    assert chunks == -(-len(size) // CHUNK)


# -- stands_for -----------------------------------------------------------------------------------


def merged(**changes: bytes) -> Catalog:
    """The parent is gone; another image says that it stands for it."""
    catalog = parent_and_child()
    assert isinstance(catalog.store, MemoryStore)
    parent = catalog.images[0]
    row = {"seal": parent.tail.seal, "view": parent.summary.view} | changes
    view = row.pop("own_view", parent.summary.view)
    del catalog.store.objects["a.imagefs"]
    substitute = full_of(DATA, stands_for=[StandsFor(parent.uuid, **row)], view=view)
    substitute.put(catalog.store, "c.imagefs")
    return scan(catalog.store)


def grandchild(catalog: Catalog) -> bytes:
    return disk_bytes(catalog, next(info for info in catalog.images if info.header.parent))


def test_an_image_that_stands_for_the_parent() -> None:
    assert grandchild(merged()) == DATA[:CHUNK] + b"n" * CHUNK + DATA[2 * CHUNK :]


@pytest.mark.parametrize("field", ["seal", "view", "own_view"])
def test_an_image_that_does_not_quite_stand_for_the_parent(field: str) -> None:
    with pytest.raises(ChainError, match="another seal"):
        grandchild(merged(**{field: b"z" * 32}))


def test_columns_are_not_writable() -> None:
    """What is cached is shared by threads, so nobody may change it."""
    catalog, info = only(full_of(DATA))
    rows = catalog.open_image(info).block(0)
    with pytest.raises(ValueError):
        rows.chunk_no[0] = np.uint64(9)
