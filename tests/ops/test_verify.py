"""Verify: what it says of sound and broken sets, and ``compare`` against another disk.

Damage byte by byte is in tests/image/test_flip_sweep.py.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagefs.block.views import BytesReader
from imagefs.errors import IntegrityError, SourceError, StoreError
from imagefs.format.codec import FRAME_SIZE
from imagefs.image.catalog import Catalog, ImageInfo, scan
from imagefs.interfaces import Finding, State
from imagefs.ops.verify import MAX_FINDINGS, Verifier, VerifyReport, compare, verify_image
from imagefs.store import MemoryStore
from tests.support.images import CHUNK, Craft, capture_bytes, full_of, noise, text

DATA = noise(4 * CHUNK) + bytes(2 * CHUNK) + text(3 * CHUNK) + noise(600, 2)


@pytest.fixture
def store(tmp_path: Path) -> MemoryStore:
    """A full image and three incrementals."""
    made = MemoryStore()
    for number in range(4):
        data = bytearray(DATA)
        data[number * CHUNK : number * CHUNK + 10] = noise(10, 70 + number)
        capture_bytes(made, bytes(data), tmp_path / "disk")
    return made


def break_chunk(store: MemoryStore, info: ImageInfo, row: int = 0) -> int:
    """Flip a bit in the stored bytes of a row; gives its chunk_no."""
    rows = scan(store).open_image(info).block(0)
    data = bytearray(store.objects[info.name])
    data[int(rows.offset[row]) + FRAME_SIZE + 30] ^= 4
    store.objects[info.name] = bytes(data)
    return int(rows.chunk_no[row])


def verified(store: MemoryStore, number: int = -1, level: str = "data") -> tuple[Catalog, VerifyReport]:
    catalog = scan(store)
    return catalog, verify_image(catalog, catalog.images[number], level=level, threads=2)


@pytest.mark.parametrize("level", ["quick", "data"])
def test_a_sound_chain(store: MemoryStore, level: str) -> None:
    catalog, report = verified(store, level=level)
    assert report.ok
    assert report.findings == []
    assert report.level == level
    assert report.images == [info.id for info in reversed(catalog.images)]


def test_damage_in_a_layer_is_found_from_every_child(store: MemoryStore) -> None:
    catalog = scan(store)
    chunk_no = break_chunk(store, catalog.images[0], 2)
    for number in range(4):
        _, report = verified(store, number)
        (found,) = report.findings
        assert (found.code, found.image, found.chunk) == ("chunk", catalog.images[0].id, chunk_no)
        assert (found.offset, found.length) == (chunk_no * CHUNK, CHUNK)
        assert not report.ok


def test_damage_in_a_child_does_not_concern_its_parent(store: MemoryStore) -> None:
    break_chunk(store, scan(store).images[3])
    assert verified(store, 2)[1].ok
    assert not verified(store, 3)[1].ok


def test_quick_reads_no_chunk(store: MemoryStore) -> None:
    break_chunk(store, scan(store).images[0])
    assert verified(store, level="quick")[1].ok


def test_a_layer_shared_by_several_images_is_looked_at_once(store: MemoryStore) -> None:
    catalog = scan(store)
    break_chunk(store, catalog.images[0])
    verifier = Verifier(scan(store), threads=1)
    for info in reversed(catalog.images):
        verifier.verify(info)
    assert sorted(verifier.report.images) == sorted(info.id for info in catalog.images)
    assert len(verifier.report.findings) == 1


def test_a_missing_parent_is_a_finding(store: MemoryStore) -> None:
    catalog = scan(store)
    del store.objects[catalog.images[1].name]
    _, report = verified(store)
    assert [finding.code for finding in report.findings if finding.image == catalog.images[2].id] == ["chain"]
    assert any("cannot be resolved" in finding.message for finding in report.findings)
    assert verified(store, 0)[1].ok


def test_an_object_that_vanishes_meanwhile_is_a_finding(store: MemoryStore) -> None:
    catalog = scan(store)
    del store.objects[catalog.images[-1].name]
    report = verify_image(catalog, catalog.images[-1])
    assert [finding.code for finding in report.findings][:1] == ["store"]


def test_a_wrong_view_digest() -> None:
    store = MemoryStore()
    full_of(DATA, view=b"v" * 32).put(store)
    assert [finding.code for finding in verified(store)[1].findings] == ["view"]
    assert verified(store, level="quick")[1].ok


def test_a_store_that_fails_in_the_middle() -> None:
    """A disk that gives an error for two chunks: findings, and the rest is still looked at."""
    store = MemoryStore()
    full_of(noise(12 * CHUNK)).put(store)
    broken_row = 9
    break_chunk(store, scan(store).images[0], broken_row)
    catalog = scan(store)
    rows = catalog.open_image(catalog.images[0]).block(0)
    bad = {int(rows.offset[1]), int(rows.offset[3])}

    class Failing(BytesReader):
        def read_at(self, offset: int, length: int, /) -> bytes:
            if any(offset <= place < offset + length for place in bad):
                raise StoreError("Input/output error")
            return super().read_at(offset, length)

    class Scratched(MemoryStore):
        def open(self, name: str, /) -> BytesReader:
            return Failing(self.objects[name]) if name == catalog.images[0].name else super().open(name)

    scratched = Scratched()
    scratched.objects = store.objects
    broken = Catalog(scratched, catalog.images, (), ())
    report = verify_image(broken, catalog.images[0], threads=1)
    chunks = [(finding.code, finding.chunk) for finding in report.findings if finding.chunk is not None]
    assert chunks == [("unreadable", 1), ("unreadable", 3), ("chunk", broken_row)]


def test_damaged_objects_of_a_set_are_told() -> None:
    verifier = Verifier(scan(MemoryStore()))
    verifier.damaged("x.imagefs", IntegrityError("x.imagefs: the seal does not match"))
    (found,) = verifier.report.findings
    assert (found.severity, found.code, found.image) == ("error", "integrity", "x.imagefs")


def test_findings_are_bounded() -> None:
    report = VerifyReport("data")
    for number in range(MAX_FINDINGS + 7):
        report.add(Finding("error", "chunk", str(number)))
    assert len(report.findings) == MAX_FINDINGS
    assert report.dropped == 7


def test_notes_and_warnings_do_not_make_an_image_bad() -> None:
    report = VerifyReport("data", findings=[Finding("warning", "a", ""), Finding("note", "b", "")])
    assert report.ok


def test_progress_counts_the_stored_bytes(store: MemoryStore) -> None:
    class Counting:
        total, count = 0, 0

        def start(self, label: str, total: int | None, /) -> None:
            Counting.total = total or 0

        def advance(self, count: int, /) -> None:
            Counting.count += count

        def note(self, message: str, /) -> None:
            pass

    catalog = scan(store)
    verify_image(catalog, catalog.images[-1], progress=Counting())
    headers = FRAME_SIZE * sum(info.summary.stored for info in catalog.images)
    assert Counting.total == sum(info.summary.frame_bytes for info in catalog.images)
    assert Counting.total - headers <= Counting.count <= Counting.total


# -- against a source -----------------------------------------------------------------------------


def differences(one: bytes, other: bytes) -> list[tuple[int, int]]:
    found = list(compare(BytesReader(one), BytesReader(other), image="i", name="other", threads=2))
    assert all(finding.code in ("differs", "size") for finding in found)
    return [(f.offset or 0, f.length or 0) for f in found if f.code == "differs"]


def test_equal_disks() -> None:
    assert differences(DATA, DATA) == []
    assert differences(b"", b"") == []


def test_every_range_is_told() -> None:
    other = bytearray(DATA)
    for place in (0, 5000, 5600, 90_000, len(DATA) - 1):
        other[place] ^= 1
    tail = len(DATA) // 512 * 512
    assert differences(DATA, bytes(other)) == [
        (0, 512),
        (4608, 1024),
        (90_000 // 512 * 512, 512),
        (tail, len(DATA) - tail),
    ]


def test_ranges_are_joined_across_the_pieces_that_are_read() -> None:
    one = noise(5 * 2**20)
    other = one[:1000] + bytes(4 * 2**20) + one[1000 + 4 * 2**20 :]
    assert differences(one, other) == [(512, (1000 + 4 * 2**20 + 511) // 512 * 512 - 512)]


@given(st.sets(st.integers(0, 40_000), max_size=12), st.integers(1, 40_001))
@settings(max_examples=40)
def test_against_a_model(places: set[int], size: int) -> None:
    one = noise(size)
    other = bytearray(one)
    for place in places:
        if place < size:
            other[place] ^= 0xFF
    sectors = {place // 512 for place in places if place < size}
    found = differences(one, bytes(other))
    told = {
        sector for offset, length in found for sector in range(offset // 512, -(-(offset + length) // 512))
    }
    assert told == sectors
    assert all(a[0] + a[1] < b[0] for a, b in itertools.pairwise(found)), "joined and in order"


def test_another_size_is_told_and_the_rest_compared() -> None:
    found = list(compare(BytesReader(DATA), BytesReader(DATA[:-5]), image="i", name="/dev/sdx"))
    assert [finding.code for finding in found] == ["size"]
    assert "/dev/sdx" in found[0].message


def test_skipped_and_unreadable_ranges_are_not_compared() -> None:
    store = MemoryStore()
    Craft(
        4 * CHUNK,
        chunks=[(0, text(CHUNK))],
        extents=[(1, 1, int(State.SKIPPED)), (2, 1, int(State.UNREADABLE)), (3, 1, int(State.ZERO))],
    ).put(store)
    catalog = scan(store)
    disk = catalog.open_disk(catalog.images[0])
    other = text(CHUNK) + noise(2 * CHUNK) + bytes(CHUNK - 1) + b"!"
    found = list(compare(disk, BytesReader(other), image="i", name="other"))
    assert [(finding.offset, finding.length) for finding in found] == [(4 * CHUNK - 512, 512)]


def test_a_source_that_fails_is_a_finding_and_the_rest_is_compared() -> None:
    data = noise(4 * 2**20)

    class Failing(BytesReader):
        def read_at(self, offset: int, length: int, /) -> bytes:
            if offset <= 2**20 < offset + length:
                raise SourceError("bad sector")
            return super().read_at(offset, length)

    other = data[:-1] + bytes([data[-1] ^ 1])
    found = list(compare(BytesReader(data), Failing(other), image="i", name="other", threads=1))
    assert [finding.code for finding in found] == ["source", "differs"]
