"""What is kept of a set for the next time: it changes nothing but the work, and nothing of it is trusted."""

from __future__ import annotations

import struct
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imagefs.errors import ChainError, ImagefsError, IntegrityError
from imagefs.format.codec import digest_of
from imagefs.format.header import Kind
from imagefs.image import derived
from imagefs.image.catalog import Catalog, ImageInfo, read_info, scan
from imagefs.image.derived import TailMemory, keep_table, load_table
from imagefs.image.runs import RunTable
from imagefs.interfaces import ObjectInfo, State
from imagefs.store import MemoryStore
from tests.support.counting import CountingStore, DictCache
from tests.support.images import CHUNK, Craft, disk_bytes, full_of, noise, text

CHUNKS = 24
LAYERS = 12


def chain_of(layers: int = LAYERS) -> tuple[MemoryStore, bytes]:
    """A full image and incrementals on it, each with one new chunk and one that became zero."""
    store, data = MemoryStore(), bytearray(text(CHUNKS * CHUNK))
    full_of(bytes(data)).put(store, "0000.imagefs")
    parent = read_info(store, "0000.imagefs")
    for number in range(1, layers):
        new, gone = number * 5 % CHUNKS, number * 7 % CHUNKS
        pieces = {gone: bytes(CHUNK), new: noise(CHUNK, number)}
        for at, piece in pieces.items():
            data[at * CHUNK : (at + 1) * CHUNK] = piece
        extents = [] if gone == new else [(gone, 1, 2)]
        made = {"chunks": [(new, pieces[new])], "extents": extents, "created": 10**18 + number}
        craft = Craft(len(data), Kind.INCREMENTAL, parent=parent, **made)
        parent = read_info(store, craft.put(store, f"{number:04}.imagefs"))
    return store, bytes(data)


def opened(catalog: Catalog) -> bytes:
    return disk_bytes(catalog, catalog.images[-1])


def signed(body: bytes) -> bytes:
    return body + digest_of(body)


# -- the same, with less work ---------------------------------------------------------------------


def test_with_and_without_a_cache_everything_is_the_same() -> None:
    store, data = chain_of()
    cache = DictCache()
    plain = scan(store)
    for _ in range(3):
        catalog = scan(store, cache=cache)
        assert catalog.images == plain.images
        for info in catalog.images:
            disk, bare = catalog.open_disk(info), plain.open_disk(info)
            assert list(disk.runs()) == list(bare.runs())
            assert disk.read_at(0, disk.size) == bare.read_at(0, bare.size)
            disk.close()
            bare.close()
    assert opened(scan(store, cache=cache)) == data


def test_a_second_look_at_a_set_opens_nothing() -> None:
    store = CountingStore(chain_of()[0])
    cache = DictCache()
    scan(store, cache=cache)
    assert len(store.opened) == len(store.reads) == LAYERS
    store.forget()
    assert len(scan(store, cache=cache).images) == LAYERS
    assert store.opened == []


def test_a_chain_that_was_opened_before_opens_its_leaf_and_then_what_is_read() -> None:
    store = CountingStore(chain_of()[0])
    cache = DictCache()
    catalog = scan(store, cache=cache)
    catalog.open_disk(catalog.images[-1]).close()
    assert len(store.opened) == 2 * LAYERS
    store.forget()
    disk = scan(store, cache=cache).open_disk(catalog.images[-1])
    assert store.opened == [catalog.images[-1].name]
    at = next(run for run in disk.runs() if run.layer == 4 and run.state is State.STORED)
    disk.read_at(at.first * CHUNK, 10)
    assert store.opened == [catalog.images[-1].name, catalog.images[4].name]
    disk.close()


def test_opening_the_first_time_reads_each_layer_once_and_no_tail_again() -> None:
    store = CountingStore(chain_of()[0])
    catalog = scan(store)
    store.forget()
    catalog.open_disk(catalog.images[-1]).close()
    assert sorted(store.opened) == [info.name for info in catalog.images]
    whole = sum(info.tail.size for info in catalog.images)
    assert store.bytes_read() < whole / 10, "neither frames nor 64 KiB of each end"


def test_a_full_image_needs_no_table() -> None:
    store, cache = chain_of(1)[0], DictCache()
    catalog = scan(store, cache=cache)
    catalog.open_disk(catalog.images[0]).close()
    assert [name for name in cache.kept if name.endswith(".chain")] == []


# -- what may have changed since ------------------------------------------------------------------


@pytest.mark.parametrize("change", ["name", "size", "mtime_ns", "inode"])
def test_an_object_that_is_another_is_read_again(change: str) -> None:
    found = ObjectInfo("a", 1000, 10**18, 7)
    store, _ = chain_of(1)
    tail = read_info(store, "0000.imagefs").tail
    found = replace(found, size=tail.size)
    cache = DictCache()
    memory = TailMemory(cache, "here")
    memory.add(found, tail)
    memory.keep()
    assert TailMemory(cache, "here").get(found) == tail
    assert TailMemory(cache, "there").get(found) is None
    other = replace(found, **{change: "b" if change == "name" else getattr(found, change) + 1})
    assert TailMemory(cache, "here").get(other) is None


def test_what_changed_a_moment_ago_is_not_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """It could change again within the same tick of the clock."""
    store, _ = chain_of(1)
    tail = read_info(store, "0000.imagefs").tail
    monkeypatch.setattr(derived.time, "time_ns", lambda: 10**18 + 10**9)
    cache = DictCache()
    memory = TailMemory(cache, "here")
    memory.add(ObjectInfo("a", tail.size, 10**18), tail)
    memory.keep()
    assert cache.puts == []


def test_the_memory_is_written_only_when_the_set_has_changed() -> None:
    store, _ = chain_of()
    cache = DictCache()
    for _ in range(3):
        scan(store, cache=cache)
    assert len(cache.puts) == 1
    del store.objects[f"{LAYERS - 1:04}.imagefs"]
    assert len(scan(store, cache=cache).images) == LAYERS - 1
    scan(store, cache=cache)
    assert len(cache.puts) == 2


def test_damaged_objects_are_looked_at_each_time() -> None:
    store, _ = chain_of()
    store.objects["0005.imagefs"] = store.objects["0005.imagefs"][:-9] + bytes(9)
    cache = DictCache()
    for _ in range(3):
        assert [found.name for found, _ in scan(store, cache=cache).damaged] == ["0005.imagefs"]


def test_a_missing_parent_is_missing_whatever_is_kept() -> None:
    store, _ = chain_of()
    cache = DictCache()
    opened(scan(store, cache=cache))
    del store.objects["0005.imagefs"]
    with pytest.raises(ChainError, match="is not in the set"):
        opened(scan(store, cache=cache))


def test_an_image_that_was_changed_behind_the_memory_is_found_out() -> None:
    """Same name, size and time; what is remembered no longer holds."""
    store, data = chain_of()
    cache = DictCache()
    assert opened(scan(store, cache=cache)) == data
    leaf = f"{LAYERS - 1:04}.imagefs"
    good = store.objects[leaf]
    for at in (-1, -50, -120):
        bad = bytearray(good)
        bad[at] ^= 1
        store.objects[leaf] = bytes(bad)
        with pytest.raises(ImagefsError):
            opened(scan(store, cache=cache))
    other, _ = chain_of()
    store.objects[leaf] = other.objects[leaf]  # the same but for its identity
    with pytest.raises(IntegrityError, match="not the image any more"):
        opened(scan(store, cache=cache))


def test_a_lower_layer_that_was_changed_is_found_out_when_it_is_read() -> None:
    store, data = chain_of()
    cache = DictCache()
    assert opened(scan(store, cache=cache)) == data
    store.objects["0000.imagefs"] = chain_of()[0].objects["0000.imagefs"]
    with pytest.raises(IntegrityError):
        opened(scan(store, cache=cache))


# -- what may have become of the kept bytes -------------------------------------------------------


def test_any_flip_or_cut_is_as_good_as_nothing() -> None:
    store, data = chain_of(5)
    cache = DictCache()
    assert opened(scan(store, cache=cache)) == data
    kept = dict(cache.kept)
    for name, good in kept.items():
        for at in range(0, len(good), 11):
            bad = bytearray(good)
            bad[at] ^= 1 << at % 8
            for broken in (bytes(bad), good[:at], good + good[:at]):
                cache.kept = {**kept, name: broken}
                assert opened(scan(store, cache=cache)) == data


def test_the_table_of_another_chain_is_not_taken() -> None:
    store, data = chain_of()
    cache = DictCache()
    catalog = scan(store, cache=cache)
    tables = {}
    for info in catalog.images[1:]:
        catalog.open_disk(info).close()
        tables[info.id] = cache.kept[f"{info.id}.chain"]
    leaf = catalog.images[-1]
    for other in tables.values():
        cache.kept[f"{leaf.id}.chain"] = other
        assert opened(scan(store, cache=cache)) == data


@pytest.fixture(scope="module")
def lineage() -> tuple[list[ImageInfo], RunTable]:
    store, _ = chain_of()
    catalog = scan(store)
    disk = catalog.open_disk(catalog.images[-1])
    table = disk.chain.table
    disk.close()
    return list(catalog.images), table


def test_a_table_comes_back_as_it_was(lineage: tuple[list[ImageInfo], RunTable]) -> None:
    infos, table = lineage
    cache = DictCache()
    keep_table(cache, infos, table)
    found = load_table(cache, infos)
    assert found is not None
    for name in ("first", "count", "state", "layer", "row"):
        assert np.array_equal(getattr(found, name), getattr(table, name))
    assert load_table(cache, infos[:-1]) is None
    swapped = [infos[1], infos[0], *infos[2:]]
    assert load_table(cache, swapped) is None


EXTREMES = st.sampled_from([-(2**63), -(2**31), -1, 0, 1, 2, 255, 2**31, 2**62, 2**63 - 1])


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 1000), EXTREMES), min_size=1, max_size=3))
def test_a_forged_table_with_a_right_digest_leads_nowhere(
    lineage: tuple[list[ImageInfo], RunTable], changes: list[tuple[int, int, int]]
) -> None:
    """Whatever is taken gives every chunk one answer that lies inside a layer."""
    infos, table = lineage
    columns = {name: getattr(table, name).copy() for name in ("first", "count", "row", "layer", "state")}
    for which, at, value in changes:
        column = list(columns.values())[which]
        raw = struct.pack("<q", value)[: column.dtype.itemsize]
        column[at % len(column)] = np.frombuffer(raw, column.dtype)[0]
    cache = DictCache()
    keep_table(cache, infos, RunTable(**columns))
    found = load_table(cache, infos)
    if found is None:
        return
    runs = list(found.between(0, CHUNKS))
    assert [run.first for run in runs] == [0, *(run.first + run.count for run in runs[:-1])]
    assert runs[-1].first + runs[-1].count == CHUNKS
    for run in runs:
        stored = infos[run.layer].summary.stored
        assert 0 <= run.row <= stored - run.count if run.state == 1 else run.row == -1


@settings(max_examples=300)
@given(body=st.binary(max_size=300), magic=st.sampled_from([b"imgtail1", b"imgruns1", b""]))
def test_signed_nonsense_is_as_good_as_nothing(body: bytes, magic: bytes) -> None:
    store, data = chain_of(2)
    cache = DictCache()
    assert opened(scan(store, cache=cache)) == data
    for name in list(cache.kept):
        cache.kept[name] = signed(magic + body)
    assert opened(scan(store, cache=cache)) == data


@settings(max_examples=100)
@given(at=st.integers(8, 2000), value=st.integers(0, 255))
def test_remembered_tails_are_held_to_their_seals(at: int, value: int) -> None:
    """Changed, and signed again: what is then told is still what was sealed."""
    store, data = chain_of(2)
    cache = DictCache()
    plain = scan(store, cache=cache)
    name = cache.only(".tails")
    body = bytearray(cache.kept[name][:-32])
    body[at % len(body)] = value
    cache.kept[name] = signed(bytes(body))
    assert scan(store, cache=cache).images == plain.images
    assert opened(scan(store, cache=cache)) == data


def test_tables_larger_than_is_sane_are_not_kept(
    lineage: tuple[list[ImageInfo], RunTable], monkeypatch: pytest.MonkeyPatch
) -> None:
    infos, table = lineage
    monkeypatch.setattr(derived, "MAX_TABLE", (1 << 20) + 32 * len(infos) + 10)
    cache = DictCache()
    keep_table(cache, infos, table)
    assert cache.puts == []
