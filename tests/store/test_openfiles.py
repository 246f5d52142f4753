"""Few files open for many readers, and never the wrong one."""

from __future__ import annotations

import os
import random
import threading
from pathlib import Path

import pytest

from imagefs.errors import StoreError
from imagefs.store import LocalStore
from imagefs.store.local import LocalReader, OpenFiles
from tests.support.images import noise


def files_open(folder: Path) -> int:
    """How many files of ``folder`` this process has open."""
    found = 0
    for number in os.listdir("/proc/self/fd"):
        try:
            found += os.readlink(f"/proc/self/fd/{number}").startswith(f"{folder}/")
        except FileNotFoundError:  # the descriptor of the listing itself
            continue
    return found


def store_of(folder: Path, count: int, max_open: int) -> LocalStore:
    folder.mkdir()
    for number in range(count):
        (folder / f"{number:03}").write_bytes(noise(2000, number))
    return LocalStore(folder, max_open=max_open)


def test_so_many_and_no_more(tmp_path: Path) -> None:
    store = store_of(tmp_path / "set", 40, max_open=5)
    readers = [store.open(f"{number:03}") for number in range(40)]
    assert files_open(store.folder) == 5
    for turn in range(200):
        number = turn * 13 % 40
        assert readers[number].read_at(turn, 100) == noise(2000, number)[turn : turn + 100]
        assert files_open(store.folder) <= 5
    for reader in readers:
        reader.close()
        reader.close()
    assert files_open(store.folder) == 0
    with pytest.raises(StoreError, match="is closed"):
        readers[3].read_at(0, 1)


def test_many_threads_over_many_files(tmp_path: Path) -> None:
    store = store_of(tmp_path / "set", 30, max_open=3)
    readers = [store.open(f"{number:03}") for number in range(30)]
    wrong: list[object] = []

    def work(seed: int) -> None:
        dice = random.Random(seed)
        for _ in range(400):
            number, at = dice.randrange(30), dice.randrange(1900)
            try:
                if readers[number].read_at(at, 100) != noise(2000, number)[at : at + 100]:
                    wrong.append((number, at))
            except BaseException as error:
                wrong.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert files_open(store.folder) <= 3
    for reader in readers:
        reader.close()
    assert files_open(store.folder) == 0


def test_a_file_that_two_threads_open_at_once_is_not_closed_under_the_slower_one(tmp_path: Path) -> None:
    files = OpenFiles(limit=2)
    store_of(tmp_path / "set", 3, max_open=1)
    slow, *others = (LocalReader(tmp_path / "set" / name, files) for name in ("000", "001", "002"))
    open_it = slow.open

    def open_late() -> int:
        slow.open = open_it  # type: ignore[method-assign]
        fd = open_it()
        assert slow.read_at(0, 10) == noise(2000, 0)[:10]  # a quicker thread opens it, reads and is done
        return fd

    slow.open = open_late  # type: ignore[method-assign]
    fd = files.take(slow)
    for number, other in enumerate(others, 1):  # they push out what is idle
        assert other.read_at(0, 10) == noise(2000, number)[:10]
    assert os.pread(fd, 10, 0) == noise(2000, 0)[:10]
    files.give(slow)
    assert files_open(tmp_path / "set") == 2


def test_closing_while_others_read(tmp_path: Path) -> None:
    """They get their bytes or are told that it is closed; no descriptor stays, none is closed twice."""
    store = store_of(tmp_path / "set", 1, max_open=2)
    for _ in range(50):
        reader = store.open("000")
        wrong: list[object] = []
        begun = threading.Barrier(4)

        def work(reader=reader, begun=begun, wrong=wrong) -> None:  # type: ignore[no-untyped-def]
            begun.wait()
            try:
                for _ in range(20):
                    if reader.read_at(0, 2000) != noise(2000, 0):
                        wrong.append("bytes")
            except StoreError as error:
                if "is closed" not in error.message:
                    wrong.append(error)

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        begun.wait()
        reader.close()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert files_open(store.folder) == 0


def test_a_file_that_was_replaced_meanwhile_is_not_taken_for_it(tmp_path: Path) -> None:
    store = store_of(tmp_path / "set", 3, max_open=1)
    first = store.open("000")
    store.open("001").read_at(0, 1)
    (store.folder / "new").write_bytes(noise(2000, 9))
    os.replace(store.folder / "new", store.folder / "000")
    with pytest.raises(StoreError, match="was replaced"):
        first.read_at(0, 10)
    assert files_open(store.folder) <= 1


def test_a_file_that_went_away_is_told_and_others_go_on(tmp_path: Path) -> None:
    store = store_of(tmp_path / "set", 3, max_open=1)
    first, second = store.open("000"), store.open("001")
    (store.folder / "000").unlink()
    for _ in range(3):
        with pytest.raises(StoreError, match="No such file"):
            first.read_at(0, 10)
        assert second.read_at(0, 10) == noise(2000, 1)[:10]


def test_a_store_stays_where_it_was_when_the_process_goes_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mount in the background leaves its directory, and opens layers after that."""
    store_of(tmp_path / "set", 3, max_open=1)
    monkeypatch.chdir(tmp_path)
    store = LocalStore("set", max_open=1)
    first = store.open("000")
    monkeypatch.chdir("/")
    assert store.open("001").read_at(0, 10) == noise(2000, 1)[:10]
    assert first.read_at(0, 10) == noise(2000, 0)[:10]
