"""What walking and probing the shown folders costs in calls into the file system."""

from __future__ import annotations

import stat
from collections.abc import Iterator

import pytest

from imagefs.block.views import BytesReader
from imagefs.errors import PathNotFound
from imagefs.interfaces import Entry, EntryType, Named
from mounter.tree import MountTree, VolumeSpec
from tests.mounter.fakes import FakeFileSystem, directory, file, spec_of

#: What file managers and their helpers look for in every folder they see.
PROBES = (
    *(b".Trash", b".Trash-0", b".Trash-1000", b".hidden", b".directory", b"autorun.inf", b"AUTORUN.INF"),
    *(b"desktop.ini", b"Desktop.ini", b"Thumbs.db", b".DS_Store", b".localized", b"._.", b".xdg-volume-info"),
    *(b".git", b".svn", b"autorun.sh", b".autorun", b".nomedia", b"folder.jpg", b"CACHEDIR.TAG"),
)


class NamingFileSystem(FakeFileSystem):
    """Can list names alone; ``named`` tells of which folders it was asked to."""

    def __init__(self, entries: list[Entry], **more: bool) -> None:
        super().__init__(entries, **more)
        self.named: list[bytes] = []

    def names(self, entry: Entry, /) -> Iterator[Entry | Named]:
        self.named.append(entry.path)
        children = list(self.children(entry))
        self.listed.pop()
        for child in children:
            whole = child.type is EntryType.DIRECTORY
            yield child if whole else Named(child.name, child.type, child.inode)


def tree_over(filesystem: FakeFileSystem) -> MountTree:
    volume = VolumeSpec("p1", BytesReader(b""), lambda: filesystem)
    return MountTree(spec_of(BytesReader(b""), volume), log=[].append)


def folders(count: int, files: int = 5) -> list[Entry]:
    made = [directory(b"/d%d" % at, inode=str(100 + at)) for at in range(count)]
    inside = [
        file(b"/d%d/f%d" % (at, n), 7, inode=str(1000 + 10 * at + n))
        for at in range(count)
        for n in range(files)
    ]
    return made + inside


def walk(tree: MountTree, path: bytes = b"/p1", *, look: bool = False) -> int:
    """As ``find`` does it, or as ``ls -lR``: it asks for what the listing did not tell."""
    count = 0
    for name, attributes in list(tree.children(tree.find(path))):
        count += 1
        below = path + b"/" + name
        if look and not attributes.nlink:
            attributes = tree.find(below).attributes
            assert attributes.size == 7
        if attributes.is_directory:
            count += walk(tree, below, look=look)
    return count


def test_a_walk_lists_each_folder_once_and_looks_nothing_up() -> None:
    filesystem = FakeFileSystem(folders(300))
    assert walk(tree_over(filesystem), look=True) == 1800
    assert len(filesystem.listed) == len(set(filesystem.listed)) == 301
    assert filesystem.lookups == []


def test_who_asks_for_names_only_gets_names_only() -> None:
    filesystem = NamingFileSystem(folders(300))
    assert walk(tree_over(filesystem)) == 1800
    assert len(filesystem.listed) < 10
    assert len(filesystem.listed) + len(filesystem.named) == 301
    assert filesystem.lookups == []


def test_who_asks_for_more_gets_it_with_the_names() -> None:
    filesystem = NamingFileSystem(folders(300))
    assert walk(tree_over(filesystem), look=True) == 1800
    assert len(filesystem.named) < 300 / 5
    assert len(filesystem.listed) <= 301
    assert filesystem.lookups == []


def test_files_listed_by_name_are_whole_when_asked_for() -> None:
    filesystem = NamingFileSystem(folders(60))
    tree = tree_over(filesystem)
    walk(tree)
    for at in range(60):
        for number in range(5):
            found = tree.find(b"/p1/d%d/f%d" % (at, number)).attributes
            assert (found.size, found.mode) == (7, stat.S_IFREG | 0o640)
    assert len(filesystem.listed) <= 61 + 10, "one listing a folder, not one a file"
    assert filesystem.lookups == []


def test_a_number_is_the_same_listed_by_name_or_in_full() -> None:
    filesystem = NamingFileSystem(folders(30))
    tree = tree_over(filesystem)
    walk(tree)
    listed = {name: each.inode for name, each in tree.children(tree.find(b"/p1/d29"))}
    assert filesystem.named[-1] == b"/d29"
    assert listed == {name: tree.find(b"/p1/d29/" + name).attributes.inode for name in listed}


@pytest.mark.parametrize("case_insensitive", [False, True])
def test_probes_are_answered_from_the_cached_folder(case_insensitive: bool) -> None:
    entries = [file("/Größe Ω.txt".encode()), file(b"/a")]
    for kind in (FakeFileSystem, NamingFileSystem):
        filesystem = kind(entries, case_insensitive=case_insensitive)
        tree = tree_over(filesystem)
        list(tree.children(tree.find(b"/p1")))
        for name in PROBES:
            for path in (b"/p1/" + name, b"/" + name):
                with pytest.raises(PathNotFound):
                    tree.find(path)
        assert (filesystem.lookups, filesystem.listed) == ([], [b"/"])
