"""The operations as libfuse calls them, without FUSE: values, errnos, and what is logged."""

from __future__ import annotations

import errno
import os
import stat

import pytest

from imagefs.block.views import BytesReader
from imagefs.errors import BrowseError, IntegrityError, PathNotFound, SourceError, line_of
from mounter import operations
from mounter.errnos import errno_of
from mounter.operations import MountOperations
from mounter.tree import MountSpec, MountTree, VolumeSpec
from tests.mounter.fakes import (
    BadReader,
    FakeFileSystem,
    ShortReader,
    SparseReader,
    file,
    noise,
    spec_of,
    usual_spec,
)
from tests.mounter.fakes import small_filesystem as small


class Mounted:
    """Operations with their log and error counts at hand."""

    def __init__(self, spec: MountSpec) -> None:
        self.log: list[str] = []
        self.counts: list[int] = []
        tree = MountTree(spec, log=self.log.append)
        self.ops = MountOperations(tree, log=self.log.append, on_error=self.counts.append)

    def open(self, path: str) -> int:
        return self.ops.open(path, os.O_RDONLY)

    def fails(self, call, *args) -> int:  # type: ignore[no-untyped-def]
        with pytest.raises(OSError) as caught:
            result = call(*args)
            list(result)
        assert isinstance(caught.value.errno, int)
        return caught.value.errno


def names(mounted: Mounted, path: str) -> list[str]:
    handle = mounted.ops.opendir(path)
    found = [name.decode("latin-1") for name, _ in mounted.ops.folder_items(0, handle)]
    mounted.ops.releasedir(None, handle)
    return found


def test_reads_of_any_place_and_past_the_end() -> None:
    data = noise(1_000_003)
    mounted = Mounted(usual_spec())
    handle = mounted.open("/disk.raw")
    for offset, size in ((0, 131072), (131000, 4096), (999_999, 4096), (1_000_003, 4096), (2_000_000, 1)):
        assert mounted.ops.read(None, size, offset, handle) == data[offset : offset + size]
    assert mounted.ops.release(None, handle) == 0
    assert mounted.log == []


def test_a_read_that_touches_damage_fails_whole_and_is_logged_once() -> None:
    mounted = Mounted(spec_of(BadReader(noise(1 << 20), range(300_000, 310_000))))
    handle = mounted.open("/disk.raw")
    for offset, size in ((262_144, 131_072), (299_008, 4096), (303_104, 4096)):
        assert mounted.fails(mounted.ops.read, None, size, offset, handle) == errno.EIO
    assert len(mounted.ops.read(None, 4096, 290_000, handle)) == 4096
    assert mounted.counts == [1, 2, 3]
    assert len(mounted.log) == 1
    for part in ("disk.raw", "integrity", "image=3f2a", "chunk=5", "offset=300000"):
        assert part in mounted.log[0]


def test_a_reader_that_comes_back_short_is_an_error_never_an_answer() -> None:
    mounted = Mounted(spec_of(ShortReader(noise(10_000))))
    handle = mounted.open("/disk.raw")
    assert mounted.fails(mounted.ops.read, None, 4096, 0, handle) == errno.EIO
    assert mounted.fails(mounted.ops.read, None, 4096, 8192, handle) == errno.EIO


def test_any_bug_of_a_reader_is_eio() -> None:
    class Bug(BytesReader):
        def read_at(self, offset: int, length: int, /) -> bytes:
            raise KeyError("bug")

    mounted = Mounted(spec_of(Bug(b"12345")))
    assert mounted.fails(mounted.ops.read, None, 5, 0, mounted.open("/disk.raw")) == errno.EIO
    assert "KeyError" in mounted.log[0]


def test_the_log_does_not_grow_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "MAX_LOGGED", 5)

    class Dying(BytesReader):
        def read_at(self, offset: int, length: int, /) -> bytes:
            raise SourceError(f"sector {offset} cannot be read")

    mounted = Mounted(spec_of(Dying(bytes(1000))))
    handle = mounted.open("/disk.raw")
    for offset in range(20):
        mounted.fails(mounted.ops.read, None, 1, offset, handle)
    assert len(mounted.log) == 6
    assert "not logged" in mounted.log[-1]
    assert mounted.ops.errors == 20


def test_missing_paths_are_enoent_and_nobodys_error() -> None:
    mounted = Mounted(usual_spec())
    for call in (mounted.ops.getattr, mounted.ops.opendir, mounted.ops.readlink, mounted.open):
        assert mounted.fails(call, "/p1/nothing") == errno.ENOENT
    assert (mounted.log, mounted.ops.errors) == ([], 0)


def test_what_cannot_be_decoded_is_eio_and_logged() -> None:
    mounted = Mounted(usual_spec())
    assert mounted.fails(mounted.open, "/p1/broken") == errno.EIO
    assert "compressed" in mounted.log[0]


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_RDWR, os.O_RDWR | os.O_TRUNC])
def test_opening_to_write_is_erofs(flags: int) -> None:
    mounted = Mounted(usual_spec())
    assert mounted.fails(mounted.ops.open, "/disk.raw", flags) == errno.EROFS


def test_names_that_are_not_utf8_come_through() -> None:
    mounted = Mounted(usual_spec())
    found = [name.encode("latin-1") for name in names(mounted, "/p1")]
    assert b"caf\xe9 \xff.txt" in found
    handle = mounted.open("/p1/" + b"caf\xe9 \xff.txt".decode("latin-1"))
    assert mounted.ops.read(None, 100, 0, handle) == b"latin"


def test_folders_begin_with_dot_and_dot_dot_and_types_are_told() -> None:
    mounted = Mounted(usual_spec())
    handle = mounted.ops.opendir("/p1/etc")
    found = {name.decode(): attributes for name, attributes in mounted.ops.folder_items(0, handle)}
    assert list(found)[:2] == [".", ".."]
    assert stat.S_ISLNK(found["link"].mode)
    assert found["fstab"].size == 10
    plain = [name for name, _, offset in mounted.ops.readdir(None, handle) if offset == 0]
    assert plain == list(found), "a binding without offsets gets the same"


def test_what_lies_before_damage_is_listed_then_comes_the_error() -> None:
    filesystem = FakeFileSystem([file(b"/a"), file(b"/b"), file(b"/c")])
    filesystem.unlistable.add(b"/c")
    spec = spec_of(BytesReader(b""), VolumeSpec("p1", BytesReader(b""), lambda: filesystem))
    mounted = Mounted(spec)
    handle = mounted.ops.opendir("/p1")
    first = mounted.ops.folder_items(0, handle)
    assert [name for name, _ in first] == [b".", b"..", b"a", b"b"]
    assert mounted.fails(mounted.ops.folder_items, len(first), handle) == errno.EIO
    assert mounted.fails(mounted.ops.readdir, None, handle) == errno.EIO


def test_an_open_handle_answers_stat_without_its_path() -> None:
    mounted = Mounted(usual_spec())
    handle, folder = mounted.open("/disk.raw"), mounted.ops.opendir("/p1")
    assert mounted.ops.getattr(None, handle)["st_size"] == 1_000_003
    assert stat.S_ISDIR(mounted.ops.getattr(None, folder)["st_mode"])
    assert mounted.fails(mounted.ops.getattr, None, 999) == errno.EBADF


def test_files_are_closed_when_released_and_when_the_mount_ends() -> None:
    filesystem = small()
    spec = spec_of(BytesReader(b""), VolumeSpec("p1", BytesReader(b""), lambda: filesystem))
    mounted = Mounted(spec)
    first, _ = mounted.open("/p1/big.bin"), mounted.open("/p1/etc/fstab")
    mounted.ops.release(None, first)
    assert [reader.closed for reader in filesystem.opened] == [1, 0]
    mounted.ops.close_files()
    mounted.ops.close_files()
    assert [reader.closed for reader in filesystem.opened] == [1, 1]


def test_seeking_finds_data_and_holes() -> None:
    reader = SparseReader(10_000, {1000: b"a" * 500, 4000: b"b" * 100})
    mounted = Mounted(spec_of(reader))
    handle = mounted.open("/disk.raw")
    seek = mounted.ops.lseek
    data = {0: 1000, 1000: 1000, 1499: 1499, 1500: 4000, 4050: 4050}
    holes = {0: 0, 1000: 1500, 1499: 1500, 1500: 1500, 4000: 4100, 9999: 9999}
    assert {offset: seek(None, offset, os.SEEK_DATA, handle) for offset in data} == data
    assert {offset: seek(None, offset, os.SEEK_HOLE, handle) for offset in holes} == holes
    assert mounted.fails(seek, None, 4100, os.SEEK_DATA, handle) == errno.ENXIO
    for whence in (os.SEEK_DATA, os.SEEK_HOLE):
        assert mounted.fails(seek, None, 10_000, whence, handle) == errno.ENXIO
        assert mounted.fails(seek, None, -1, whence, handle) == errno.EINVAL
    assert mounted.fails(seek, None, 5, os.SEEK_END, handle) == errno.EINVAL


def test_a_reader_that_knows_no_extents_is_all_data() -> None:
    mounted = Mounted(spec_of(BytesReader(bytes(5000))))
    handle = mounted.open("/disk.raw")
    assert mounted.ops.lseek(None, 100, os.SEEK_DATA, handle) == 100
    assert mounted.ops.lseek(None, 100, os.SEEK_HOLE, handle) == 5000


def test_statfs_tells_the_size_of_the_disk() -> None:
    facts = Mounted(usual_spec()).ops.statfs("/")
    assert 0 <= facts["f_blocks"] * facts["f_frsize"] - 1_000_003 < 4096
    assert facts.get("f_bfree", 0) == 0


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (PathNotFound("no"), errno.ENOENT),
        (BrowseError("no"), errno.EIO),
        (IntegrityError("no"), errno.EIO),
        (OSError(errno.EROFS, "ro"), errno.EROFS),
        (OSError("without a number"), errno.EIO),
        (ValueError("bug"), errno.EIO),
    ],
)
def test_errnos(error: Exception, number: int) -> None:
    assert errno_of(error) == number


def test_a_log_line_carries_the_facts() -> None:
    error = IntegrityError("chunk 7 fails its check", image="ab", chunk=7, offset=None)
    assert line_of(error, "read x") == "read x: integrity: chunk 7 fails its check [image=ab chunk=7]"
    assert line_of(SourceError("gone"), "read x") == "read x: source: gone"


def test_states_as_extended_attributes() -> None:
    """How much of a file is in which state; a name of another kind is refused as unknown here."""
    mounted = Mounted(usual_spec())
    names_ = mounted.ops.listxattr("/disk.raw")
    assert names_ == [f"user.imagefs.{word}" for word in ("stored", "zero", "skipped", "unreadable")]
    told = {name: int(mounted.ops.getxattr("/disk.raw", name)) for name in names_}
    assert sum(told.values()) == mounted.ops.getattr("/disk.raw")["st_size"]
    assert mounted.ops.listxattr("/") == []
    assert mounted.fails(mounted.ops.getxattr, "/", "user.imagefs.zero") == errno.ENODATA
    assert mounted.fails(mounted.ops.getxattr, "/disk.raw", "security.selinux") == errno.EOPNOTSUPP
    assert mounted.fails(mounted.ops.getxattr, "/none", "user.imagefs.zero") == errno.ENOENT
