"""What ``stat`` shows of entries, hostile ones included."""

from __future__ import annotations

import os
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagefs.interfaces import Entry, EntryType
from mounter.attributes import attributes_of, inode_of
from tests.mounter.fakes import MTIME, directory, file, symlink


@pytest.mark.parametrize(
    ("kind", "bits"),
    [
        (EntryType.FILE, stat.S_ISREG),
        (EntryType.DIRECTORY, stat.S_ISDIR),
        (EntryType.SYMLINK, stat.S_ISLNK),
        (EntryType.FIFO, stat.S_ISFIFO),
        (EntryType.SOCKET, stat.S_ISSOCK),
        (EntryType.DEVICE, stat.S_ISCHR),
        (EntryType.OTHER, stat.S_ISREG),
    ],
)
def test_type_and_own_mode(kind: EntryType, bits: object) -> None:
    shown = attributes_of(Entry(b"/x", kind, 3, "7", 0o4751, uid=5, gid=6, nlink=2), 0)
    assert bits(shown.mode)  # type: ignore[operator]
    assert stat.S_IMODE(shown.mode) == 0o4751
    assert (shown.uid, shown.gid, shown.nlink, shown.size) == (5, 6, 2, 3)


def test_block_device_with_its_number() -> None:
    entry = Entry(b"/sda1", EntryType.DEVICE, 0, "7", 0o660, rdev=(8, 1), flags=("block",))
    shown = attributes_of(entry, 0)
    assert stat.S_ISBLK(shown.mode)
    assert (os.major(shown.rdev), os.minor(shown.rdev)) == (8, 1)


def test_unknown_times_follow_the_modification_time() -> None:
    shown = attributes_of(file(b"/a"), 0)
    assert (shown.mtime_ns, shown.atime_ns, shown.ctime_ns) == (MTIME, MTIME, MTIME)
    unknown = attributes_of(file(b"/a")._replace(mtime_ns=None), 0)
    assert (unknown.mtime_ns, unknown.atime_ns, unknown.ctime_ns) == (0, 0, 0)
    assert attributes_of(file(b"/a")._replace(atime_ns=5, ctime_ns=0), 0).atime_ns == 5
    assert attributes_of(file(b"/a")._replace(atime_ns=5, ctime_ns=0), 0).ctime_ns == 0


def test_hard_links_share_an_inode_and_volumes_do_not() -> None:
    one, two = file(b"/a", inode="35-128-1"), file(b"/b", inode="35-128-1")
    assert inode_of(one, 0) == inode_of(two, 0) == 1 << 48 | 35
    assert inode_of(one, 0) != inode_of(one, 1)


def test_a_stream_is_not_a_hard_link_of_its_file() -> None:
    plain = inode_of(file(b"/a", inode="35-128-1"), 0)
    stream = inode_of(file(b"/a:zone", inode="35-128-4"), 0)
    assert stream != plain
    assert stream >> 48 == 1
    assert stream == inode_of(file(b"/b:zone", inode="35-128-4"), 0), "stable"


@given(
    inode=st.one_of(st.text(max_size=30), st.integers(-5, 2**70).map(str)),
    slot=st.integers(0, 200),
    size=st.integers(-(2**70), 2**70),
    uid=st.integers(-5, 2**40),
    nlink=st.integers(-1, 2**40),
    mode=st.integers(0, 2**20),
)
def test_any_entry_fits_the_kernels_fields(
    inode: str, slot: int, size: int, uid: int, nlink: int, mode: int
) -> None:
    shown = attributes_of(Entry(b"/x", EntryType.FILE, size, inode, mode, uid, uid, nlink), slot)
    assert 0 <= shown.size < 2**63
    assert shown.inode >> 48 == slot + 1
    assert shown.inode & (2**48 - 1)
    assert 1 <= shown.nlink < 2**32
    assert 0 <= shown.uid < 2**32 - 1
    assert stat.S_ISREG(shown.mode)
    assert shown.mode < 2**16


def test_folders_are_known_as_such() -> None:
    assert attributes_of(directory(b"/d"), 0).is_directory
    assert not attributes_of(symlink(b"/l", b"d"), 0).is_directory


def test_a_number_in_one_of_several_trees_is_no_other_ones() -> None:
    """Of APFS with several volumes, of Btrfs with subvolumes: ``257:300``."""
    entries = [
        Entry(b"/x", EntryType.FILE, 0, text) for text in ("257", "257:257", "257:300", "300", "258:300")
    ]
    assert len({attributes_of(entry, 0).inode for entry in entries}) == 5
