"""Resume: a capture that was stopped, killed or cut off goes on, and comes to what it would have been."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagefs.block.devices import open_source
from imagefs.errors import ChainError, ImagefsError, SourceError, StoreFull, UsageError
from imagefs.format.header import Kind, Mode
from imagefs.image import writer as writer_module
from imagefs.image.catalog import scan
from imagefs.image.resume import read_partial
from imagefs.image.writer import ImageWriter
from imagefs.interfaces import NoProgress
from imagefs.ops import pieces as pieces_module
from imagefs.ops.capture import CaptureResult, capture
from imagefs.ops.plan import CaptureOptions
from imagefs.ops.verify import verify_image
from imagefs.store import LocalStore, MemoryStore
from imagefs.store import local as local_module
from tests.support.faults import DyingOs, Fuse
from tests.support.images import CHUNK, capture_bytes, newest_bytes, noise, text, write_disk
from tests.support.oracles import failing_disk

#: 60 chunks: noise, text, zeros that are holes, zeros that are not, an odd end.
OLD = noise(7 * CHUNK) + text(9 * CHUNK) + bytes(12 * CHUNK) + noise(20 * CHUNK, 3) + text(11 * CHUNK + 77, 5)
NEW = OLD[: 3 * CHUNK] + noise(4 * CHUNK, 9) + OLD[7 * CHUNK : 30 * CHUNK] + noise(11 * CHUNK, 10)
NEW += bytes(7 * CHUNK) + OLD[48 * CHUNK :]


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two chunks a batch, two rows a block: much happens in little data."""
    monkeypatch.setattr(pieces_module, "_DEVICE_BATCH", 2 * CHUNK)
    monkeypatch.setattr(pieces_module, "_READ_BYTES", CHUNK)
    monkeypatch.setattr(writer_module, "BLOCK_ROWS", 5)
    monkeypatch.setattr(writer_module, "EARLY_ROWS", 3)


def stop_after(count: int) -> Callable[[], None]:
    """A check that asks the capture to stop at its ``count``-th batch."""
    left = [count]

    def check() -> None:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt

    return check


def run(store: Any, path: Path, **options: Any) -> CaptureResult:
    given = {"threads": 2, "level": 1, "raw": True} | options
    if not any(store.list()) and not given.get("resume"):
        given["chunk_size"] = CHUNK
    source = open_source(os.fspath(path))
    try:
        return capture(source, store, CaptureOptions(**given))
    finally:
        source.close()


def until_done(store: Any, path: Path, steps: list[int], **options: Any) -> CaptureResult:
    """Capture, stopped after each of ``steps`` batches and resumed, at last to the end."""
    resume = False
    for count in steps:
        try:
            return run(store, path, resume=resume, check_stop=stop_after(count), **options)
        except KeyboardInterrupt:
            assert len(list(store.partials())) == 1
            resume = True
    return run(store, path, resume=resume, **options)


@given(steps=st.lists(st.integers(1, 25), min_size=1, max_size=4), child=st.booleans())
@settings(max_examples=40)
def test_the_same_image_however_often_it_was_stopped(
    tmp_path_factory: pytest.TempPathFactory, steps: list[int], child: bool
) -> None:
    """View digest, counts, bytes and linear digests are those of a capture that was never stopped."""
    path = tmp_path_factory.mktemp("resume") / "disk"
    data, store, whole = (NEW if child else OLD), MemoryStore(), MemoryStore()
    if child:
        for each in (store, whole):
            capture_bytes(each, OLD, path)
    write_disk(path, data)
    straight = run(whole, path, hashes=("sha256",))
    made = until_done(store, path, steps, hashes=("sha256",))
    assert made.info.summary.view == straight.info.summary.view
    counts = ("stored", "zero", "absent", "frame_bytes", "disk_size")
    for name in counts:
        assert getattr(made.info.summary, name) == getattr(straight.info.summary, name), name
    assert made.digests == {"sha256": hashlib.sha256(data).hexdigest()}
    assert newest_bytes(store) == data
    catalog = scan(store)
    assert verify_image(catalog, made.info).findings == []
    assert store.unfinished == {}


@pytest.fixture
def stopped(tmp_path: Path) -> tuple[MemoryStore, Path]:
    """A store with one full image and a child that was stopped half-way, with three checkpoints."""
    path, store = tmp_path / "disk", MemoryStore()
    capture_bytes(store, OLD, path)
    write_disk(path, NEW)
    for i, count in enumerate((4, 5, 5)):
        with pytest.raises(KeyboardInterrupt):
            run(store, path, resume=i > 0, check_stop=stop_after(count))
    return store, path


def test_cut_off_anywhere(stopped: tuple[MemoryStore, Path]) -> None:
    """A power cut leaves any beginning: it is resumed from a checkpoint inside it, or refused."""
    store, path = stopped
    ((name, whole),) = store.unfinished.items()
    outcomes = set()
    for size in (*range(0, len(whole), 997), *range(len(whole) - 500, len(whole), 50)):
        cut = MemoryStore()
        cut.objects = dict(store.objects)
        cut.unfinished[name] = bytearray(whole[:size])
        try:
            run(cut, path, resume=True)
        except UsageError:
            assert list(cut.unfinished) == [name]
            outcomes.add("refused")
            continue
        assert newest_bytes(cut) == NEW
        outcomes.add("resumed")
    assert outcomes == {"refused", "resumed"}


def test_flipped_bytes_never_get_into_an_image_unseen(stopped: tuple[MemoryStore, Path]) -> None:
    store, path = stopped
    ((name, whole),) = store.unfinished.items()
    for at in range(0, len(whole), 1_499):
        bent = MemoryStore()
        bent.objects = dict(store.objects)
        bent.unfinished[name] = bytearray(whole)
        bent.unfinished[name][at] ^= 0x41
        try:
            made = run(bent, path, resume=True)
        except ImagefsError:
            continue
        report = verify_image(scan(bent), made.info)
        # An old frame is not read again, but then verify finds it, as it does in a finished image.
        assert not report.ok or newest_bytes(bent) == NEW


def test_zeros_where_the_last_frames_should_be(stopped: tuple[MemoryStore, Path]) -> None:
    """A checkpoint survived a power cut and frames it describes did not: the one before is taken."""
    store, path = stopped
    ((name, whole),) = store.unfinished.items()
    partial = read_partial(store.open_partial(name), name, disk_size=len(NEW))
    at = max(int(rows.offset[-1]) for rows in partial.blocks() if len(rows))
    whole[at : at + 400] = bytes(400)
    again = read_partial(store.open_partial(name), name, disk_size=len(NEW))
    assert again.points[-1].number < partial.points[-1].number
    run(store, path, resume=True)
    assert newest_bytes(store) == NEW


def test_a_source_that_changed_is_refused(stopped: tuple[MemoryStore, Path], tmp_path: Path) -> None:
    store, path = stopped
    facts = path.stat()
    with path.open("r+b") as disk:
        disk.write(b"other")
    with pytest.raises(SourceError, match="written to since"):
        run(store, path, resume=True)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    with pytest.raises(SourceError, match="has other bytes"):
        run(store, path, resume=True)
    write_disk(path, NEW + bytes(CHUNK))
    with pytest.raises(SourceError, match="bytes, it had"):
        run(store, path, resume=True)
    assert len(store.unfinished) == 1, "it is still there"


def test_a_parent_that_is_gone_is_named(stopped: tuple[MemoryStore, Path]) -> None:
    store, path = stopped
    store.objects.clear()
    with pytest.raises(ChainError, match="not in the set any more"):
        run(store, path, resume=True)


def test_nothing_to_resume(tmp_path: Path) -> None:
    path = write_disk(tmp_path / "disk", OLD)
    with pytest.raises(UsageError, match="no unfinished capture"):
        run(MemoryStore(), path, resume=True)


def test_the_newest_of_several_is_taken(tmp_path: Path) -> None:
    path, store = write_disk(tmp_path / "disk", OLD), MemoryStore()
    for kind in (Kind.FULL, Kind.FULL):
        with pytest.raises(KeyboardInterrupt):
            run(store, path, kind=kind, check_stop=stop_after(5))
    newest = max(store.unfinished)
    made = run(store, path, resume=True)
    assert made.info.name == newest or len(store.unfinished) == 1


def test_a_full_store_leaves_the_set_valid_and_a_partial_to_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store is full for a while, after the first checkpoint; then there is room again."""
    store = LocalStore(tmp_path / "set", suffix=".imagefs")
    store.make()
    path = write_disk(tmp_path / "disk", noise(6 * 2**20))
    monkeypatch.setattr(writer_module, "CHECKPOINT_BYTES", 2**20)
    calls = [0]

    def writev(fd: int, parts: Any) -> int:
        calls[0] += 1
        if calls[0] > 3:
            raise OSError(28, "No space left on device")
        return os.writev(fd, parts)

    monkeypatch.setattr(local_module, "os", DyingOs(Fuse(0, kill=False), writev=writev))
    with pytest.raises(StoreFull):
        run(store, path)
    monkeypatch.setattr(local_module, "os", os)
    assert scan(store).images == ()
    assert len(list(store.partials())) == 1
    made = run(store, path, resume=True)
    assert newest_bytes(store) == path.read_bytes()
    assert verify_image(scan(store), made.info).findings == []
    assert list(store.partials()) == []


def test_what_a_killed_capture_left_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No suspend ran: the partial ends behind a checkpoint that was due, wherever that was."""
    path, store = write_disk(tmp_path / "disk", OLD), MemoryStore()
    monkeypatch.setattr(writer_module, "CHECKPOINT_BYTES", 8 * CHUNK)
    monkeypatch.setattr(ImageWriter, "suspend", lambda *_, **__: True)
    with pytest.raises(KeyboardInterrupt):
        run(store, path, check_stop=stop_after(21))
    store._locked = False
    monkeypatch.undo()
    ((name, _),) = store.unfinished.items()
    partial = read_partial(store.open_partial(name), name)
    assert 8 <= partial.next_chunk < 60
    run(store, path, resume=True)
    assert newest_bytes(store) == OLD


def test_standard_input_cannot_be_resumed(tmp_path: Path) -> None:
    from imagefs.block.devices import StreamSource

    (tmp_path / "x").write_bytes(OLD)
    with (tmp_path / "x").open("rb") as stream, pytest.raises(UsageError, match="cannot be resumed"):
        capture(StreamSource(stream.fileno()), MemoryStore(), CaptureOptions(resume=True))


def test_bad_places_of_the_runs_before_are_still_told(tmp_path: Path) -> None:
    """A disk with a bad stretch of many chunks in what is done and a bad sector in what is not: resuming
    goes on behind it, and the image tells both; the limit counts both."""
    bad = [*range(70, 70 + 9 * 32), 55 * 32]
    (tmp_path / "good").write_bytes(OLD)
    zeroed, store = bytearray(OLD), MemoryStore()
    for sector in bad:
        zeroed[512 * sector : 512 * sector + 512] = bytes(512)
    with failing_disk(tmp_path / "good", tmp_path / "disk", bad) as path:
        with pytest.raises(KeyboardInterrupt):
            run(store, path, hashes=("sha256",), check_stop=stop_after(11))
        kept = dict(store.unfinished)
        with pytest.raises(SourceError, match="more than 288 unreadable"):
            run(store, path, resume=True, max_errors=288)
        store.unfinished = kept
        made = run(store, path, resume=True, max_errors=289)
    assert made.unreadable_bytes == 512 * len(bad)
    assert made.digests == {"sha256": hashlib.sha256(zeroed).hexdigest()}
    assert newest_bytes(store) == zeroed


def test_what_was_read_and_from_where_is_told_of_the_whole_image(tmp_path: Path) -> None:
    """``read_bytes`` is that of a capture that was never stopped; progress is told of what is left."""
    path, store, whole = write_disk(tmp_path / "disk", OLD), MemoryStore(), MemoryStore()
    straight = run(whole, path)
    with pytest.raises(KeyboardInterrupt):
        run(store, path, check_stop=stop_after(16))
    heard = Heard()
    source = open_source(os.fspath(path))
    made = capture(source, store, CaptureOptions(threads=2, level=1, raw=True, resume=True), heard)
    source.close()
    assert made.read_bytes == made.info.summary.read_bytes == straight.read_bytes
    assert 0 < made.read_before < made.read_bytes
    assert made.info.summary.facts["resumed"]["byte"] >= made.read_before
    assert heard.totals["capture"] == heard.counts["capture"] < len(OLD)


class Heard(NoProgress):
    """What was told of each phase."""

    def __init__(self) -> None:
        self.label, self.totals, self.counts = "", {}, Counter[str]()  # type: ignore[var-annotated]

    def start(self, label: str, total: int | None, /) -> None:
        self.label, self.totals[label] = label, total

    def advance(self, count: int, /) -> None:
        self.counts[self.label] += count


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"case": {"case": "other"}}, "case data"),
        ({"hashes": ("md5",)}, "digests"),
        ({"mode": Mode.USED}, "mode"),
        ({"kind": Kind.INCREMENTAL}, "kind"),
        ({"chunk_size": 2 * CHUNK}, "chunk size"),
        ({"note": "other"}, "note"),
        ({"known_bad": ((512, 1024),)}, "mapfile"),
        ({"known_bad": ()}, "mapfile"),
    ],
)
def test_nothing_else_can_be_asked_of_what_was_begun(
    tmp_path: Path, given: dict[str, Any], what: str
) -> None:
    """Case data that came too late would not be in the sealed image, gaps of a mapfile that is left out
    would be taken for zeros; the same again, or no word of it, goes on."""
    path, store = write_disk(tmp_path / "disk", OLD), MemoryStore()
    begun = {"case": {"case": "1"}, "hashes": ("sha256",), "note": "n", "known_bad": ((512, 512),)}
    with pytest.raises(KeyboardInterrupt):
        run(store, path, check_stop=stop_after(9), **begun)
    with pytest.raises(UsageError, match=f"the {what} (is|are) not what"):
        run(store, path, resume=True, **({"known_bad": begun["known_bad"]} | given))
    with pytest.raises(KeyboardInterrupt):
        run(store, path, resume=True, check_stop=stop_after(2), **begun)
    made = run(store, path, resume=True, known_bad=begun["known_bad"])
    assert made.info.header.facts["case"] == {"case": "1"}
    assert made.digests


def test_little_is_under_way_when_the_source_is_slow(tmp_path: Path) -> None:
    """What has been read but not written is lost with the machine, so a low rate makes small batches."""
    path, batches = write_disk(tmp_path / "disk", noise(40 * CHUNK)), Counter[str]()
    for name, rate in (("quick", None), ("slow", 4.0 * CHUNK)):
        run(MemoryStore(), path, rate=rate, check_stop=lambda name=name: batches.update([name]))
    assert (batches["quick"], batches["slow"]) == (20, 40)
