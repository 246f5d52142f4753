"""Crash loop: die at the N-th call of the store, N = 1, 2, 3 … until a capture succeeds.

Afterwards the set shows the old world or the complete new image, never anything else; the next
capture works.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from imagefs.errors import StoreError, StoreFull
from imagefs.image.catalog import scan
from imagefs.interfaces import ObjectStore
from imagefs.ops.verify import verify_image
from imagefs.store import LocalStore, MemoryStore
from imagefs.store import local as local_module
from imagefs.store.local import is_being_written
from tests.support.faults import NOT_PERMITTED, DyingOs, FailingStore, Fuse, PowerCut, no_space, refuse
from tests.support.images import (
    CHUNK,
    capture_bytes,
    capture_file,
    disk_bytes,
    newest_bytes,
    noise,
    write_disk,
)
from tests.support.oracles import ToolError, need_tool, root_only, run_tool

OLD = noise(5 * CHUNK, 1) + bytes(3 * CHUNK) + noise(700, 2)
NEW = noise(2 * CHUNK, 1) + noise(CHUNK, 3) + bytes(4 * CHUNK) + noise(CHUNK, 4) + noise(700, 2)
FAR = 200


def worlds(store: ObjectStore, old: int) -> str:
    """``"old"`` or ``"new"``: what the set shows; fails for anything else."""
    catalog = scan(store)
    assert catalog.damaged == ()
    assert [disk_bytes(catalog, info) for info in catalog.images[:old]] == [OLD] * old
    for info in catalog.images:
        assert verify_image(catalog, info, threads=1).findings == []
    if len(catalog.images) == old:
        return "old"
    assert len(catalog.images) == old + 1
    assert newest_bytes(store) == NEW
    return "new"


@pytest.fixture(params=["memory", "local"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param == "memory":
        return MemoryStore()
    made = LocalStore(tmp_path / "set", suffix=".imagefs")
    made.make()
    return made


@pytest.mark.parametrize("error", [StoreError("it failed"), no_space(), KeyboardInterrupt()], ids=repr)
def test_a_failing_store_call_leaves_the_old_world_and_no_litter(
    store: ObjectStore, tmp_path: Path, error: BaseException
) -> None:
    capture_bytes(store, OLD, tmp_path / "disk")
    path = write_disk(tmp_path / "disk", NEW)
    for at in range(1, FAR):
        fuse = Fuse(at, kill=False, error=error)
        try:
            capture_file(FailingStore(store, fuse), path)
        except (StoreError, KeyboardInterrupt):
            assert fuse.blown
            # Only looking at the finished image again may fail after the commit.
            expected = "new" if "commit" in fuse.calls[:-1] else "old"
            assert worlds(store, 1) == expected, fuse.calls
            assert list(store.partials()) == []
            if expected == "new":
                store.delete(scan(store).images[-1].name)
            continue
        if fuse.blown:
            # An old image that cannot be read is told of; what was made is complete all the same.
            assert fuse.calls[-1] != "commit"
            assert fuse.calls[fuse.at - 1] == "open"
            catalog = scan(store)
            assert disk_bytes(catalog, catalog.images[-1]) == NEW
            store.delete(catalog.images[-1].name)
            continue
        break
    assert at > 10
    assert worlds(store, 1) == "new"


@pytest.mark.parametrize("first", [True, False], ids=["first image", "child"])
def test_death_at_the_nth_store_call(tmp_path: Path, first: bool) -> None:
    path = tmp_path / "disk"
    for at in range(1, FAR):
        store = MemoryStore()
        if not first:
            capture_bytes(store, OLD, path)
        write_disk(path, NEW)
        fuse = Fuse(at, kill=True)
        try:
            capture_file(FailingStore(store, fuse), path)
        except PowerCut:
            worlds(store, 0 if first else 1)
            continue
        break
    assert at > 5
    assert worlds(store, 0 if first else 1) == "new"


# -- the local store, one system call at a time ---------------------------------------------------


def dying_captures(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, kill: bool, **instead: object
) -> Iterator[tuple[LocalStore, Fuse, BaseException | None]]:
    """One set per N, captured into until the N-th system call, up to the N that succeeds."""
    path = folder / "disk"
    for at in range(1, FAR):
        store = LocalStore(folder / f"set{at}", suffix=".imagefs")
        store.make()
        capture_bytes(store, OLD, path)
        write_disk(path, NEW)
        fuse = Fuse(at, kill=kill, error=OSError(errno.EIO, "Input/output error"))
        dying, caught = DyingOs(fuse, **instead), None
        monkeypatch.setattr(local_module, "os", dying)
        try:
            capture_file(store, path)
        except (PowerCut, StoreError, OSError) as error:
            caught = error
        monkeypatch.undo()
        if kill:
            dying.bury()
        yield store, fuse, caught
        if caught is None:
            return
    raise AssertionError("it never succeeded")


def test_death_at_the_nth_system_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, shown = set(), ""
    for store, fuse, _ in dying_captures(tmp_path, monkeypatch, kill=True):
        seen.update(fuse.calls[-1:])
        shown = worlds(store, 1)
        # A dead process holds nothing back: no lock, no partial that looks busy.
        store.lock().release()
        assert not any(is_being_written(store.folder / info.name) for info in store.partials())
        capture_file(store, tmp_path / "disk")
        assert newest_bytes(store) == NEW
    assert shown == "new"
    assert {"open", "writev", "fsync", "fchmod", "link", "unlink", "close"} <= seen


def test_an_error_of_the_nth_system_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """EIO is answered with a StoreError, and no partial is left."""
    last = ""
    for store, fuse, error in dying_captures(tmp_path, monkeypatch, kill=False):
        last = worlds(store, 1)
        if error is None:
            continue
        failed = fuse.calls[fuse.at - 1]
        assert isinstance(error, StoreError), (fuse.calls, error)
        # Nothing can remove a partial whose removal is what fails.
        assert list(store.partials()) == [] or failed == "unlink", fuse.calls
    assert last == "new"


@pytest.mark.parametrize("has_renameat2", [True, False], ids=["renameat2", "rename"])
def test_death_where_the_file_system_has_no_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_renameat2: bool
) -> None:
    """exFAT and some shares: the name comes by renameat2, or by rename where that is missing too."""
    shown = []
    real = local_module.ctypes

    class OldLibrary:
        """ctypes with a C library that has no renameat2."""

        CDLL = staticmethod(lambda *_, **__: object())
        get_errno = staticmethod(real.get_errno)

    def captures() -> Iterator[LocalStore]:
        for store, _, _ in dying_captures(tmp_path, monkeypatch, kill=True, link=NOT_PERMITTED):
            yield store

    if not has_renameat2:
        monkeypatch_ctypes = pytest.MonkeyPatch()
        monkeypatch_ctypes.setattr(local_module, "ctypes", OldLibrary)
    try:
        shown = [worlds(store, 1) for store in captures()]
    finally:
        if not has_renameat2:
            monkeypatch_ctypes.undo()
    assert shown[-1] == "new"
    assert shown == sorted(shown, reverse=True), "once the new image shows, a later death keeps it"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_store_names_the_room_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    store = LocalStore(tmp_path / "set", suffix=".imagefs")
    store.make()
    path = write_disk(tmp_path / "disk", noise(4 * 2**20))
    monkeypatch.setattr(local_module, "os", DyingOs(Fuse(0, kill=False), writev=refuse(number)))
    with pytest.raises(StoreFull, match=r"bytes are needed"):
        capture_file(store, path, chunk_size=CHUNK)
    monkeypatch.undo()
    assert list(store.list()) == list(store.partials()) == []
    assert [entry.name for entry in store.folder.iterdir()] == [".lock"]


@root_only
def test_a_full_disk(tmp_path: Path) -> None:
    """A real file system of 2 MiB, and a disk of 8 MiB that does not pack."""
    need_tool("mount", "umount")
    folder = tmp_path / "small"
    folder.mkdir()
    try:
        run_tool(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder])
    except ToolError as error:
        pytest.skip(f"tmpfs cannot be mounted here: {error}")
    try:
        store = LocalStore(folder / "set", suffix=".imagefs")
        store.make()
        capture_bytes(store, OLD, tmp_path / "disk")
        with pytest.raises(StoreFull) as caught:
            capture_bytes(store, OLD + noise(8 * 2**20), tmp_path / "disk")
        needed = int(caught.value.message.split("about ")[1].split()[0])
        assert 7 * 2**20 < needed < 10 * 2**20
        assert worlds(store, 1) == "old"
        assert list(store.partials()) == []
    finally:
        run_tool(["umount", folder])
