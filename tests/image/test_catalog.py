"""The set as a listing sees it: order, families, names that lie, damaged and unfinished objects."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from uuid import UUID

import pytest

from imagefs.errors import ChainError, FormatError
from imagefs.format.header import Header, Kind
from imagefs.image.catalog import Catalog, ImageInfo, image_name, scan
from imagefs.store import LocalStore, MemoryStore
from tests.support.images import CHUNK, SET, Craft, capture_bytes, disk_bytes, full_of, noise, text

DATA = text(3 * CHUNK)


def tree() -> tuple[MemoryStore, dict[str, ImageInfo]]:
    """A full with two children, one of which has a child; and another full."""
    store, made = MemoryStore(), {}
    plan = [("full", None), ("incr", "full"), ("diff", "full"), ("leaf", "incr"), ("other", None)]
    for number, (name, parent) in enumerate(plan):
        given = {"created": 10**18 + number, "image": UUID(int=(number + 1) << 96)}
        if parent is None:
            full_of(DATA, **given).put(store, f"{name}.imagefs")
        else:
            kind = Kind.DIFFERENTIAL if name == "diff" else Kind.INCREMENTAL
            chunks = [(1, noise(CHUNK, number))]
            Craft(len(DATA), kind, chunks=chunks, parent=made[parent], **given).put(store, f"{name}.imagefs")
        made[name] = next(info for info in scan(store).images if info.name == f"{name}.imagefs")
    return store, made


def names(images: list[ImageInfo]) -> list[str]:
    return [info.name.removesuffix(".imagefs") for info in images]


def test_families() -> None:
    store, made = tree()
    catalog = scan(store)
    assert names(list(catalog.images)) == ["full", "incr", "diff", "leaf", "other"]
    assert names(catalog.children(made["full"])) == ["incr", "diff"]
    assert names(catalog.descendants(made["full"])) == ["incr", "diff", "leaf"]
    assert names(catalog.descendants(made["incr"])) == ["leaf"]
    assert catalog.descendants(made["leaf"]) == catalog.children(made["other"]) == []
    assert names(list(catalog.ancestors(made["leaf"]))) == ["incr", "full"]
    assert catalog.newest() == made["other"] == catalog.newest_full()
    assert set(catalog.by_uuid) == {info.uuid for info in made.values()}


def test_the_next_image_of_a_chain_takes_its_lineage_over(monkeypatch: pytest.MonkeyPatch) -> None:
    store, made = tree()
    catalog, searched, search = scan(store), [], Catalog._candidates

    def counted(self: Catalog, uuid: UUID) -> object:
        searched.append(uuid)
        return search(self, uuid)

    monkeypatch.setattr(Catalog, "_candidates", counted)
    for name, lineage, times in (
        ("full", ["full"], 0),
        ("incr", ["full", "incr"], 1),
        ("leaf", ["full", "incr", "leaf"], 2),
        ("leaf", ["full", "incr", "leaf"], 2),
        ("diff", ["full", "diff"], 3),
        ("leaf", ["full", "incr", "leaf"], 5),
        ("other", ["other"], 5),
    ):
        with contextlib.closing(catalog.open_chain(catalog.by_uuid[made[name].uuid])) as chain:
            assert names(list(chain.infos)) == lineage
        assert len(searched) == times, name


def test_an_empty_set() -> None:
    catalog = scan(MemoryStore())
    assert catalog.images == catalog.damaged == catalog.partials == ()
    assert catalog.newest() is catalog.newest_full() is None


def test_order_is_by_created_and_not_by_name() -> None:
    store = MemoryStore()
    full_of(DATA, created=10**18 + 5).put(store, "a.imagefs")
    full_of(DATA, created=10**18).put(store, "z.imagefs")
    assert names(list(scan(store).images)) == ["z", "a"]


def test_renamed_images_are_found_by_their_headers(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "set", suffix=".imagefs")
    store.make()
    capture_bytes(store, DATA, tmp_path / "disk")
    capture_bytes(store, DATA + b"more", tmp_path / "disk")
    for number, info in enumerate(scan(store).images):
        (store.folder / info.name).rename(store.folder / f"{9 - number} my backup.imagefs")
    catalog = scan(store)
    assert disk_bytes(catalog, catalog.images[-1]) == DATA + b"more"


def test_damaged_objects_are_kept_apart() -> None:
    store, _ = tree()
    store.objects["cut.imagefs"] = store.objects["full.imagefs"][:-1]
    store.objects["empty.imagefs"] = b""
    store.objects["letter.imagefs"] = b"Dear Sir or Madam" * 100
    catalog = scan(store)
    assert len(catalog.images) == 5
    reasons = {found.name: error.message for found, error in catalog.damaged}
    assert set(reasons) == {"cut.imagefs", "empty.imagefs", "letter.imagefs"}
    assert "not an imagefs image" in reasons["letter.imagefs"]
    assert "no footer" in reasons["cut.imagefs"]
    assert all(reason.startswith(name) for name, reason in reasons.items())
    assert all(isinstance(error, FormatError) for _, error in catalog.damaged)


def test_a_damaged_parent_is_named_as_the_reason(tmp_path: Path) -> None:
    store = MemoryStore()
    first = capture_bytes(store, DATA, tmp_path / "disk").info
    capture_bytes(store, DATA + b"x", tmp_path / "disk")
    store.objects[first.name] = store.objects[first.name][:-7]
    catalog = scan(store)
    with pytest.raises(ChainError) as caught:
        catalog.open_disk(catalog.images[0])
    assert "usable state" in caught.value.message
    assert "no footer" in caught.value.message


def test_partials_are_listed_and_never_read(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "set", suffix=".imagefs")
    store.make()
    capture_bytes(store, DATA, tmp_path / "disk")
    whole = (store.folder / scan(store).images[0].name).read_bytes()
    (store.folder / "x.imagefs.partial").write_bytes(whole)
    (store.folder / ".hidden.imagefs").write_bytes(whole)
    (store.folder / "notes.txt").write_bytes(whole)
    (store.folder / "folder.imagefs").mkdir()
    os.symlink("/nowhere", store.folder / "dangling.imagefs")
    os.symlink("ring.imagefs", store.folder / "ring.imagefs")
    os.mkfifo(store.folder / "pipe.imagefs")
    catalog = scan(store)
    assert len(catalog.images) == 1
    assert catalog.damaged == ()
    assert [info.name for info in catalog.partials] == ["x.imagefs.partial"]


def test_one_image_twice_under_two_names() -> None:
    """A copy beside the original disturbs no chain."""
    store, made = tree()
    store.objects["copy.imagefs"] = store.objects["full.imagefs"]
    catalog = scan(store)
    assert len(catalog.images) == 6
    expected = DATA[:CHUNK] + noise(CHUNK, 3) + DATA[2 * CHUNK :]
    assert disk_bytes(catalog, made["leaf"]) == expected


@pytest.mark.parametrize(
    ("kind", "created", "expected"),
    [
        (Kind.FULL, 1794880804_123456789, "20261117T020004Z-full-3f2a9c1e.imagefs"),
        (Kind.INCREMENTAL, 0, "19700101T000000Z-incr-3f2a9c1e.imagefs"),
        (Kind.DIFFERENTIAL, 2**64 - 1, "25540721T233433Z-diff-3f2a9c1e.imagefs"),
    ],
)
def test_names(kind: Kind, created: int, expected: str) -> None:
    head = Header(UUID("3f2a9c1e-5d40-4b7e-9c11-0a1b2c3d4e5f"), SET, kind, created, CHUNK, 512)
    assert image_name(head) == expected
    assert not re.search(r'[:/\\*?"<>|]', expected)
