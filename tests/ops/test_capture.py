"""Capture as a library call: kinds, parents, holes, streams, identity, and sources that misbehave."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagefs.block.devices import DeviceReader, StreamSource, open_source
from imagefs.errors import ChainError, ImagefsError, SourceError, StoreError, UsageError
from imagefs.format.header import Header, Kind, Mode
from imagefs.image.catalog import ImageInfo, scan
from imagefs.interfaces import NoProgress, State
from imagefs.ops import plan as plan_module
from imagefs.ops.capture import capture
from imagefs.ops.plan import CaptureOptions
from imagefs.ops.source import difference
from imagefs.ops.verify import verify_image
from imagefs.store import MemoryStore
from tests.support.images import (
    CHUNK,
    SET,
    Craft,
    capture_bytes,
    capture_file,
    capture_stream,
    disk_bytes,
    full_of,
    newest_bytes,
    noise,
    plain_view_digest,
    text,
    write_disk,
)

MIB = 2**20
DATA = text(5 * CHUNK) + bytes(2 * CHUNK) + noise(CHUNK + 321)


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "disk"


def images(store: MemoryStore) -> list[ImageInfo]:
    return list(scan(store).images)


class WatchedSource(DeviceReader):
    """A source that notes what is read, and can do something at the n-th read."""

    def __init__(self, path: Path, *, at: int = 0, act: Any = None) -> None:
        super().__init__(os.open(path, os.O_RDONLY), os.fspath(path))
        self.reads: list[tuple[int, int]] = []
        self._at, self._act = at, act
        self._lock = threading.Lock()

    def read_at(self, offset: int, length: int, /) -> bytes:
        with self._lock:
            self.reads.append((offset, length))
            due = len(self.reads) == self._at
        if due:
            self._act()
        return super().read_at(offset, length)


def watched(store: MemoryStore, source: DeviceReader, **options: Any) -> Any:
    try:
        chosen = {"threads": 2, "level": 1, "raw": True, "chunk_size": CHUNK} | options
        return capture(source, store, CaptureOptions(**chosen))
    finally:
        source.close()


# -- zeros and holes ------------------------------------------------------------------------------


def test_holes_are_not_read(store: MemoryStore, path: Path) -> None:
    """A disk of 1 TiB that is a hole but for two places."""
    size = 2**40
    with path.open("wb") as stream:
        stream.truncate(size)
        for place in (64 * CHUNK, 2**39):
            stream.seek(place)
            stream.write(noise(CHUNK))
    source = WatchedSource(path)
    made = watched(store, source)
    # A few more bytes than the data are looked at to see whose disk it is.
    assert sum(min(length, size - offset) for offset, length in source.reads) < 4 * MIB
    assert made.read_bytes <= 2 * MIB
    summary = made.info.summary
    assert (summary.stored, summary.zero) == (2, size // CHUNK - 2)
    assert len(store.objects[made.info.name]) < 80_000
    disk = scan(store).open_disk(made.info)
    assert disk.read_at(2**39, CHUNK) == noise(CHUNK)


def test_zeros_that_are_no_hole_are_not_stored(store: MemoryStore, path: Path) -> None:
    path.write_bytes(bytes(3 * MIB) + noise(CHUNK) + bytes(MIB + 7))
    made = capture_file(store, path)
    assert (made.info.summary.stored, made.info.summary.read_bytes) == (1, path.stat().st_size)
    assert newest_bytes(store) == path.read_bytes()


def test_a_hole_that_begins_and_ends_inside_chunks(store: MemoryStore, path: Path) -> None:
    data = noise(CHUNK + 4096) + bytes(5 * CHUNK) + noise(4096) + bytes(CHUNK)
    capture_bytes(store, data, path)
    assert newest_bytes(store) == data
    capture_bytes(store, data[:CHUNK] + bytes(len(data) - CHUNK), path)
    assert newest_bytes(store) == data[:CHUNK] + bytes(len(data) - CHUNK)


@given(
    pieces=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), max_size=6),
    tail=st.integers(0, 5000),
)
@settings(max_examples=25)
def test_any_pattern_of_holes(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[tuple[int, int]], tail: int
) -> None:
    """Holes of whole file-system blocks at any place, with and without a parent."""
    path = tmp_path_factory.mktemp("holes") / "disk"
    store = MemoryStore()
    data = b"".join(bytes(4096 * hole) + noise(4096 * full, full) for hole, full in pieces) + bytes(tail)
    capture_bytes(store, noise(len(data), 99), path)
    capture_bytes(store, data, path)
    capture_bytes(store, data, path)
    found = images(store)
    assert newest_bytes(store) == data
    assert found[-1].summary.stored == found[-1].summary.zero == 0


def test_a_disk_of_any_chunk_size(path: Path) -> None:
    data = text(3 * MIB) + bytes(5 * MIB) + noise(MIB + 1)
    for chunk_size in (16 * 1024, 64 * 1024, MIB, 4 * MIB):
        store = MemoryStore()
        capture_bytes(store, data, path, chunk_size=chunk_size)
        changed = data[: 2 * MIB] + b"!" + data[2 * MIB + 1 :]
        made = capture_bytes(store, changed, path)
        assert made.info.header.chunk_size == chunk_size
        assert made.info.summary.stored == 1
        assert newest_bytes(store) == changed
        assert made.info.summary.view == plain_view_digest(changed, chunk_size)


# -- kinds and parents ----------------------------------------------------------------------------


def test_kinds(store: MemoryStore, path: Path) -> None:
    kinds = [None, None, Kind.DIFFERENTIAL, None, Kind.INCREMENTAL, Kind.FULL, Kind.DIFFERENTIAL, None]
    for number, kind in enumerate(kinds):
        capture_bytes(store, noise(CHUNK, number) + DATA, path, kind=kind)
    found = images(store)
    assert [info.header.kind for info in found] == [1, 2, 3, 2, 2, 1, 3, 2]
    parents = [next((i for i, p in enumerate(found) if p.uuid == info.header.parent), None) for info in found]
    assert parents == [None, 0, 0, 2, 3, None, 5, 6]
    assert len({info.header.set for info in found}) == 1
    for child, parent in zip(found, parents, strict=True):
        if parent is not None:
            assert child.header.parent_seal == found[parent].tail.seal
            assert child.header.parent_view == found[parent].summary.view


def test_an_unchanged_source_gives_an_image_without_chunks(store: MemoryStore, path: Path) -> None:
    capture_bytes(store, DATA, path)
    made = capture_bytes(store, DATA, path)
    first, second = images(store)
    assert (second.summary.stored, second.summary.zero, second.summary.absent) == (0, 0, 9)
    assert second.summary.view == first.summary.view
    assert made.stored_bytes < 2000
    assert newest_bytes(store) == DATA


def test_what_became_zero_is_zero_and_not_absent(store: MemoryStore, path: Path) -> None:
    capture_bytes(store, DATA, path)
    made = capture_bytes(store, bytes(CHUNK) + DATA[CHUNK:], path)
    assert (made.info.summary.zero, made.info.summary.stored) == (1, 0)


def test_skipped_and_unreadable_chunks_of_the_parent_are_not_inherited(
    store: MemoryStore, path: Path
) -> None:
    """They read as zeros, but are no zeros: mode all captures them anew."""
    Craft(
        3 * CHUNK,
        chunks=[(0, text(CHUNK))],
        extents=[(1, 1, int(State.SKIPPED)), (2, 1, int(State.UNREADABLE))],
    ).put(store)
    made = capture_bytes(store, text(CHUNK) + bytes(2 * CHUNK), path, mode=Mode.ALL)
    assert made.info.header.kind is Kind.INCREMENTAL
    assert (made.info.summary.absent, made.info.summary.zero) == (1, 2)


@pytest.mark.parametrize("kind", [Kind.INCREMENTAL, Kind.DIFFERENTIAL])
def test_a_child_without_a_parent(store: MemoryStore, path: Path, kind: Kind) -> None:
    with pytest.raises(ChainError, match="no full image") as caught:
        capture_bytes(store, DATA, path, kind=kind)
    assert "--kind full" in caught.value.hint
    assert store.objects == store.unfinished == {}


def test_another_chunk_size_for_a_child(store: MemoryStore, path: Path) -> None:
    capture_bytes(store, DATA, path)
    with pytest.raises(UsageError, match="16384"):
        capture_bytes(store, DATA, path, chunk_size=2 * CHUNK)
    capture_bytes(store, DATA, path, chunk_size=CHUNK)
    capture_bytes(store, DATA, path, chunk_size=2 * CHUNK, kind=Kind.FULL)
    assert [info.header.chunk_size for info in images(store)] == [CHUNK, CHUNK, 2 * CHUNK]


@pytest.mark.parametrize("chunk_size", [0, 1, 8192, CHUNK + 1, 8 * MIB])
def test_an_impossible_chunk_size(store: MemoryStore, path: Path, chunk_size: int) -> None:
    write_disk(path, DATA)
    with pytest.raises(UsageError, match="chunk size"):
        capture_file(store, path, chunk_size=chunk_size)
    assert store.objects == store.unfinished == {}


def damage(store: MemoryStore, info: ImageInfo) -> None:
    """One bit in the directory of the index, which ``quick`` sees."""
    data = bytearray(store.objects[info.name])
    data[info.tail.sections[b"IDIR"].offset] ^= 1
    store.objects[info.name] = bytes(data)


def test_a_damaged_parent_makes_auto_take_a_full_and_say_why(store: MemoryStore, path: Path) -> None:
    capture_bytes(store, DATA, path)
    capture_bytes(store, DATA + b"1", path)
    damage(store, images(store)[0])
    for kind in (Kind.INCREMENTAL, Kind.DIFFERENTIAL):
        with pytest.raises(ChainError, match="cannot be built on"):
            capture_bytes(store, DATA + b"2", path, kind=kind)
    made = capture_bytes(store, DATA + b"2", path)
    assert made.info.header.kind is Kind.FULL
    assert "damaged" in made.warnings[0]
    assert newest_bytes(store) == DATA + b"2"


def test_a_missing_parent_makes_auto_take_a_full(store: MemoryStore, path: Path) -> None:
    first = capture_bytes(store, DATA, path).info
    capture_bytes(store, DATA + b"1", path)
    del store.objects[first.name]
    made = capture_bytes(store, DATA + b"2", path)
    assert made.info.header.kind is Kind.FULL
    assert "not in the set" in made.warnings[0]


def test_an_image_that_cannot_even_be_listed_is_told_of(store: MemoryStore, path: Path) -> None:
    made = capture_bytes(store, DATA, path)
    store.objects[made.info.name] = store.objects[made.info.name][:-1]
    again = capture_bytes(store, DATA, path, kind=None, chunk_size=CHUNK)
    assert again.info.header.kind is Kind.FULL
    assert made.info.name in again.warnings[0]


def test_another_sector_size_takes_a_full(store: MemoryStore, path: Path) -> None:
    full_of(DATA, header={"sector_size": 4096}).put(store)
    with pytest.raises(ChainError, match="sector size"):
        capture_bytes(store, DATA, path, kind=Kind.INCREMENTAL)
    made = capture_bytes(store, DATA, path)
    assert made.info.header.kind is Kind.FULL
    assert "sector size is 512" in made.warnings[0]


def test_created_goes_on_when_the_clock_goes_back(
    store: MemoryStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = capture_bytes(store, DATA, path).info
    for kind in (None, Kind.DIFFERENTIAL, Kind.FULL, None):
        monkeypatch.setattr(plan_module.time, "time_ns", lambda: 10**15)
        made = capture_bytes(store, DATA, path, kind=kind)
        monkeypatch.undo()
        newest = images(store)[-1]
        assert newest.uuid == made.info.uuid
    assert [info.created for info in images(store)] == [first.created + n for n in range(5)]
    assert newest_bytes(store) == DATA


def test_the_default_chunk_size_grows_with_the_disk(tmp_path: Path) -> None:
    for size, chunk_size in ((MIB, 64 * 1024), (2**40, 128 * 1024), (4 * 2**40, 256 * 1024)):
        path = tmp_path / f"disk{size}"
        path.touch()
        os.truncate(path, size)
        store = MemoryStore()
        assert (
            watched(store, open_source(os.fspath(path)), chunk_size=None).info.header.chunk_size == chunk_size
        )


# -- growing, shrinking, partial chunks -----------------------------------------------------------

SIZES = [1, 511, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 3 * CHUNK + 100]


@pytest.mark.parametrize("old", SIZES)
def test_a_disk_that_grows(path: Path, old: int) -> None:
    for new in [size for size in SIZES if size >= old]:
        store = MemoryStore()
        data = noise(new, 3)
        capture_bytes(store, data[:old], path)
        made = capture_bytes(store, data, path)
        assert made.info.header.kind is Kind.INCREMENTAL
        assert newest_bytes(store) == data
        assert disk_bytes(scan(store), images(store)[0]) == data[:old]
        assert made.info.summary.absent == (-(-new // CHUNK) if new == old else old // CHUNK)


@pytest.mark.parametrize("zeros", [100, CHUNK, 3 * CHUNK + 7])
def test_a_disk_that_grows_by_zeros(path: Path, zeros: int) -> None:
    store = MemoryStore()
    capture_bytes(store, DATA, path)
    capture_bytes(store, DATA + bytes(zeros), path)
    assert newest_bytes(store) == DATA + bytes(zeros)


def test_a_disk_that_shrank_is_another_one(store: MemoryStore, path: Path) -> None:
    capture_bytes(store, DATA, path)
    with pytest.raises(SourceError, match="not the disk the set was made from") as caught:
        capture_bytes(store, DATA[:-1], path)
    assert "--new-source" in caught.value.hint
    made = capture_bytes(store, DATA[:-1], path, new_source=True)
    assert made.info.header.kind is Kind.FULL
    assert len(images(store)) == 2
    with pytest.raises(UsageError):
        capture_bytes(store, DATA, path, new_source=True, kind=Kind.INCREMENTAL)


# -- streams --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, MIB, MIB + 1, 3 * MIB - 5])
def test_a_stream_of_any_size(store: MemoryStore, tmp_path: Path, size: int) -> None:
    data = text(size)
    for _ in range(2):
        made = capture_stream(store, data, tmp_path)
        assert made.info.summary.disk_size == size
        assert made.info.summary.view == plain_view_digest(data)
        assert newest_bytes(store) == data
    assert made.info.summary.absent == size // CHUNK


@pytest.mark.parametrize("old", [0, 100, CHUNK, 2 * CHUNK + 9, 5 * CHUNK])
@pytest.mark.parametrize("new", [0, 99, CHUNK, 2 * CHUNK + 10, 4 * CHUNK])
def test_a_stream_longer_or_shorter_than_the_last(tmp_path: Path, old: int, new: int) -> None:
    for zero in (False, True):
        store = MemoryStore()
        capture_stream(store, noise(old), tmp_path)
        data = bytes(new) if zero else noise(new)
        capture_stream(store, data, tmp_path)
        assert newest_bytes(store) == data
        assert verify_image(scan(store), images(store)[-1]).findings == []


def test_a_stream_that_comes_in_drops(store: MemoryStore) -> None:
    data = text(3 * CHUNK) + noise(777)
    reading, writing = os.pipe()

    def feed() -> None:
        for start in range(0, len(data), 4999):
            os.write(writing, data[start : start + 4999])
        os.close(writing)

    thread = threading.Thread(target=feed)
    thread.start()
    try:
        capture(StreamSource(reading), store, CaptureOptions(chunk_size=CHUNK, threads=1))
    finally:
        thread.join(300)
        os.close(reading)
    assert newest_bytes(store) == data


def test_a_stream_after_a_disk_and_the_other_way_round(
    store: MemoryStore, path: Path, tmp_path: Path
) -> None:
    capture_bytes(store, DATA, path)
    capture_stream(store, DATA + b"more", tmp_path)
    capture_bytes(store, DATA + b"more and more", path)
    assert [disk_bytes(scan(store), info) for info in images(store)] == [
        DATA,
        DATA + b"more",
        DATA + b"more and more",
    ]


# -- sources that misbehave -----------------------------------------------------------------------


def big_disk(path: Path) -> Path:
    path.write_bytes(noise(6 * MIB))
    return path


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda path: os.truncate(path, MIB), "shrank|ended early|changed its size"),
        (lambda path: os.truncate(path, 9 * MIB), "changed its size"),
        (lambda path: path.open("r+b").write(b"new"), "was written to"),
        (lambda path: (path.unlink(), path.write_bytes(b"")), "was replaced"),
        (lambda path: path.unlink(), "cannot be looked at"),
    ],
    ids=["shrinks", "grows", "is written", "is replaced", "is removed"],
)
@pytest.mark.parametrize("at", [4, 8])
def test_a_source_that_changes_under_our_hands(
    store: MemoryStore, path: Path, act: Any, words: str, at: int
) -> None:
    capture_bytes(store, noise(CHUNK), path)
    before = dict(store.objects)
    big_disk(path)
    os.utime(path, (1, 1))
    source = WatchedSource(path, at=at, act=lambda: act(path))
    with pytest.raises(SourceError, match=words):
        watched(store, source)
    assert store.objects == before
    assert store.unfinished == {}
    store.lock().release()


@pytest.mark.parametrize(
    "error", [SourceError("bad sector"), OSError(5, "EIO"), MemoryError(), KeyboardInterrupt()]
)
@pytest.mark.parametrize("before_last", [0, 1, 5])
def test_a_source_that_fails(store: MemoryStore, path: Path, error: BaseException, before_last: int) -> None:
    """The first reads only look whose disk it is; the last are the capture's."""

    def fail() -> None:
        raise error

    sound = WatchedSource(big_disk(path))
    watched(MemoryStore(), sound)
    at = len(sound.reads) - before_last
    source = WatchedSource(path, at=at, act=fail)
    with pytest.raises(type(error)):
        watched(store, source)
    assert at <= len(source.reads) <= len(sound.reads), "the other workers may finish their batch"
    assert store.objects == {}
    # A signal leaves what can be resumed; an error of such a small capture leaves nothing.
    assert store.unfinished == {} or not isinstance(error, Exception)
    store.lock().release()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("pump", "read-ahead"))]


def test_a_capture_that_is_cancelled_from_its_progress(store: MemoryStore, path: Path) -> None:
    class Impatient(NoProgress):
        def start(self, label: str, total: int | None, /) -> None:
            pass

        def advance(self, count: int, /) -> None:
            raise KeyboardInterrupt

        def note(self, message: str, /) -> None:
            pass

    source = open_source(os.fspath(big_disk(path)))
    with pytest.raises(KeyboardInterrupt):
        capture(source, store, CaptureOptions(threads=2), Impatient())
    source.close()
    assert store.objects == {}
    assert len(store.unfinished) == 1, "it can be resumed"


def test_progress_counts_every_byte_once(store: MemoryStore, path: Path) -> None:
    class Counting(NoProgress):
        def __init__(self) -> None:
            self.labels: list[tuple[str, int | None]] = []
            self.count = 0

        def start(self, label: str, total: int | None, /) -> None:
            self.labels.append((label, total))

        def advance(self, count: int, /) -> None:
            self.count += count

        def note(self, message: str, /) -> None:
            pass

    data = noise(3 * MIB) + bytes(4 * MIB) + noise(77)
    progress = Counting()
    source = open_source(os.fspath(write_disk(path, data)))
    capture(source, store, CaptureOptions(threads=2, chunk_size=CHUNK), progress)
    source.close()
    assert ("capture", len(data)) in progress.labels
    assert progress.count == len(data)


def test_a_second_capture_in_the_same_set_is_refused(store: MemoryStore, path: Path) -> None:
    big_disk(path)
    refused: list[ImagefsError] = []

    def second() -> None:
        with pytest.raises(StoreError, match="another capture") as caught:
            capture_file(store, path)
        refused.append(caught.value)

    watched(store, WatchedSource(path, at=5, act=second))
    assert len(refused) == 1
    assert len(images(store)) == 1


def test_foreign_images_are_refused_and_captured_raw_if_meant(store: MemoryStore, path: Path) -> None:
    data = b"QFI\xfb\x00\x00\x00\x03" + noise(2 * CHUNK)
    with pytest.raises(SourceError, match="qcow2") as caught:
        capture_bytes(store, data, path, raw=False)
    assert "--raw" in caught.value.hint
    with pytest.raises(SourceError, match="qcow2"):
        capture_stream(store, data, path.parent, raw=False)
    assert store.objects == store.unfinished == {}
    capture_bytes(store, data, path, raw=True)
    assert newest_bytes(store) == data


def test_our_own_images_are_foreign_too(store: MemoryStore, path: Path) -> None:
    path.write_bytes(full_of(DATA).build())
    with pytest.raises(SourceError, match="imagefs"):
        capture_file(store, path, raw=False)


# -- what is remembered ---------------------------------------------------------------------------


def test_what_the_image_tells(store: MemoryStore, path: Path) -> None:
    before = time.time_ns()
    made = capture_bytes(store, DATA, path, note="before the update", live=True, level=7)
    header, summary = made.info.header, made.info.summary
    assert before <= header.created == summary.started <= summary.ended <= time.time_ns()
    assert header.facts["note"] == "before the update"
    assert header.facts["tool"].startswith("imagefs ")
    assert header.facts["source"]["path"] == os.fspath(path)
    assert header.facts["source"]["size"] == len(DATA)
    assert (header.level, header.mode, summary.consistency) == (7, Mode.USED, 3)
    assert made.stored_bytes == len(store.objects[made.info.name])
    assert made.warnings == ()


def test_names_and_notes_that_are_no_text(store: MemoryStore, tmp_path: Path) -> None:
    odd = os.fsdecode(b"disk-\xff\xfe")
    capture_bytes(store, DATA, tmp_path / odd, note=odd)
    info = images(store)[0]
    assert info.header.facts["note"] == "disk-??"
    assert newest_bytes(store) == DATA


def test_a_note_that_is_too_long_leaves_nothing(store: MemoryStore, path: Path) -> None:
    with pytest.raises(ImagefsError, match="over the limit"):
        capture_bytes(store, DATA, path, note="x" * 30_000)
    assert store.objects == store.unfinished == {}


# -- whose disk it is -----------------------------------------------------------------------------

HARDWARE = {"serial": "S1", "wwn": "W1"}
GPT = {"disk_id": "aaaa"}
FS = {"fs_uuid": "1234"}


@pytest.mark.parametrize(
    ("old", "new", "old_size", "new_size", "words"),
    [
        ({}, {}, 10, 10, ""),
        ({}, {}, 10, 20, ""),
        ({}, {}, 20, 10, "has 10 bytes"),
        ({}, {}, 20, None, ""),
        (HARDWARE, HARDWARE, 10, 10, ""),
        (HARDWARE, HARDWARE | {"serial": "S2"}, 10, 10, "serial number is S2"),
        (HARDWARE, HARDWARE | {"wwn": "W2"}, 10, 10, "WWN is W2"),
        (HARDWARE, {"wwn": "W1"}, 10, 10, ""),
        (HARDWARE | GPT, HARDWARE | {"disk_id": "bbbb"}, 10, 10, ""),  # the same disk, parted anew
        (HARDWARE | GPT, HARDWARE, 10, 5, ""),
        (HARDWARE | GPT, GPT, 10, 10, ""),  # a raw copy of the disk has no serial number
        (HARDWARE | GPT, {"disk_id": "bbbb"}, 10, 10, "disk id is bbbb"),
        (HARDWARE | GPT, {}, 10, 10, "has no disk id"),
        (GPT, HARDWARE | GPT, 10, 10, ""),
        (GPT, GPT | FS, 10, 10, ""),
        (FS, FS, 10, 30, ""),
        (FS, {"fs_uuid": "9999"}, 10, 10, "file-system UUID is 9999"),
        (FS, {}, 10, 10, "has no file-system UUID"),
        (HARDWARE | {"partition": 1}, HARDWARE | {"partition": 2}, 10, 10, "another partition"),
        (HARDWARE | {"partition": 1}, HARDWARE, 10, 10, "another partition"),
        (HARDWARE | {"partition": 1}, HARDWARE | {"partition": 1}, 10, 10, ""),
    ],
)
def test_difference(
    old: dict[str, Any], new: dict[str, Any], old_size: int, new_size: int | None, words: str
) -> None:
    found = difference(old, new, old_size=old_size, new_size=new_size)
    assert words in found
    assert bool(words) == bool(found)


def mbr(disk_id: int) -> bytes:
    """A disk with an MBR of that id, one partition, and something in it."""
    entry = bytes([0, 0, 2, 0, 0x83, 0, 0, 0]) + (8).to_bytes(4, "little") + (64).to_bytes(4, "little")
    sector = bytes(440) + disk_id.to_bytes(4, "little") + bytes(2) + entry + bytes(48) + b"\x55\xaa"
    return sector + bytes(8 * 512 - 512) + noise(64 * 512)


def test_another_disk_is_refused_by_its_id(store: MemoryStore, path: Path) -> None:
    capture_bytes(store, mbr(0x11111111), path)
    capture_bytes(store, mbr(0x11111111) + bytes(CHUNK), path)
    with pytest.raises(SourceError, match="not the disk the set was made from: its disk id"):
        capture_bytes(store, mbr(0x22222222), path)
    assert len(images(store)) == 2
    made = capture_bytes(store, mbr(0x22222222), path, new_source=True)
    assert made.info.header.kind is Kind.FULL
    assert capture_bytes(store, mbr(0x22222222), path).info.header.parent == made.info.uuid


def test_strange_facts_of_an_older_image_do_not_disturb(store: MemoryStore, path: Path) -> None:
    for facts in ({"source": "what?"}, {"source": None}, {"source": {"disk_id": 5}}, {}):
        store.objects.clear()
        full_of(DATA, header={"facts": facts}).put(store)
        try:
            capture_bytes(store, DATA, path)
        except SourceError as error:
            assert "disk" in error.message  # noqa: PT017 either answer will do, a crash will not
        assert isinstance(images(store)[0].header, Header)
        assert images(store)[0].header.set == SET


def test_memory_follows_what_is_stored_and_not_the_disk(store: MemoryStore, path: Path) -> None:
    """The writer's lists for a disk of 64 TiB, all of it a hole."""
    path.touch()
    os.truncate(path, 2**43)
    source = open_source(os.fspath(path))
    made = capture(source, store, CaptureOptions(threads=1))
    source.close()
    assert made.info.summary.zero == 2**43 // (256 * 1024)
    assert made.stored_bytes < 4000


def _chunks(data: bytes) -> Iterator[bytes]:
    return (data[i : i + CHUNK] for i in range(0, len(data), CHUNK))


def test_only_new_chunks_are_stored(store: MemoryStore, path: Path) -> None:
    """Against a model: stored, zero and absent follow from old and new bytes alone."""
    old, new = bytearray(noise(30 * CHUNK)), bytearray(noise(30 * CHUNK))
    old[5 * CHUNK : 9 * CHUNK] = bytes(4 * CHUNK)
    new[8 * CHUNK : 12 * CHUNK] = bytes(4 * CHUNK)
    new[20 * CHUNK + 5] ^= 1
    capture_bytes(store, bytes(old), path)
    made = capture_bytes(store, bytes(new), path).info.summary
    pairs = list(zip(_chunks(bytes(old)), _chunks(bytes(new)), strict=True))
    assert made.absent == sum(a == b for a, b in pairs)
    assert made.zero == sum(a != b and not any(b) for a, b in pairs)
    assert made.stored == sum(a != b and any(b) for a, b in pairs)
    assert newest_bytes(store) == new
