"""What walking and probing the shown folders costs in calls into the file system."""

from __future__ import annotations

import ctypes
import stat
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from imagefs.block.views import BytesReader
from imagefs.errors import PathNotFound
from imagefs.interfaces import Entry, EntryType, Named
from mounter.attributes import Attributes
from mounter.fullfuse import stat_packer
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


def test_a_packed_stat_is_what_the_binding_would_write() -> None:
    mfusepy = pytest.importorskip("mfusepy")
    attributes = Attributes(0o100640, 10**12, 1 << 48 | 12, 3, 1000, 2**32 - 2, -5, 10**18 + 7, 0, 2049, 8192)
    expected = mfusepy.c_stat()
    fields = {
        "st_mode": 0o100640,
        "st_ino": 1 << 48 | 12,
        "st_nlink": 3,
        "st_uid": 1000,
        "st_gid": 2**32 - 2,
        "st_rdev": 2049,
        "st_size": 10**12,
        "st_blocks": 16,
        "st_mtime": -5,
        "st_atime": 10**18 + 7,
        "st_ctime": 0,
    }
    mfusepy.set_st_attrs(expected, fields, use_ns=True)
    assert stat_packer(mfusepy.c_stat)(attributes) == ctypes.string_at(
        ctypes.addressof(expected), ctypes.sizeof(expected)
    )


def test_a_stat_of_any_layout_is_packed_by_its_fields() -> None:
    class Time(ctypes.Structure):
        _fields_ = [("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long)]

    class Stat(ctypes.Structure):
        _fields_ = [
            *(
                ("st_size", ctypes.c_int64),
                ("pad", ctypes.c_int64),
                ("st_mtimespec", Time),
                ("st_ino", ctypes.c_uint64),
            ),
            *(("st_mode", ctypes.c_uint32), ("st_nlink", ctypes.c_uint32), ("st_uid", ctypes.c_uint32)),
            *(("st_gid", ctypes.c_uint32), ("st_rdev", ctypes.c_uint64), ("st_ctimespec", Time)),
            *(("st_atimespec", Time), ("st_blocks", ctypes.c_int64)),
        ]

    packed = Stat.from_buffer_copy(stat_packer(Stat)(Attributes(0o40755, 5, 6, 7, 8, 9, 10, 11, 12, 13)))
    found = SimpleNamespace(
        **{name: getattr(packed, name) for name, *_ in Stat._fields_ if "time" not in name}
    )
    assert (found.st_mode, found.st_size, found.st_ino, found.st_nlink, found.st_uid) == (0o40755, 5, 6, 7, 8)
    assert (found.st_gid, found.st_rdev, found.st_blocks, found.pad) == (9, 13, 1, 0)
    assert [getattr(packed, f"st_{each}timespec").tv_nsec for each in "mac"] == [10, 11, 12]
