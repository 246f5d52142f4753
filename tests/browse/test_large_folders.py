"""Folders of very many names: listed as they come, looked up through an index, never held in memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from imagefs.block.devices import open_source
from imagefs.block.views import BytesReader
from imagefs.browse import listing, tskdir
from imagefs.browse.bigdir import Damage, ExtNames
from imagefs.browse.content import Piece
from imagefs.browse.nameindex import NameIndex
from imagefs.browse.names import fold
from imagefs.browse.opening import open_filesystem
from imagefs.errors import PathNotFound
from imagefs.interfaces import FileSystem, Named
from tests.browse.disks import CountedReader, dirent, make_large_folder

COUNT = 100_000


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    room = tmp_path_factory.mktemp("large")
    (room / "stage").mkdir()
    return make_large_folder(room / "large.raw", room / "stage", COUNT)


@pytest.fixture
def counted(large: Path) -> Iterator[tuple[FileSystem, CountedReader]]:
    reader = CountedReader(open_source(str(large)))
    fs = open_filesystem(reader)
    yield fs, reader
    fs.close()
    reader.close()


def test_every_name_once_and_in_little_memory(
    counted: tuple[FileSystem, CountedReader], monkeypatch: pytest.MonkeyPatch
) -> None:
    fs, _ = counted
    monkeypatch.setattr(listing, "KEPT_LISTING", 1000)
    folder = fs.lookup(b"/many")
    tracemalloc.start()
    numbers = (int(entry.name[5:12]) for entry in fs.children(folder))
    assert sum(1 for at, number in enumerate(numbers) if at == number) == COUNT
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200 * COUNT, "bytes a name: its hash, its block, nothing of its entry"


def test_the_first_names_come_before_the_folder_is_read(
    counted: tuple[FileSystem, CountedReader],
) -> None:
    fs, reader = counted
    folder = fs.lookup(b"/many")
    reader.bytes = 0
    assert next(iter(fs.children(folder))).name == b"name-0000000.dat"
    assert reader.bytes < folder.size


def test_a_name_is_found_by_one_block_and_a_missing_one_by_none(
    counted: tuple[FileSystem, CountedReader],
) -> None:
    fs, reader = counted
    assert fs.lookup(b"/many/name-0050000.dat").size == 0  # makes the index
    for number in range(0, COUNT, 9_999):
        reader.bytes = 0
        entry = fs.lookup(b"/many/name-%07d.dat" % number)
        assert (entry.size, entry.path) == (number % 100, b"/many/name-%07d.dat" % number)
        assert reader.bytes <= 64 << 10
    reader.bytes = 0
    for name in (b".hidden", b"autorun.inf", b"desktop.ini", b".Trash-0", b"name-0100000.dat", b"a~12"):
        with pytest.raises(PathNotFound):
            fs.lookup(b"/many/" + name)
    assert reader.bytes == 0


def test_names_alone_take_no_look_at_the_files(counted: tuple[FileSystem, CountedReader]) -> None:
    fs, _ = counted
    folder = fs.lookup(b"/many")
    by_name = list(fs.names(folder))  # type: ignore[attr-defined]
    assert all(isinstance(each, Named) for each in by_name)
    assert [(each.name, each.inode, each.type) for each in by_name] == [
        (entry.name, entry.inode, entry.type) for entry in fs.children(folder)
    ]


def test_small_folders_are_the_same_through_the_index(ext4: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def everything() -> list[object]:
        reader = open_source(str(ext4))
        fs = open_filesystem(reader)
        found = [entry for path in (b"/", b"/many", b"/d") for entry in fs.children(fs.lookup(path))]
        again = [fs.lookup(entry.path) for entry in found]
        fs.close()
        reader.close()
        assert again == found
        return list(found)

    before = everything()
    monkeypatch.setattr(tskdir, "_BIG", 0)
    assert everything() == before


def test_equal_names_of_a_large_folder_are_told_apart(ext4: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = open_source(str(ext4))
    fs = open_filesystem(reader)
    known = [entry for entry in fs.children(fs.root()) if entry.name in (b"a.txt", b"rnd")]
    inodes = [int(entry.inode) for entry in known]
    fs.close()
    fs = open_filesystem(reader)
    block = b"".join(dirent(inode, b"same") for inode in inodes)
    content = BytesReader(block + dirent(0, b"", 1024 - len(block)))
    monkeypatch.setattr(tskdir, "_BIG", 0)
    names = ExtNames(content, 1024, [Piece(0, 1024, 0)])
    monkeypatch.setattr(tskdir.Directories, "_names_of", lambda self, directory: names)
    shown = list(fs.children(fs.root()))
    assert [entry.name for entry in shown] == [b"same", b"same~%d" % inodes[1]]
    assert [entry.inode for entry in shown] == [str(inode) for inode in inodes]
    for entry in shown:
        assert fs.lookup(entry.path).inode == entry.inode
    fs.close()
    reader.close()


def test_an_index_finds_names_without_case_and_tells_of_damage() -> None:
    block = dirent(12, "Größe".encode()) + dirent(13, b"Other")
    data = block + dirent(0, b"", 1024 - len(block)) + bytes(1024)
    names = ExtNames(BytesReader(data), 1024, [Piece(0, 2048, 0)])
    index = NameIndex.of(names, fold)
    assert len(index) == 2
    assert [each.inode for each in index.find("gRÖSSE".encode())] == []
    assert [each.inode for each in index.find("GRÖßE".encode())] == [12]
    assert index.damage.blocks == 1
    assert [name.inode for _, block in names.blocks(Damage()) for name in block] == [12, 13]
