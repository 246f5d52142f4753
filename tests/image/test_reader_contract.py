"""The Reader contract, run on images and chains of every shape, and on what they are read through."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from imagefs.block.readahead import ReadAhead
from imagefs.block.views import BytesReader, SliceReader
from imagefs.format.header import Kind
from imagefs.image.catalog import read_info, scan
from imagefs.image.disk import VirtualDisk
from imagefs.interfaces import ObjectStore, State
from imagefs.store import LocalStore, MemoryStore
from imagefs.store.local import LocalReader
from tests.support.images import (
    CHUNK,
    SET,
    Craft,
    capture_bytes,
    capture_stream,
    full_of,
    noise,
    plain_view_digest,
    text,
)
from tests.support.reader_contract import check_reader

MAKERS: dict[str, Callable[[ObjectStore, Path], bytes]] = {}
BASE = noise(3 * CHUNK, 1) + bytes(5 * CHUNK) + text(20 * CHUNK, 2) + bytes(100) + noise(4 * CHUNK - 100, 3)


def shape(make: Callable[[ObjectStore, Path], bytes]) -> Callable[[ObjectStore, Path], bytes]:
    MAKERS[make.__name__] = make
    return make


def change(data: bytes, *places: int, seed: int = 50) -> bytes:
    """``data`` with 700 new bytes at each place."""
    changed = bytearray(data)
    for place in places:
        changed[place : place + 700] = noise(700, seed + place)[: max(0, len(data) - place)]
    return bytes(changed)


def chain_of(store: ObjectStore, path: Path, *steps: bytes, **options: object) -> bytes:
    for step in steps:
        capture_bytes(store, step, path, **options)
    return steps[-1]


@shape
def shuffled_blocks(store: ObjectStore, path: Path) -> bytes:
    """Neighbouring chunks that lie in different layers, and in one layer in scattered places.

    A known library answers a read across such blocks short, and says nothing.
    """
    dice, disk = random.Random(4), bytearray(noise(64 * CHUNK, 9))
    capture_bytes(store, bytes(disk), path)
    for number in range(8):
        for chunk_no in dice.sample(range(64), 9):
            disk[chunk_no * CHUNK : (chunk_no + 1) * CHUNK] = noise(CHUNK, 1000 * number + chunk_no)
        for chunk_no in dice.sample(range(64), 3):
            disk[chunk_no * CHUNK : (chunk_no + 1) * CHUNK] = bytes(CHUNK)
        capture_bytes(store, bytes(disk), path)
    return bytes(disk)


@shape
def full(store: ObjectStore, path: Path) -> bytes:
    return chain_of(store, path, BASE)


@shape
def one_byte(store: ObjectStore, path: Path) -> bytes:
    return chain_of(store, path, b"x")


@shape
def all_zero(store: ObjectStore, path: Path) -> bytes:
    return chain_of(store, path, bytes(7 * CHUNK + 5))


@shape
def odd_size(store: ObjectStore, path: Path) -> bytes:
    return chain_of(store, path, BASE + b"odd")


@shape
def incrementals(store: ObjectStore, path: Path) -> bytes:
    one = change(BASE, 0, 5 * CHUNK)
    two = change(one, 7 * CHUNK - 300, 31 * CHUNK)
    return chain_of(store, path, BASE, one, two, change(two, 5 * CHUNK))


@shape
def differential(store: ObjectStore, path: Path) -> bytes:
    chain_of(store, path, BASE, change(BASE, 900), change(BASE, 60_000))
    last = change(BASE, 60_000, 400_000)
    capture_bytes(store, last, path, kind=Kind.DIFFERENTIAL)
    return last


@shape
def became_zero(store: ObjectStore, path: Path) -> bytes:
    return chain_of(store, path, BASE, BASE[: 2 * CHUNK] + bytes(len(BASE) - 2 * CHUNK))


@shape
def unchanged(store: ObjectStore, path: Path) -> bytes:
    return chain_of(store, path, BASE, BASE, BASE)


@shape
def grown(store: ObjectStore, path: Path) -> bytes:
    odd = BASE[: 9 * CHUNK + 77]
    return chain_of(store, path, odd, odd + noise(3 * CHUNK, 8), odd + noise(3 * CHUNK, 8) + bytes(9 * CHUNK))


@shape
def shrunk_and_grown(store: ObjectStore, path: Path) -> bytes:
    """Through a small disk in the middle nothing of the old end may come back."""
    chain_of(store, path, BASE)
    for size in (4 * CHUNK + 9, 2 * CHUNK):
        capture_stream(store, BASE[:size], path.parent)
    last = BASE[: 2 * CHUNK] + bytes(6 * CHUNK) + b"end"
    capture_stream(store, last, path.parent)
    return last


@shape
def skipped_and_unreadable(store: ObjectStore, path: Path) -> bytes:
    """States that capture does not make yet, in layers by hand."""
    assert isinstance(store, MemoryStore | LocalStore)
    data = noise(2 * CHUNK, 1) + bytes(4 * CHUNK) + noise(CHUNK, 2) + bytes(10)
    states = {2: State.SKIPPED, 3: State.UNREADABLE, 4: State.ZERO, 5: State.SKIPPED, 7: State.UNREADABLE}
    chunks = [(n, data[n * CHUNK : (n + 1) * CHUNK]) for n in (0, 1, 6)]
    Craft(len(data), chunks=chunks, extents=[(n, 1, s) for n, s in states.items()]).put_into(store)
    parent = scan(store).images[0]
    child = Craft(
        len(data), Kind.INCREMENTAL, parent=parent, created=10**18 + 1, extents=[(1, 1, 3), (5, 1, 2)]
    )
    child.put_into(store)
    return data[:CHUNK] + bytes(CHUNK) + data[2 * CHUNK :]


@pytest.fixture(params=["memory", "local"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param == "memory":
        return MemoryStore()
    made = LocalStore(tmp_path / "set", suffix=".imagefs")
    made.make()
    return made


@pytest.fixture(params=MAKERS)
def disk(
    request: pytest.FixtureRequest, store: ObjectStore, tmp_path: Path
) -> Iterator[tuple[VirtualDisk, bytes]]:
    data = MAKERS[request.param](store, tmp_path / "disk")
    catalog = scan(store)
    opened = catalog.open_disk(catalog.images[-1])
    yield opened, data
    opened.close()


def test_virtual_disk(disk: tuple[VirtualDisk, bytes]) -> None:
    check_reader(*disk)


def test_virtual_disk_with_a_cache_of_two_chunks(store: ObjectStore, tmp_path: Path) -> None:
    data = shuffled_blocks(store, tmp_path / "disk")
    catalog = scan(store)
    check_reader(catalog.open_disk(catalog.images[-1], cache_bytes=2 * CHUNK), data, rounds=60)


def test_read_ahead(disk: tuple[VirtualDisk, bytes]) -> None:
    check_reader(ReadAhead(disk[0]), disk[1], rounds=100)


def test_partition_slice(disk: tuple[VirtualDisk, bytes]) -> None:
    whole, data = disk
    start, length = min(CHUNK + 512, len(data)), len(data) // 2
    check_reader(SliceReader(whole, start, length), data[start : start + length], rounds=60)


def test_readers_of_the_stores(tmp_path: Path) -> None:
    path = tmp_path / "object"
    path.write_bytes(BASE)
    check_reader(LocalReader(path), BASE)
    check_reader(BytesReader(BASE), BASE)
    store = MemoryStore()
    store.objects["a"] = BASE
    check_reader(store.open("a"), BASE)


def test_states_and_digests_agree_with_the_view(disk: tuple[VirtualDisk, bytes]) -> None:
    """Asked chunk by chunk, in groups, or as extents, the view is the same."""
    whole, data = disk
    count = -(-len(data) // CHUNK)
    states, digests = whole.states_and_digests(0, count)
    for number in range(count):
        alone, digest = whole.states_and_digests(number, 1)
        assert alone[0] == states[number]
        assert bytes(digest[0]) == bytes(digests[number])
        assert whole.run_of(number).state == states[number]
    stored = sum(extent.length for extent in whole.extents(0, len(data)) if extent.state is State.STORED)
    sizes = [min(CHUNK, len(data) - n * CHUNK) for n in range(count)]
    assert stored == sum(size for size, state in zip(sizes, states, strict=True) if state == State.STORED)


def test_the_view_digest_is_that_of_the_plain_bytes(disk: tuple[VirtualDisk, bytes]) -> None:
    whole, data = disk
    summary = whole.chain.leaf.summary
    if summary.view != bytes(32):  # the layers made by hand have none
        assert whole.view_digest() == summary.view == plain_view_digest(data)


def test_a_thousand_layers(tmp_path: Path) -> None:
    """One chunk changes in each; whichever image is asked, one look-up finds the layer."""
    store, data = MemoryStore(), bytearray(text(40 * CHUNK))
    full_of(bytes(data), header={"set": SET}).put(store)
    parent = scan(store).images[0]
    for number in range(1, 1001):
        chunk_no = number * 7 % 40
        piece = number.to_bytes(4, "big") * (CHUNK // 4)
        data[chunk_no * CHUNK : (chunk_no + 1) * CHUNK] = piece
        craft = Craft(
            len(data),
            Kind.INCREMENTAL,
            chunks=[(chunk_no, piece)],
            parent=parent,
            created=10**18 + number,
        )
        name = craft.put(store, f"{number:04}.imagefs")
        parent = read_info(store, name)
    catalog = scan(store)
    disk = catalog.open_disk(catalog.images[-1])
    assert len(disk.chain.layers) == 1001
    assert len(disk.chain.table) <= 40
    check_reader(disk, bytes(data), rounds=50)
