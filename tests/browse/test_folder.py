"""What the kernel shows as a FileSystem, over an ordinary folder: nobody needs to be root for it."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest

from imagefs.browse.folder import FolderFileSystem
from imagefs.browse.walk import walk
from imagefs.errors import BrowseError, IntegrityError, PathNotFound
from imagefs.interfaces import Entry, EntryType, Named, State
from tests.browse.disks import file, pattern
from tests.support.kernelview import fails, same_as_kernel
from tests.support.reader_contract import check_reader


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "volume"
    (root / "folder" / "below").mkdir(parents=True)
    (root / "folder" / "file").write_bytes(pattern(300_000))
    (root / "link").symlink_to("folder")
    (root / "out").symlink_to(tmp_path)
    (tmp_path / "secret").write_text("not of the volume")
    os.mkfifo(root / "fifo")
    Path(os.fsdecode(os.path.join(os.fsencode(root), b"latin \xff\n"))).touch()
    os.setxattr(root / "folder", "user.a", b"\0b")
    with open(root / "sparse", "wb") as sparse:
        os.pwrite(sparse.fileno(), b"x", 100 << 20)
    time.sleep(0.02)  # a first access later than all changes moves the time of access, no other does
    for folder, _, names in os.walk(root):
        for path in map(Path(folder).joinpath, names):
            if path.is_file():
                path.read_bytes()
    for link in (root / "link", root / "out"):
        link.readlink()
    return root


@pytest.fixture
def fs(root: Path) -> FolderFileSystem:
    return FolderFileSystem(os.open(root, os.O_RDONLY), "btrfs", label="label")


def test_all_is_as_in_the_folder(fs: FolderFileSystem, root: Path) -> None:
    assert same_as_kernel(fs, root) == 8
    assert [each.path for each in fs.children(fs.root())] == [
        b"/" + os.fsencode(name) for name in os.listdir(root)
    ]


def test_names_alone(fs: FolderFileSystem) -> None:
    names = {each.name: each.type for each in fs.names(fs.root()) if isinstance(each, Named)}
    assert names == {
        b"link": EntryType.SYMLINK,
        b"out": EntryType.SYMLINK,
        b"sparse": EntryType.FILE,
        b"latin \xff\n": EntryType.FILE,
    }


def test_a_file_keeps_the_reader_contract(fs: FolderFileSystem) -> None:
    check_reader(fs.open(fs.lookup(b"/folder/file")), pattern(300_000))
    extents = list(fs.open(fs.lookup(b"/sparse")).extents(0, 1 << 30))
    assert extents[0].state is State.ZERO
    assert sum(extent.length for extent in extents) == (100 << 20) + 1


@pytest.mark.parametrize(
    "path", [b"/out/secret", b"/link/file", b"/../secret", b"/folder/../../secret", b"/fifo/x"]
)
def test_nothing_leads_out_of_it(fs: FolderFileSystem, path: bytes) -> None:
    with pytest.raises(PathNotFound):
        fs.lookup(path)
    with pytest.raises(PathNotFound):
        fs.open(file(path))
    with pytest.raises(PathNotFound):
        fs.xattrs(file(path))
    with pytest.raises(PathNotFound):
        list(fs.children(Entry(path, EntryType.DIRECTORY, 0, "1")))


def test_no_link_and_no_fifo_is_opened(fs: FolderFileSystem) -> None:
    for path in (b"/out", b"/link"):
        with pytest.raises(PathNotFound):
            fs.open(file(path))
    with pytest.raises(BrowseError, match="not a file"):
        fs.open(file(b"/fifo"))


def test_an_error_of_the_kernel_is_damage_with_its_cause(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cause = IntegrityError("chunk 17 fails its check")
    fs = FolderFileSystem(os.open(root, os.O_RDONLY), "btrfs", cause=lambda: cause)
    reader = fs.open(fs.lookup(b"/folder/file"))

    def broken(*_: object) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "pread", broken)
    with pytest.raises(BrowseError, match=r"'/folder/file' cannot be read from byte 4096: .*chunk 17"):
        reader.read_at(4096, 10)


def test_closing_closes_the_folder_once(root: Path) -> None:
    closed: list[int] = []
    folder = os.open(root, os.O_RDONLY)
    fs = FolderFileSystem(folder, "btrfs", on_close=lambda: closed.append(1))
    assert next(walk(fs, fs.root(), onerror=fails))
    fs.close()
    fs.close()
    assert closed == [1]
    with pytest.raises(OSError):
        os.fstat(folder)
    with pytest.raises(BrowseError, match="closed"):
        fs.root()
