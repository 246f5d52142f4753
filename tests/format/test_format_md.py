"""FORMAT.md is true: its vectors decode to the values beside them, and encode to the same bytes."""

from __future__ import annotations

import itertools
import re
import struct

import pytest
from blake3 import blake3

from imagefs.block.views import BytesReader
from imagefs.errors import ImagefsError
from imagefs.format import checkpoint, codec, extents, header, index, trailer
from imagefs.format.fields import MAX_CHUNK_SIZE, MAX_FACTS, MIN_CHUNK_SIZE, TAIL_SIZE
from imagefs.format.trailer import DIRECTORY, EXTENTS, FOOTER_SIZE, decode_footer, seal_of
from imagefs.image import chain, reader, writer
from imagefs.image.catalog import scan
from imagefs.image.reader import ImageReader
from imagefs.interfaces import State
from imagefs.ops.plan import CHUNK_SIZES, DEFAULT_LEVEL
from imagefs.ops.verify import verify_image
from imagefs.store import MemoryStore
from tests.format.vectors import DECODERS, ENCODERS, document, values, vectors, view_of

DISK = (
    (b"chunk zero packs well.\n" * 713)[:16384] + bytes(16384) + (b"the last chunk is short.\n" * 290)[:7232]
)


def test_there_is_a_vector_for_every_part() -> None:
    assert set(vectors()) == set(values()) == set(DECODERS)


@pytest.mark.parametrize("name", sorted(DECODERS))
def test_the_bytes_decode_to_the_values(name: str) -> None:
    told = values()[name]
    if name == "view":
        told = {key: value for key, value in told.items() if key != "digests"}
    assert DECODERS[name](vectors()[name]) == told


@pytest.mark.parametrize("name", sorted(ENCODERS))
def test_the_values_encode_to_the_bytes(name: str) -> None:
    assert ENCODERS[name](values()[name]) == vectors()[name]


@pytest.mark.parametrize("name", sorted(set(ENCODERS) - {"seal"}))
def test_every_byte_of_a_vector_counts(name: str) -> None:
    """A vector with any byte changed decodes to something else or to an error."""
    data = vectors()[name]
    for at in range(len(data)):
        changed = data[:at] + bytes([data[at] ^ 0x5A]) + data[at + 1 :]
        try:
            found = DECODERS[name](changed)
        except (ImagefsError, UnicodeDecodeError):
            continue
        assert found != values()[name], at


def test_what_the_zstd_frame_holds() -> None:
    data = vectors()["frame-zstd"]
    found = codec.decode_frame_header(data)
    plain = codec.decompress(found.codec, data[codec.FRAME_SIZE :], found.plain_length)
    assert plain == (b"This chunk packs well.\n" * 713)[:16384]


def test_the_view_digest() -> None:
    told = values()["view"]
    assert view_of(told).hex() == told["digest"] == blake3(vectors()["view"]).hexdigest()


def test_the_whole_image_reads_as_the_document_says() -> None:
    store = MemoryStore()
    store.objects["x.imagefs"] = vectors()["image"]
    catalog = scan(store)
    disk = catalog.open_disk(catalog.images[0])
    assert disk.read_at(0, disk.size) == DISK
    assert disk.view_digest() == catalog.images[0].summary.view
    assert verify_image(catalog, catalog.images[0], threads=1).findings == []


def test_the_writer_makes_the_same_image_of_the_same_frames() -> None:
    """All but what zstd made of the chunks comes out byte for byte."""
    image = vectors()["image"]
    old = ImageReader(BytesReader(image), "old")
    store = MemoryStore()
    made = writer.ImageWriter(store.create("new"), old.header, clock=lambda: 0.0)
    rows = old.block(0)
    for i, chunk_no in enumerate(rows.chunk_no.tolist()):
        if chunk_no > made.next_chunk:
            made.mark(State.ZERO, made.next_chunk, chunk_no - made.next_chunk)
        offset, length = int(rows.offset[i]), codec.FRAME_SIZE + int(rows.stored_length[i])
        frame = image[offset : offset + length]
        made.store(chunk_no, int(rows.codec[i]), frame, rows.digest[i].tobytes())
    made.finish(old.summary)
    assert store.objects["new"] == image


def test_the_read_algorithm_followed_by_hand() -> None:
    """Section 1 read with ``struct`` alone, as another program would."""
    image = vectors()["image"]
    table_at, table_length = struct.unpack_from("<QI", image, len(image) - 96 + 16)
    parts = {
        image[at : at + 4]: struct.unpack_from("<QQ", image, at + 8)
        for at in range(table_at, table_at + table_length, 64)
    }
    start, length = parts[EXTENTS]
    count = length // 17
    zeros = set()
    for i in range(count):
        first = int.from_bytes(image[start + 8 * i :][:8], "little")
        zeros |= set(range(first, first + int.from_bytes(image[start + 8 * (count + i) :][:8], "little")))
    block, _, rows = struct.unpack_from("<QII", image, parts[DIRECTORY][0] + 8)
    summary = parts[trailer.SUMMARY_TYPE][0]
    size = int.from_bytes(image[summary : summary + 8], "little")
    disk = bytearray(size)
    for i in range(rows):
        columns = block + 32
        number = int.from_bytes(image[columns + 8 * i :][:8], "little")
        offset = int.from_bytes(image[columns + 8 * (rows + i) :][:8], "little")
        stored = int.from_bytes(image[columns + 16 * rows + 4 * i :][:4], "little")
        digest = image[columns + 21 * rows + 32 * i :][:32]
        length = min(16384, size - number * 16384)
        plain = codec.decompress(image[columns + 20 * rows + i], image[offset + 64 :][:stored], length)
        assert blake3(plain).digest() == digest
        assert number not in zeros
        disk[number * 16384 : number * 16384 + length] = plain
    assert bytes(disk) == DISK


def test_the_seal_covers_header_and_table() -> None:
    image = vectors()["image"]
    footer = decode_footer(image[-FOOTER_SIZE:], len(image))
    head = image[: header.header_length(image)]
    table = image[footer.table_offset : -FOOTER_SIZE]
    assert vectors()["seal"] == seal_of(head, table) == blake3(head + table).digest() == footer.seal
    assert vectors()["footer"] == image[-FOOTER_SIZE:]


def tables() -> list[list[tuple[int, int]]]:
    """(offset, size) of the rows of every field table, where both are plain numbers."""
    found, rows = [], []
    sizes = {"u8": 1, "u16": 2, "u32": 4, "u64": 8}
    for line in document().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if not cells:
            if rows:
                found.append(rows)
            rows = []
        elif cells[0].isdigit() and (cells[1] in sizes or cells[1].isdigit()):
            rows.append((int(cells[0]), sizes.get(cells[1]) or int(cells[1])))
    return found


def test_the_fields_of_the_tables_follow_each_other() -> None:
    """No gap, no overlap, and together as long as the library's layout."""
    ends = set()
    for rows in tables():
        if rows[0] == (0, 1) or len(rows) < 2:
            continue
        for (offset, size), (after, _) in itertools.pairwise(rows):
            if after > offset:
                assert offset + size == after, rows
        ends.add(sum(rows[-1]))
    lengths = {
        header.PREAMBLE.size + header.FIXED.size,
        codec.FRAME_SIZE,
        index.BLOCK_HEADER,
        index.DIRECTORY_ENTRY.size,
        trailer.SUMMARY.size,
        trailer.SECTION.size,
        trailer.FOOTER_SIZE,
        checkpoint.CHECKPOINT_HEADER,
    }
    assert lengths <= ends


@pytest.mark.parametrize(
    ("words", "number"),
    [
        (r"from (\d+) to 28,672", -(-header.MIN_HEADER // 8) * 8),
        (r"from 216 to ([\d,]+)", header.MAX_HEADER),
        (r"at most ([\d,]+) \|\n\| 204", MAX_FACTS),
        (r"1 to ([\d,]+) rows, sorted", index.MAX_ROWS),
        (r"rows: n, at most ([\d,]+)", index.MAX_ROWS),
        (r"lie in the last (\d+) KiB", TAIL_SIZE // 1024),
        (r"a power of two from (\d+) KiB", MIN_CHUNK_SIZE // 1024),
        (r"to\n  (\d+) MiB; chunk `n`", MAX_CHUNK_SIZE // 2**20),
        (r"at most (\d+) rows; each type", trailer.MAX_SECTIONS),
        (r"chains of at most ([\d,]+)\nimages", chain.MAX_LAYERS),
        (r"index blocks of ([\d,]+) rows", writer.BLOCK_ROWS),
        (r"\(from ([\d,]+) where", writer.EARLY_ROWS),
        (r"sections of at most (\d+) GiB", reader.MAX_SECTION // 2**30),
        (r"(\d+) MiB of index blocks", reader.INDEX_CACHE // 2**20),
        (r"every (\d+) seconds", int(writer.CHECKPOINT_SECONDS)),
        (r"Defaults: chunks of (\d+) KiB", CHUNK_SIZES[-1][1] // 1024),
        (r"zstd level (\d+)\.", DEFAULT_LEVEL),
    ],
)
def test_the_numbers_in_the_prose(words: str, number: int) -> None:
    found = re.search(words, document())
    assert found, words
    assert int(found[1].replace(",", "")) == number


def test_the_states_are_those_of_the_library() -> None:
    rows = re.findall(
        r"^\| (\d) \| (\w+) \| .* \| (?:nowhere|index row|extents) \|$", document(), re.MULTILINE
    )
    assert {int(number): word for number, word in rows} == {s.value: s.name.lower() for s in State}
    assert extents.RUN_SIZE == 17
