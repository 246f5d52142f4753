"""What the disks of one set share: nothing that two images have in common is read or decoded twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from imagefs.errors import StoreError
from imagefs.image.catalog import Catalog, scan
from imagefs.image.shared import Shared
from imagefs.store import MemoryStore
from tests.support.counting import CountingStore, DictCache
from tests.support.images import CHUNK, capture_bytes, noise

CHUNKS = 40


@pytest.fixture
def counted(tmp_path: Path) -> tuple[CountingStore, Catalog, list[bytes]]:
    """A full image and three incrementals, each with one more chunk changed; the last chunk is short."""
    store, disks = MemoryStore(), [noise(CHUNKS * CHUNK - 4608)]
    for number in range(3):
        disk = bytearray(disks[-1])
        disk[number * CHUNK : (number + 1) * CHUNK] = noise(CHUNK, seed=number + 2)
        disks.append(bytes(disk))
    for disk in disks:
        capture_bytes(store, disk, tmp_path / "disk")
    counting = CountingStore(store)
    return counting, scan(counting), disks


def test_what_two_images_share_is_read_once(counted: tuple[CountingStore, Catalog, list[bytes]]) -> None:
    store, catalog, disks = counted
    shared = Shared()
    first = catalog.open_disk(catalog.images[0], shared=shared)
    assert first.read_at(0, first.size) == disks[0]
    store.forget()
    others = [catalog.open_disk(info, shared=shared) for info in catalog.images[1:]]
    for disk, expected in zip(others, disks[1:], strict=True):
        assert disk.read_at(0, disk.size) == expected
    # The full image is open already; of each child one chunk is its own.
    assert store.opened == [info.name for info in catalog.images[1:]]
    assert not [read for read in store.reads if read[0] == catalog.images[0].name]
    assert sum(length == CHUNK for _, _, length in store.reads) == 3  # noise is stored as it is
    for disk in (first, *others):
        disk.close()
    assert shared.opened == 0


def test_what_is_closed_is_closed_for_one_alone(
    counted: tuple[CountingStore, Catalog, list[bytes]],
) -> None:
    _, catalog, disks = counted
    shared = Shared(chunk_bytes=CHUNK)  # nearly nothing stays in memory
    older, newer = (catalog.open_disk(info, shared=shared) for info in catalog.images[1:3])
    assert shared.opened == 3  # all that a table needed
    newer.close()
    newer.close()
    with pytest.raises(StoreError):
        newer.read_at(0, 1)
    assert older.read_at(0, older.size) == disks[1]
    older.close()
    assert shared.opened == 0


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]])
def test_a_table_laid_over_the_parents_is_the_one_resolved_afresh(
    counted: tuple[CountingStore, Catalog, list[bytes]], order: list[int]
) -> None:
    _, catalog, disks = counted
    shared = Shared()
    opened = {number: catalog.open_disk(catalog.images[number], shared=shared) for number in order}
    for number, disk in opened.items():
        alone = catalog.open_disk(catalog.images[number])
        assert disk.view_digest() == alone.view_digest() == catalog.images[number].summary.view
        assert list(disk.runs()) == list(alone.runs())
        assert disk.read_at(0, disk.size) == disks[number]
        alone.close()
        disk.close()


def test_a_child_of_an_open_disk_reads_no_index_but_its_own(
    counted: tuple[CountingStore, Catalog, list[bytes]],
) -> None:
    store, catalog, _ = counted
    shared = Shared()
    parent = catalog.open_disk(catalog.images[2], shared=shared)
    store.forget()
    child = catalog.open_disk(catalog.images[3], shared=shared)
    assert set(store.opened) == {name for name, _, _ in store.reads} == {catalog.images[3].name}
    child.close()
    parent.close()


def test_the_kept_table_comes_first(counted: tuple[CountingStore, Catalog, list[bytes]]) -> None:
    store, _, disks = counted
    cache = DictCache()
    catalog = scan(store, cache=cache)
    catalog.open_disk(catalog.images[2]).close()
    kept = len(cache.puts)
    shared = Shared()
    disk = catalog.open_disk(catalog.images[2], shared=shared)
    assert disk.read_at(0, disk.size) == disks[2]
    assert len(cache.puts) == kept
    disk.close()
