"""The cache folder: bounded, private, and never in anybody's way."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from imagefs.store import CacheFolder
from imagefs.store import cachefolder as module
from tests.support.oracles import root_only


def test_what_was_put_is_got(tmp_path: Path) -> None:
    cache = CacheFolder(tmp_path / "deep" / "cache")
    assert cache.get("a", 100) is None
    cache.put("a", (b"one ", b"two"))
    assert cache.get("a", 100) == b"one two"
    cache.put("a", (b"three",))
    assert cache.get("a", 100) == b"three"
    assert cache.get("a", 4) is None, "longer than was asked for"
    assert os.listdir(cache.folder) == ["a"]


def test_it_is_for_its_owner_alone(tmp_path: Path) -> None:
    cache = CacheFolder(tmp_path / "cache")
    cache.put("a", (b"x",))
    assert stat.S_IMODE(cache.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((cache.folder / "a").stat().st_mode) == 0o600


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_what_others_may_write_is_not_believed(tmp_path: Path, mode: int) -> None:
    cache = CacheFolder(tmp_path / "cache")
    cache.put("a", (b"x",))
    (cache.folder / "a").chmod(mode)
    assert cache.get("a", 100) is None


def test_nor_a_folder_that_others_may_write(tmp_path: Path) -> None:
    cache = CacheFolder(tmp_path / "cache")
    cache.put("a", (b"x",))
    cache.folder.chmod(0o770)
    assert cache.get("a", 100) is None
    cache.put("b", (b"x",))
    assert os.listdir(cache.folder) == ["a"]


@root_only
def test_nor_what_is_another_users(tmp_path: Path) -> None:
    cache = CacheFolder(tmp_path / "cache")
    cache.put("a", (b"x",))
    os.chown(cache.folder / "a", 65534, 65534)
    assert cache.get("a", 100) is None
    cache.put("a", (b"ours",))
    assert cache.get("a", 100) == b"ours"
    os.chown(cache.folder, 65534, 65534)
    assert cache.get("a", 100) is None


@root_only
def test_root_makes_no_folder_in_the_home_of_another(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    os.chown(home, 65534, 65534)
    CacheFolder(home / ".cache" / "imagefs").put("a", (b"x",))
    assert os.listdir(home) == []


def test_links_pipes_and_folders_are_not_followed(tmp_path: Path) -> None:
    cache = CacheFolder(tmp_path / "cache")
    cache.put("a", (b"x",))
    (tmp_path / "precious").write_bytes(b"precious")
    (cache.folder / "link").symlink_to(tmp_path / "precious")
    os.mkfifo(cache.folder / "pipe", 0o600)
    (cache.folder / "folder").mkdir(0o700)
    for name in ("link", "pipe", "folder", "none"):
        assert cache.get(name, 100) is None
    cache.put("link", (b"new",))
    cache.put("folder", (b"new",))
    assert (tmp_path / "precious").read_bytes() == b"precious"
    assert cache.get("link", 100) == b"new"


@pytest.mark.parametrize("place", ["file/cache", "/proc/none/cache", "file"])
def test_where_nothing_can_be_written_nothing_is_kept(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_bytes(b"in the way")
    cache = CacheFolder(tmp_path / place)
    cache.put("a", (b"x",))
    assert cache.get("a", 100) is None
    assert (tmp_path / "file").read_bytes() == b"in the way"


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = CacheFolder(tmp_path / "cache")
    cache.put("a", (b"old",))

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "write", full)
    cache.put("a", (b"new",))
    monkeypatch.undo()
    assert cache.get("a", 100) == b"old"
    assert os.listdir(cache.folder) == ["a"]


def test_the_longest_unused_goes_first(tmp_path: Path) -> None:
    cache = CacheFolder(tmp_path / "cache", max_bytes=350)
    for number, name in enumerate("abc"):
        cache.put(name, (bytes(100),))
        os.utime(cache.folder / name, (1000 + number, 1000 + number))
    assert cache.get("a", 100) == bytes(100)  # used just now
    cache.put("d", (bytes(100),))
    assert sorted(os.listdir(cache.folder)) == ["a", "c", "d"]
    cache.put("e", (bytes(300),))
    assert os.listdir(cache.folder) == ["e"]


def test_one_that_is_too_large_alone_goes_too(tmp_path: Path) -> None:
    cache = CacheFolder(tmp_path / "cache", max_bytes=100)
    cache.put("a", (bytes(101),))
    assert os.listdir(cache.folder) == []


def test_what_a_dead_process_left_is_swept(tmp_path: Path) -> None:
    cache = CacheFolder(tmp_path / "cache")
    cache.put("a", (b"x",))
    for name, age in (("old.1.new", 10_000), ("young.2.new", 0)):
        (cache.folder / name).write_bytes(b"half")
        when = (cache.folder / name).stat().st_mtime - age
        os.utime(cache.folder / name, (when, when))
    cache.put("b", (b"x",))
    assert sorted(os.listdir(cache.folder)) == ["a", "b", "young.2.new"]


def test_two_writers_of_one_name(tmp_path: Path) -> None:
    """One that is half written when the other ends: what appears is the other's, whole, then its own."""
    cache = CacheFolder(tmp_path / "cache")
    begun, go_on = threading.Event(), threading.Event()

    def slow() -> Iterator[bytes]:
        yield b"slow "
        begun.set()
        assert go_on.wait(300)
        yield b"one"

    def quick() -> Iterator[bytes]:
        yield b"quick "
        writer.start()
        assert begun.wait(300)
        yield b"one"

    writer = threading.Thread(target=cache.put, args=("a", slow()))
    cache.put("a", quick())
    assert cache.get("a", 100) == b"quick one"
    go_on.set()
    writer.join()
    assert cache.get("a", 100) == b"slow one"
    assert os.listdir(cache.folder) == ["a"]


def test_a_writer_that_fails_leaves_nothing(tmp_path: Path) -> None:
    cache = CacheFolder(tmp_path / "cache")

    def failing() -> Iterator[bytes]:
        yield b"half"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.put("a", failing())
    assert os.listdir(cache.folder) == []


def test_a_signal_after_it_has_its_name_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, rename = CacheFolder(tmp_path / "cache"), os.rename

    def interrupted(*words: Any, **more: Any) -> None:
        rename(*words, **more)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cache.put("a", (b"whole",))
    assert cache.get("a", 100) == b"whole"


def test_many_at_once(tmp_path: Path) -> None:
    """Each sees nothing or a whole one."""
    folder, bad = tmp_path / "cache", []

    def work(seed: int) -> None:
        cache = CacheFolder(folder, max_bytes=20_000)
        for turn in range(60):
            cache.put(f"{turn % 7}", (bytes([seed]) * 1500, bytes([seed]) * 1500))
            found = cache.get(f"{(turn + seed) % 7}", 10_000)
            if found is not None and (len(found) != 3000 or len(set(found)) != 1):
                bad.append(found)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert bad == []
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 20_000
