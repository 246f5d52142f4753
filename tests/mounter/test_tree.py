"""The tree of what a mount shows, without FUSE."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagefs.block.views import BytesReader
from imagefs.errors import BrowseError, IntegrityError, NotAFileSystem, PathNotFound, StoreError
from imagefs.interfaces import Entry, EntryType, Extent, FileSystem, State, Whole
from mounter.attributes import Attributes
from mounter.entrycache import EntryCache
from mounter.tree import MountTree, VolumeSpec
from tests.mounter.fakes import (
    MTIME,
    CountingReader,
    FakeFileSystem,
    directory,
    file,
    no_filesystem,
    small_filesystem,
    sparse_reader,
    spec_of,
    symlink,
    usual_spec,
)


def tree_over(
    filesystem: FileSystem, *, log: list[str] | None = None, cache: EntryCache | None = None
) -> MountTree:
    lines = [] if log is None else log
    volume = VolumeSpec("p1", BytesReader(b"volume"), lambda: filesystem)
    return MountTree(spec_of(BytesReader(b"disk"), volume), log=lines.append, cache=cache)


def listing(tree: MountTree, path: bytes) -> dict[bytes, Attributes]:
    return dict(tree.children(tree.find(path)))


def content(tree: MountTree, path: bytes) -> bytes:
    opened = tree.open(tree.find(path))
    return opened.reader.read_at(0, 1 << 20)


def test_the_top_shows_bytes_files_and_facts() -> None:
    tree = MountTree(usual_spec(), log=[].append)
    names = set(listing(tree, b"/"))
    assert names == {b"disk.raw", b"p1.raw", b"p1", b"p2.raw", b"p2.txt", b"image.json"}
    assert tree.find(b"/disk.raw").attributes.size == 1_000_003
    assert tree.find(b"/p2.raw").attributes.size == 1_000_003 - 400_001
    assert content(tree, b"/image.json") == b'{"id": "3f2a"}\n'
    assert content(tree, b"/p2.txt") == b"p2 shows no files: no file system is known here\n"
    assert content(tree, b"/p1/etc/fstab") == b"# nothing\n"


def test_what_is_listed_is_what_is_found() -> None:
    tree = MountTree(usual_spec(), log=[].append)
    for path in (b"/", b"/p1", b"/p1/etc"):
        for name, attributes in listing(tree, path).items():
            assert tree.find(path.rstrip(b"/") + b"/" + name).attributes == attributes


def test_inode_numbers_differ_and_stay_the_same() -> None:
    first, second = (MountTree(usual_spec(), log=[].append) for _ in range(2))
    paths = [
        b"/",
        *(b"/" + name for name in listing(first, b"/")),
        b"/p1/etc",
        b"/p1/etc/fstab",
        b"/p1/big.bin",
    ]
    numbers = [first.find(path).attributes.inode for path in paths]
    assert len(set(numbers)) == len(paths)
    assert numbers == [second.find(path).attributes.inode for path in paths]


def test_raw_bytes_are_for_the_owner_only_and_nothing_is_writable() -> None:
    tree = MountTree(usual_spec(), log=[].append)
    for name, shown in listing(tree, b"/").items():
        if name.endswith(b".raw"):
            assert stat.S_IMODE(shown.mode) == 0o400, "it holds every file of the disk"
            assert shown.mtime_ns == MTIME
        if name != b"p1":
            assert not shown.mode & 0o222
            assert shown.uid == os.geteuid()


def test_entries_show_their_own_mode_owner_and_times() -> None:
    shown = MountTree(usual_spec(), log=[].append).find(b"/p1/etc/fstab").attributes
    assert (shown.mode, shown.uid, shown.gid) == (stat.S_IFREG | 0o640, 1000, 100)
    assert (shown.size, shown.mtime_ns) == (10, MTIME)


@pytest.mark.parametrize(
    "path",
    [
        b"/nothing",
        b"/p1/nothing",
        b"/p2",
        b"/p2/x",
        b"/p3",
        b"/p1.txt",
        b"/disk.raw/x",
        b"/p1.raw/",
        b"/p2.txt/x",
        b"/.txt",
    ],
)
def test_what_is_not_there(path: bytes) -> None:
    tree = MountTree(usual_spec(), log=[].append)
    with pytest.raises(PathNotFound):
        tree.find(path)


@given(st.binary(max_size=40))
def test_any_path_is_found_or_not_found(path: bytes) -> None:
    tree = MountTree(usual_spec(5000), log=[].append)
    try:
        tree.find(b"/" + path)
    except PathNotFound:
        return
    assert path.split(b"/")[0] in (b"", b"disk.raw", b"image.json", b"p1", b"p1.raw", b"p2.raw", b"p2.txt")


def test_symlinks_and_only_symlinks_have_targets() -> None:
    tree = MountTree(usual_spec(), log=[].append)
    assert tree.readlink(tree.find(b"/p1/etc/link")) == b"fstab"
    for path in (b"/disk.raw", b"/p1", b"/p1/etc/fstab"):
        with pytest.raises(BrowseError):
            tree.readlink(tree.find(path))


def test_only_files_can_be_opened() -> None:
    entries = [directory(b"/d"), symlink(b"/l", b"d"), Entry(b"/o", EntryType.OTHER, 5, "9")]
    tree = tree_over(FakeFileSystem(entries, {b"/l": b"d"}))
    for path in (b"/", b"/p1", b"/p1/d", b"/p1/l", b"/p1/o"):
        with pytest.raises(BrowseError):
            tree.open(tree.find(path))


@pytest.mark.parametrize("listed", [4, 6])
def test_a_file_whose_size_is_not_as_listed_is_refused_and_closed(listed: int) -> None:
    """The kernel would cut it, or fill it up with nothing."""
    filesystem = FakeFileSystem([file(b"/a", listed)], {b"/a": b"12345"})
    tree = tree_over(filesystem)
    with pytest.raises(BrowseError, match="listed with"):
        tree.open(tree.find(b"/p1/a"))
    assert [reader.closed for reader in filesystem.opened] == [1]


def test_nothing_opens_before_it_is_asked_for() -> None:
    asked: list[str] = []

    def opening() -> FileSystem:
        asked.append("p1")
        return small_filesystem()

    tree = MountTree(spec_of(BytesReader(b""), VolumeSpec("p1", BytesReader(b""), opening)), log=[].append)
    tree.find(b"/disk.raw")
    tree.find(b"/p1.raw")
    with pytest.raises(PathNotFound):
        tree.find(b"/.Trash-1000")
    assert asked == []
    listing(tree, b"/")
    listing(tree, b"/p1")
    assert asked == ["p1"], "and then once"


def test_damage_is_remembered_but_an_absent_store_is_asked_again() -> None:
    log: list[str] = []
    answers: list[object] = [StoreError("the share is away"), small_filesystem()]
    damage: list[object] = [IntegrityError("chunk 0 fails its check"), small_filesystem()]

    def opener(source: list[object]) -> FileSystem:
        answer = source.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer  # type: ignore[return-value]

    volumes = [
        VolumeSpec("p1", BytesReader(b""), lambda: opener(answers)),
        VolumeSpec("p2", BytesReader(b""), lambda: opener(damage)),
    ]
    tree = MountTree(spec_of(BytesReader(b""), *volumes), log=log.append)
    assert {b"p1.txt", b"p2.txt"} <= set(listing(tree, b"/"))
    assert log == ["p1: store: the share is away"]
    assert {b"p1", b"p2.txt"} <= set(listing(tree, b"/"))
    assert content(tree, b"/p2.txt") == b"p2 shows no files: chunk 0 fails its check\n"


def test_the_text_says_what_is_needed() -> None:
    def refused() -> FileSystem:
        raise NotAFileSystem("the volume is btrfs", hint="run it with sudo")

    spec = spec_of(BytesReader(b""), VolumeSpec("p2", BytesReader(b""), refused))
    tree = MountTree(spec, log=[].append)
    assert content(tree, b"/p2.txt") == b"p2 shows no files: the volume is btrfs; run it with sudo\n"


def test_a_parser_that_crashes_costs_one_tree() -> None:
    log: list[str] = []

    def crash() -> FileSystem:
        raise RuntimeError("boom")

    class NoRoot(FakeFileSystem):
        def root(self) -> Entry:
            raise IntegrityError("the root folder fails its check")

    rootless = NoRoot([])
    volumes = [
        VolumeSpec("p1", BytesReader(b""), crash),
        VolumeSpec("p2", BytesReader(b""), small_filesystem),
        VolumeSpec("p3", BytesReader(b""), lambda: rootless),
    ]
    tree = MountTree(spec_of(BytesReader(b""), *volumes), log=log.append)
    assert {b"p1.txt", b"p2", b"p3.txt"} <= set(listing(tree, b"/"))
    assert b"RuntimeError: boom" in content(tree, b"/p1.txt")
    assert rootless.closed == 1
    assert any("boom" in line for line in log)


def test_a_listed_folder_answers_for_its_entries() -> None:
    filesystem = small_filesystem()
    tree = tree_over(filesystem)
    listing(tree, b"/p1")
    tree.find(b"/p1/big.bin")
    for probe in (b".Trash", b".Trash-1000", b"autorun.inf", b".hidden"):
        with pytest.raises(PathNotFound):
            tree.find(b"/p1/" + probe)
    listing(tree, b"/p1")
    assert filesystem.lookups == []
    assert filesystem.listed == [b"/"]


def test_a_path_is_looked_up_once_found_or_not() -> None:
    filesystem = small_filesystem()
    tree = tree_over(filesystem)
    for _ in range(3):
        tree.find(b"/p1/etc/fstab")
        with pytest.raises(PathNotFound):
            tree.find(b"/p1/etc/nothing")
    assert filesystem.lookups == [b"/etc/fstab", b"/etc/nothing"]


def test_names_match_without_case_where_the_file_system_says_so() -> None:
    filesystem = FakeFileSystem(
        [directory(b"/Windows"), file(b"/Windows/Notepad.exe", 3)],
        {b"/Windows/Notepad.exe": b"exe"},
        case_insensitive=True,
    )
    tree = tree_over(filesystem)
    for again in range(2):
        assert content(tree, b"/p1/WINDOWS/notepad.EXE") == b"exe"
        with pytest.raises(PathNotFound):
            tree.find(b"/p1/windows/autorun.inf")
        listing(tree, b"/p1/WINDOWS")
        listing(tree, b"/p1")
        assert again or filesystem.listed == [b"/Windows", b"/"]
    assert filesystem.listed == [b"/Windows", b"/"], "one folder, whatever its spelling"
    with pytest.raises(PathNotFound):
        tree.find(b"/P1")


def test_case_matters_elsewhere() -> None:
    tree = tree_over(small_filesystem())
    with pytest.raises(PathNotFound):
        tree.find(b"/p1/ETC")
    listing(tree, b"/p1")
    with pytest.raises(PathNotFound):
        tree.find(b"/p1/ETC")


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"nul\0", b"x" * 1025])
def test_a_name_no_path_can_say_is_left_out_with_a_word(name: bytes) -> None:
    class Hostile(FakeFileSystem):
        def children(self, entry: Entry, /):  # type: ignore[no-untyped-def]
            yield file(b"/good")
            yield file(b"/" + name)
            yield file(b"/other")

    log: list[str] = []
    tree = tree_over(Hostile([]), log=log)
    assert list(listing(tree, b"/p1")) == [b"good", b"other"]
    assert len(log) == 1
    assert len(log[0]) < 10_000


def test_the_longest_name_the_kernel_takes_is_shown() -> None:
    tree = tree_over(FakeFileSystem([file(b"/" + b"n" * 1024)]))
    assert list(listing(tree, b"/p1")) == [b"n" * 1024]


def test_a_huge_folder_is_streamed_and_not_kept() -> None:
    filesystem = FakeFileSystem([file(b"/%05d" % at) for at in range(300)])
    cache = EntryCache(max_entries=100)
    tree = tree_over(filesystem, cache=cache)
    assert len(listing(tree, b"/p1")) == 300
    assert cache.counts()[0] == 0
    tree.find(b"/p1/00299")
    assert filesystem.lookups == [b"/00299"]


def test_a_listing_that_fails_midway_is_not_remembered_as_complete() -> None:
    filesystem = small_filesystem()
    filesystem.unlistable.add(b"/broken")
    tree = tree_over(filesystem)
    with pytest.raises(BrowseError):
        listing(tree, b"/p1")
    tree.find(b"/p1/broken")
    assert filesystem.lookups == [b"/broken"]


def test_a_listing_given_up_midway_is_not_remembered_as_complete() -> None:
    tree = tree_over(small_filesystem())
    started = tree.children(tree.find(b"/p1"))
    next(started)
    del started
    assert tree.find(b"/p1/big.bin").attributes.size == 300_001


def test_closing_closes_everything_once_opened() -> None:
    filesystem, unused = small_filesystem(), small_filesystem()
    disk, first, second = CountingReader(b"d"), CountingReader(b"1"), CountingReader(b"2")
    volumes = [VolumeSpec("p1", first, lambda: filesystem), VolumeSpec("p2", second, lambda: unused)]
    tree = MountTree(spec_of(disk, *volumes), log=[].append)
    tree.find(b"/p1/etc")
    tree.close()
    assert (filesystem.closed, unused.closed) == (1, 0)
    assert all(reader.closed for reader in (disk, first, second))


def test_the_raw_readers_are_lent_and_files_are_owned() -> None:
    tree = MountTree(usual_spec(), log=[].append)
    assert not tree.open(tree.find(b"/disk.raw")).owned
    assert not tree.open(tree.find(b"/p2.txt")).owned
    assert tree.open(tree.find(b"/p1/big.bin")).owned


def test_volumes_without_files_only() -> None:
    tree = MountTree(
        spec_of(BytesReader(b""), VolumeSpec("p0", BytesReader(b""), no_filesystem)), log=[].append
    )
    assert set(listing(tree, b"/")) == {b"disk.raw", b"p0.raw", b"p0.txt", b"image.json"}


def test_holes_are_not_counted_as_blocks() -> None:
    tree = MountTree(spec_of(sparse_reader()), log=[].append)
    assert tree.find(b"/disk.raw").attributes.allocated == 8192
    assert tree.find(b"/disk.raw").attributes.size == (64 << 20) + 5


def test_a_disk_of_endless_runs_or_damaged_ones_mounts_all_the_same() -> None:
    class Odd(BytesReader):
        def extents(self, offset: int, length: int, /) -> Iterator[Extent]:
            for at in range(30_000):
                yield Extent(State.ZERO if at % 2 else State.STORED, at, 1)
            raise AssertionError("looked at more runs than it should")

    class Damaged(BytesReader):
        def extents(self, offset: int, length: int, /) -> Iterator[Extent]:
            yield Extent(State.ZERO, 0, 10)
            raise IntegrityError("the index fails its check")

    tree = MountTree(
        spec_of(Odd(bytes(40_000)), VolumeSpec("p1", Damaged(bytes(20)), no_filesystem)), log=[].append
    )
    assert tree.find(b"/disk.raw").attributes.allocated == 30_000
    assert tree.find(b"/p1.raw").attributes.allocated == 20


class KeepingFileSystem(FakeFileSystem):
    """One that still knows two deleted files of the same name, and counts how often it was searched."""

    searched = 0

    def deleted(self) -> Iterator[Entry]:
        self.searched += 1
        yield file(b"/etc/gone", 5, inode="40")._replace(deleted=True)
        yield file(b"/etc/gone", 6, inode="41")._replace(deleted=True)
        yield directory(b"/$OrphanFiles/dir", inode="42")._replace(deleted=True)

    def at(self, inode: str, /) -> Entry:
        raise PathNotFound(inode)

    def wholeness(self, entry: Entry, /) -> Whole:
        return Whole.PARTLY if entry.inode == "41" else Whole.INTACT


def keeping() -> KeepingFileSystem:
    entries = [directory(b"/etc", inode="3"), file(b"/etc/gone", 4, inode="4")]
    return KeepingFileSystem(entries, {b"/etc/gone~40": b"12345", b"/etc/gone~41": b"123456"})


def test_deleted_files_have_a_tree_of_their_own_that_costs_nothing_until_entered() -> None:
    filesystem = keeping()
    tree = tree_over(filesystem)
    assert b"deleted" in listing(tree, b"/")
    assert stat.S_IMODE(tree.find(b"/deleted").attributes.mode) == 0o500, "for the owner of the mount"
    assert set(listing(tree, b"/deleted")) == {b"p1"}
    assert set(listing(tree, b"/p1")) == {b"etc"}
    assert filesystem.searched == 0
    assert set(listing(tree, b"/deleted/p1")) == {b"etc", b"$OrphanFiles"}
    assert set(listing(tree, b"/deleted/p1/etc")) == {b"gone~40", b"gone~41"}
    assert set(listing(tree, b"/deleted/p1/$OrphanFiles")) == {b"dir"}
    assert content(tree, b"/deleted/p1/etc/gone~41") == b"123456"
    assert filesystem.searched == 1


def test_how_whole_a_deleted_file_is_can_be_asked() -> None:
    tree = tree_over(keeping())
    assert tree.states(tree.find(b"/deleted/p1/etc/gone~41")) == {"whole": "partly-overwritten"}
    assert tree.states(tree.find(b"/deleted/p1/$OrphanFiles/dir")) == {"whole": "intact"}
    assert "whole" not in tree.states(tree.find(b"/deleted/p1/etc"))


def test_inode_numbers_of_deleted_files_are_stable_and_their_own() -> None:
    paths = [b"/deleted", b"/deleted/p1", b"/deleted/p1/etc", b"/deleted/p1/etc/gone~40", b"/p1/etc", b"/p1"]
    first, second = tree_over(keeping()), tree_over(keeping())
    numbers = [first.find(path).attributes.inode for path in paths]
    assert len(set(numbers)) == len(paths)
    assert [second.find(path).attributes.inode for path in reversed(paths)] == numbers[::-1]


def test_volumes_that_keep_no_deleted_files_show_none() -> None:
    tree = MountTree(usual_spec(), log=[].append)
    assert b"deleted" not in listing(tree, b"/")
    for path in (b"/deleted", b"/deleted/p1", b"/deleted/p1/x"):
        with pytest.raises(PathNotFound):
            tree.find(path)
    kept = tree_over(keeping())
    for path in (b"/deleted/p2", b"/deleted/p1/nothing", b"/deleted/"):
        with pytest.raises(PathNotFound):
            kept.find(path)
