"""Flip sweep: each byte of header, index, sections and footer, a sample of the payload, and every
truncation: never wrong bytes, always the named error, and verify says so without raising.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from imagefs.errors import ChainError, FormatError, ImagefsError, IntegrityError
from imagefs.format.codec import FRAME_SIZE
from imagefs.image.catalog import Catalog, scan
from imagefs.image.reader import ImageReader
from imagefs.ops.verify import Verifier, verify_image
from imagefs.store import MemoryStore
from tests.support.images import CHUNK, capture_bytes, disk_bytes, noise, text

NAMED = (FormatError, IntegrityError, ChainError)
FULL = text(2 * CHUNK) + bytes(2 * CHUNK) + noise(CHUNK + 300)
CHILD = FULL[:CHUNK] + noise(CHUNK, 5) + text(CHUNK, 6) + bytes(CHUNK) + FULL[4 * CHUNK :]


class Chain:
    """Two images in a store; ``with_bytes`` puts other bytes in the place of one."""

    def __init__(self, folder: Path) -> None:
        self.store = MemoryStore()
        capture_bytes(self.store, FULL, folder / "disk", note="flip")
        capture_bytes(self.store, CHILD, folder / "disk")
        self.catalog = scan(self.store)
        self.names = [info.name for info in self.catalog.images]
        self.readers = [ImageReader(self.store.open(name), name) for name in self.names]
        self.images = [self.store.objects[name] for name in self.names]

    def with_bytes(self, number: int, data: bytes) -> MemoryStore:
        store = MemoryStore()
        store.objects = self.store.objects | {self.names[number]: data}
        return store


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    return Chain(tmp_path_factory.mktemp("flip"))


def payload(chain: Chain, number: int) -> set[int]:
    """The places of an image that are stored bytes of frames."""
    rows = chain.readers[number].block(0)
    found: set[int] = set()
    for offset, length in zip(rows.offset.tolist(), rows.stored_length.tolist(), strict=True):
        found |= set(range(offset + FRAME_SIZE, offset + FRAME_SIZE + length))
    return found


def frame_headers(chain: Chain, number: int) -> set[int]:
    found: set[int] = set()
    for offset in chain.readers[number].block(0).offset.tolist():
        found |= set(range(offset, offset + FRAME_SIZE))
    return found


def read_all(store: MemoryStore) -> bytes | None:
    """The bytes of the child, or None where a named error says why not. Any other error escapes."""
    catalog = scan(store)
    assert all(isinstance(error, NAMED) for _, error in catalog.damaged)
    leaf = [info for info in catalog.images if info.header.parent is not None]
    if not leaf:
        assert catalog.damaged
        return None
    try:
        return disk_bytes(catalog, leaf[0])
    except NAMED:
        return None


def findings_of(store: MemoryStore, level: str = "data") -> list[str]:
    """What verify of the whole set has to say."""
    catalog = scan(store)
    verifier = Verifier(catalog, level=level, threads=1)
    for info, error in catalog.damaged:
        verifier.damaged(info.name, error)
    for info in catalog.images:
        verifier.verify(info)
    return [finding.code for finding in verifier.report.findings]


@pytest.mark.parametrize("number", [0, 1], ids=["full", "child"])
def test_every_byte_that_is_not_payload(chain: Chain, number: int) -> None:
    image, heads = chain.images[number], frame_headers(chain, number)
    body = payload(chain, number)
    for at in range(len(image)):
        if at in body:
            continue
        store = chain.with_bytes(number, flipped(image, at, 1 << at % 8))
        # A frame header repeats what the index says, so reading does not need it.
        assert read_all(store) == (CHILD if at in heads else None), at


@pytest.mark.parametrize("number", [0, 1], ids=["full", "child"])
def test_a_sample_of_the_payload(chain: Chain, number: int) -> None:
    image, harmless = chain.images[number], 0
    places = sorted(payload(chain, number))
    for at in places[:40] + places[40::211] + places[-40:]:
        store = chain.with_bytes(number, flipped(image, at, 0x10))
        assert read_all(store) in (None, CHILD), at
        if "chunk" not in findings_of(store):
            # zstd leaves some bits of its frame header unused: the chunk is still what it was.
            catalog = scan(store)
            assert disk_bytes(catalog, catalog.images[number]) == (FULL, CHILD)[number], at
            harmless += 1
    assert harmless < 5


def test_verify_finds_every_flipped_byte(chain: Chain) -> None:
    for number, image in enumerate(chain.images):
        skip = payload(chain, number)
        for at in [at for at in range(len(image)) if at not in skip][::7]:
            store = chain.with_bytes(number, flipped(image, at, 0x80))
            assert findings_of(store), (number, at)


@pytest.mark.parametrize("number", [0, 1], ids=["full", "child"])
def test_every_truncation(chain: Chain, number: int) -> None:
    image = chain.images[number]
    rows = chain.readers[number].block(0)
    borders = {0, 1, 31, 32, 215, len(image) - 96, len(image) - 1}
    borders |= set(rows.offset.tolist()) | {entry.offset for entry in chain.readers[number].directory}
    borders |= {part.offset for part in chain.readers[number].tail.sections.values()}
    for length in {near for border in borders for near in (border - 1, border, border + 1)} | set(
        range(0, len(image), 401)
    ):
        if 0 <= length < len(image):
            store = chain.with_bytes(number, image[:length])
            assert read_all(store) is None, length
            assert findings_of(store, "quick"), length


def test_bytes_added_at_the_end(chain: Chain) -> None:
    store = chain.with_bytes(0, chain.images[0] + b"\0")
    assert read_all(store) is None
    assert findings_of(store)


def test_stretches_lost_to_zeros(chain: Chain) -> None:
    """What a file system leaves that lost blocks: whole sectors of zeros."""
    for number, image in enumerate(chain.images):
        for start in range(0, len(image), 512):
            store = chain.with_bytes(number, image[:start] + bytes(512) + image[start + 512 :])
            assert read_all(store) in (None, CHILD), (number, start)


def test_an_image_that_changes_after_the_set_was_read(chain: Chain) -> None:
    """A catalog in hand, the file damaged behind its back: a finding, not an exception."""
    for number, image in enumerate(chain.images):
        for length in (0, 40, len(image) // 2, len(image) - 1):
            catalog = Catalog(chain.with_bytes(number, image[:length]), chain.catalog.images, (), ())
            report = verify_image(catalog, catalog.images[1], threads=1)
            assert not report.ok, (number, length)


def test_findings_name_image_chunk_and_range(chain: Chain) -> None:
    reader = chain.readers[0]
    rows = reader.block(0)
    at = int(rows.offset[1]) + FRAME_SIZE + 5
    catalog = scan(chain.with_bytes(0, flipped(chain.images[0], at, 1)))
    report = verify_image(catalog, catalog.images[0], threads=1)
    chunks = [finding for finding in report.findings if finding.code == "chunk"]
    assert [(found.image, found.chunk, found.offset, found.length) for found in chunks] == [
        (reader.id, 1, CHUNK, CHUNK)
    ]
    assert chain.names[0] in chunks[0].message


def test_verify_never_stops_at_the_first(chain: Chain) -> None:
    rows = chain.readers[0].block(0)
    image = chain.images[0]
    for offset in rows.offset.tolist():
        image = flipped(image, offset + FRAME_SIZE + 9, 2)
    catalog = scan(chain.with_bytes(0, image))
    report = verify_image(catalog, catalog.images[1], threads=2)
    assert sorted(found.chunk for found in report.findings if found.code == "chunk") == rows.chunk_no.tolist()


def test_a_set_in_order_has_nothing_to_say(chain: Chain) -> None:
    assert findings_of(chain.store) == []
    assert read_all(chain.store) == CHILD


def flipped(data: bytes, at: int, bits: int) -> bytes:
    return data[:at] + bytes([data[at] ^ bits]) + data[at + 1 :]


def test_the_errors_are_what_the_command_line_knows() -> None:
    assert all(issubclass(kind, ImagefsError) for kind in NAMED)
