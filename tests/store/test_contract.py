"""The ObjectStore contract (imagefs/interfaces.py) on every store, and what is special of the local one."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagefs.errors import StoreError, StoreFull
from imagefs.store import LocalStore, MemoryStore
from imagefs.store import local as local_module
from imagefs.store.local import LocalReader, is_being_written
from tests.support.faults import NOT_PERMITTED, DyingOs, Fuse, refuse
from tests.support.images import noise
from tests.support.oracles import root_only
from tests.support.reader_contract import check_reader

Store = LocalStore | MemoryStore


@pytest.fixture(params=["memory", "local", "local without links"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    if request.param == "memory":
        return MemoryStore()
    if request.param != "local":
        monkeypatch.setattr(local_module, "os", DyingOs(Fuse(0, kill=False), link=NOT_PERMITTED))
    return local_store(tmp_path)


def local_store(tmp_path: Path) -> LocalStore:
    store = LocalStore(tmp_path / "set")
    store.make()
    return store


def put(store: Store, name: str, data: bytes) -> None:
    out = store.create(name)
    out.append(data)
    out.commit()


def content(store: Store, name: str) -> bytes:
    reader = store.open(name)
    try:
        return reader.read_at(0, reader.size)
    finally:
        reader.close()


def listed(store: Store) -> dict[str, int]:
    return {info.name: info.size for info in store.list()}


# -- the contract ---------------------------------------------------------------------------------


def test_what_is_put_comes_back(store: Store) -> None:
    data = noise(300_000)
    put(store, "a", data)
    check_reader(store.open("a"), data, rounds=30)
    assert listed(store) == {"a": len(data)}


def test_nothing_is_visible_before_commit(store: Store) -> None:
    out = store.create("a")
    out.append(noise(3_000_000))
    assert listed(store) == {}
    assert len(list(store.partials())) == 1
    with pytest.raises(StoreError):
        store.open("a")
    out.commit()
    assert listed(store) == {"a": 3_000_000}
    assert list(store.partials()) == []


def test_abort_leaves_nothing(store: Store) -> None:
    out = store.create("a")
    out.append(noise(2_000_000))
    out.abort()
    out.abort()
    assert listed(store) == {}
    assert list(store.partials()) == []
    put(store, "a", b"again")
    assert content(store, "a") == b"again"


def test_a_finished_writer_takes_nothing_more(store: Store) -> None:
    out = store.create("a")
    out.append(b"one")
    out.commit()
    for call in (lambda: out.append(b"two"), out.commit):
        with pytest.raises(StoreError):
            call()
    out.abort()
    assert content(store, "a") == b"one"


def test_an_aborted_writer_takes_nothing_more(store: Store) -> None:
    out = store.create("a")
    out.abort()
    for call in (lambda: out.append(b"two"), out.commit):
        with pytest.raises(StoreError):
            call()
    assert listed(store) == {}


def test_nothing_is_overwritten(store: Store) -> None:
    put(store, "a", b"first")
    with pytest.raises(StoreError, match="exists"):
        store.create("a")
    assert content(store, "a") == b"first"


def test_two_writers_of_one_name(store: Store) -> None:
    """One of them wins, at the latest in commit; the other is told."""
    first = store.create("a")
    with pytest.raises(StoreError):
        second = store.create("a")
        second.append(b"second")
        second.commit()
    first.append(b"first")
    first.commit()
    assert content(store, "a") == b"first"


def test_a_name_taken_while_we_wrote(store: Store) -> None:
    out = store.create("a")
    out.append(b"mine")
    if isinstance(store, MemoryStore):
        store.objects["a"] = b"theirs"
    else:
        (store.folder / "a").write_bytes(b"theirs")
    with pytest.raises(StoreError, match="exists"):
        out.commit()
    with pytest.raises(StoreError):
        out.append(b"more")
    out.abort()
    assert content(store, "a") == b"theirs"
    assert list(store.partials()) == []


def test_missing_objects(store: Store) -> None:
    for call in (lambda: store.open("none"), lambda: store.delete("none")):
        with pytest.raises(StoreError):
            call()


def test_delete(store: Store) -> None:
    put(store, "a", b"x")
    put(store, "b", b"y")
    store.delete("a")
    assert listed(store) == {"b": 1}


def test_an_open_object_survives_its_deletion(store: Store) -> None:
    put(store, "a", b"still here")
    reader = store.open("a")
    store.delete("a")
    assert reader.read_at(0, 100) == b"still here"
    reader.close()


def test_position_counts_what_was_appended(store: Store) -> None:
    out = store.create("a")
    for number in range(40):
        assert out.position == number * 100_000
        out.append(memoryview(noise(100_000, number)))
    out.append(b"")
    out.commit()
    assert content(store, "a") == b"".join(noise(100_000, number) for number in range(40))


def test_many_small_appends(store: Store) -> None:
    out = store.create("a")
    for number in range(5000):
        out.append(bytes([number % 251]))
    out.commit()
    assert content(store, "a") == bytes(number % 251 for number in range(5000))


def test_the_lock_is_exclusive(store: Store) -> None:
    lock = store.lock()
    with pytest.raises(StoreError, match="another capture is at work"):
        store.lock()
    lock.release()
    lock.release()
    again = store.lock()
    lock.release()  # an old holder's release must not free the new one
    with pytest.raises(StoreError):
        store.lock()
    again.release()


def test_lists_are_sorted(store: Store) -> None:
    for name in ("b", "c", "a"):
        put(store, name, b"")
    assert list(listed(store)) == ["a", "b", "c"]


# -- the local store ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../a", "/etc/passwd"])
def test_names_that_lead_elsewhere(tmp_path: Path, name: str) -> None:
    store = local_store(tmp_path)
    for call in (store.open, store.create, store.delete):
        with pytest.raises(StoreError, match="not a name"):
            call(name)


def test_modes(tmp_path: Path) -> None:
    store = local_store(tmp_path)
    assert mode(store.folder) == 0o700
    out = store.create("a")
    assert mode(store.folder / "a.partial") == 0o600
    out.commit()
    assert mode(store.folder / "a") == 0o400
    store.lock().release()
    assert mode(store.folder / ".lock") == 0o600


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@root_only
def test_what_root_makes_belongs_to_the_owner_of_the_folder(tmp_path: Path) -> None:
    os.chown(tmp_path, 1234, 2345)
    store = local_store(tmp_path)
    store.lock().release()
    put(store, "a", b"x")
    store.create("b")
    owners = {
        (facts.st_uid, facts.st_gid)
        for facts in (path.stat() for path in [store.folder, *store.folder.iterdir()])
    }
    assert len(list(store.folder.iterdir())) == 3
    assert owners == {(1234, 2345)}


@root_only
def test_shares_that_do_not_let_root_give_files_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_module, "os", DyingOs(Fuse(0, kill=False), chown=NOT_PERMITTED))
    store = local_store(tmp_path)
    store.lock().release()
    put(store, "a", b"x")
    assert content(store, "a") == b"x"


@pytest.mark.parametrize("call", ["chown", "open"])
def test_a_writer_that_cannot_begin_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    store = local_store(tmp_path)
    instead: dict[str, Any] = {call: refuse(errno.EIO)}
    monkeypatch.setattr(local_module, "os", DyingOs(Fuse(0, kill=False), **instead))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    for begin in (lambda: store.create("a"), store.lock):
        with pytest.raises(StoreError, match="Input/output error"):
            begin()
    monkeypatch.undo()
    assert list(store.partials()) == []
    store.lock().release()


def test_only_the_last_folder_is_made(tmp_path: Path) -> None:
    """An unmounted stick must not fill the root disk."""
    with pytest.raises(StoreError, match="does not exist") as caught:
        LocalStore(tmp_path / "media" / "stick" / "set").make()
    assert "mount" in caught.value.hint
    assert not (tmp_path / "media").exists()


def test_make_is_harmless_where_the_folder_is(tmp_path: Path) -> None:
    store = local_store(tmp_path)
    put(store, "a", b"x")
    store.folder.chmod(0o755)
    store.make()
    assert mode(store.folder) == 0o755
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="not a folder"):
        LocalStore(tmp_path / "file").make()


def test_a_folder_that_is_not_there_is_an_empty_set(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "none", suffix=".imagefs")
    assert list(store.list()) == list(store.partials()) == []
    assert store.free_bytes() is None
    with pytest.raises(StoreError):
        store.lock()
    with pytest.raises(StoreError):
        store.create("a")


def test_free_bytes(tmp_path: Path) -> None:
    free = local_store(tmp_path).free_bytes()
    facts = os.statvfs(tmp_path)
    assert free is not None
    assert abs(free - facts.f_bavail * facts.f_frsize) < 2**30


def test_a_partial_tells_whether_it_is_being_written(tmp_path: Path) -> None:
    store = local_store(tmp_path)
    out = store.create("a")
    partial = store.folder / "a.partial"
    assert is_being_written(partial)
    out.append(b"x")
    out.abort()
    partial.write_bytes(b"left by a crash")
    assert not is_being_written(partial)
    assert not is_being_written(store.folder / "none")


def test_the_lock_and_the_partial_of_a_killed_process(tmp_path: Path) -> None:
    store = local_store(tmp_path)
    code = (
        "import os, sys\n"
        "from imagefs.store import LocalStore\n"
        "store = LocalStore(sys.argv[1])\n"
        "lock, out = store.lock(), store.create('a')\n"
        "out.append(b'x' * 2**21)\n"
        "print('ready', flush=True)\n"
        "sys.stdin.read()\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, store.url], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"ready\n"
    with pytest.raises(StoreError, match="another capture"):
        store.lock()
    assert is_being_written(store.folder / "a.partial")
    child.kill()
    child.communicate(timeout=600)
    store.lock().release()
    assert not is_being_written(store.folder / "a.partial")
    assert [info.size for info in store.partials()] == [2**21]


def test_a_lock_that_is_a_symlink_is_not_followed(tmp_path: Path) -> None:
    store = local_store(tmp_path)
    (store.folder / ".lock").symlink_to(tmp_path / "victim")
    with pytest.raises(StoreError):
        store.lock()
    assert not (tmp_path / "victim").exists()


def test_a_symlink_in_place_of_the_partial(tmp_path: Path) -> None:
    store = local_store(tmp_path)
    (tmp_path / "victim").write_bytes(b"precious")
    (store.folder / "a.partial").symlink_to(tmp_path / "victim")
    with pytest.raises(StoreError):
        store.create("a")
    (store.folder / "b").symlink_to(tmp_path / "nowhere")
    with pytest.raises(StoreError, match="exists"):
        store.create("b")
    assert (tmp_path / "victim").read_bytes() == b"precious"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    store = local_store(tmp_path)
    out = store.create("a")
    monkeypatch.setattr(local_module, "os", DyingOs(Fuse(0, kill=False), writev=refuse(number)))
    with pytest.raises(StoreFull, match="no space left") as caught:
        out.append(noise(2**21))
    assert str(store.folder) in caught.value.message
    for call in (lambda: out.append(b"x"), out.commit):
        with pytest.raises(StoreError, match="after a failure"):
            call()
    out.abort()
    assert list(store.folder.iterdir()) == []


def test_short_writes_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = local_store(tmp_path)

    def dribble(fd: int, parts: list[bytes]) -> int:
        return os.write(fd, b"".join(parts)[:70_001])

    monkeypatch.setattr(local_module, "os", DyingOs(Fuse(0, kill=False), writev=dribble))
    data = noise(2_500_000)
    out = store.create("a")
    for start in range(0, len(data), 333_333):
        out.append(data[start : start + 333_333])
        assert out.position == min(start + 333_333, len(data))
    out.commit()
    monkeypatch.undo()
    assert content(store, "a") == data


def test_the_order_of_durability(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data before the name, the name before the partial goes, the folder last."""
    store = local_store(tmp_path)
    fuse = Fuse(0, kill=False)
    monkeypatch.setattr(local_module, "os", DyingOs(fuse))
    put(store, "a", b"x")
    assert [call for call in fuse.calls if call not in ("open", "close", "chown")] == [
        "writev",
        "fsync",
        "fchmod",
        "link",
        "unlink",
        "fsync",
    ]


def test_reader_of_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/null"), tmp_path / "none"):
        with pytest.raises(StoreError):
            LocalReader(path)


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(noise(10_000))
    reader = LocalReader(path)
    os.truncate(path, 5000)
    assert reader.read_at(0, 5000) == noise(10_000)[:5000]
    with pytest.raises(StoreError, match="shorter"):
        reader.read_at(4000, 2000)
    reader.close()


@given(st.lists(st.binary(max_size=3000), max_size=30))
def test_any_appends(parts: list[bytes]) -> None:
    store = MemoryStore()
    out = store.create("a")
    for part in parts:
        out.append(part)
    out.commit()
    assert content(store, "a") == b"".join(parts)
