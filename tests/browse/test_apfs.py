"""APFS through libfsapfs: a disk made by macOS, one made by mkapfs, one of util-linux; damage and absence."""

from __future__ import annotations

import builtins
import hashlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from imagefs.block.views import BytesReader
from imagefs.browse import apfs
from imagefs.browse.apfs import ApfsFileSystem, open_apfs
from imagefs.browse.opening import open_filesystem
from imagefs.browse.walk import walk
from imagefs.errors import BrowseError, ImagefsError, IntegrityError, NotAFileSystem, PathNotFound
from imagefs.interfaces import EntryType, HasStreams, HasXattrs, Stream
from tests.browse.disks import BreakingReader, FileReader
from tests.support.kernelview import fails
from tests.support.oracles import corpus_folder, need_tool, run_tool, unpacked_corpus_file
from tests.support.reader_contract import check_reader

#: A disk of macOS that dfvfs publishes, by its SHA-256.
_DISK = "dfvfs/test_data/apfs.raw"
_SUM = "e3e3adcbbf189403d892b013d6cba155f2e58e42ff5eb541ec681c37a91a3f29"
_PASSWORDS = (
    b"place,user,password\nbank,joesmith,superrich\nalarm system,-,1234\ntreasure chest,-,1111\n"
    b"uber secret laire,admin,admin\n"
)


@pytest.fixture(scope="module")
def disk() -> bytes:
    path = corpus_folder() / _DISK
    if not path.is_file():
        pytest.skip(f"the corpus has no {_DISK}: no tool here makes an APFS with files in it")
    data = path.read_bytes()
    assert hashlib.sha256(data).hexdigest() == _SUM
    return data


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty volume of 1 GiB, of which little is there."""
    need_tool("mkapfs")
    path = tmp_path_factory.mktemp("apfs") / "made"
    with open(path, "wb") as file:
        file.truncate(1 << 30)
    run_tool(["mkapfs", "-L", "Größe", path])
    return path


def test_a_disk_of_macos_is_what_dfvfs_publishes_of_it(disk: bytes) -> None:
    fs = open_filesystem(BytesReader(disk))
    assert (fs.kind, fs.label, fs.root().inode) == ("apfs", "apfs_test", "2")
    found = {entry.path: (entry.type, entry.inode) for entry in walk(fs, fs.root(), onerror=fails)}
    published = {
        b"/a_directory": (EntryType.DIRECTORY, "16"),
        b"/a_directory/a_file": (EntryType.FILE, "17"),
        b"/a_directory/another_file": (EntryType.FILE, "19"),
        b"/a_directory/a_resourcefork": (EntryType.FILE, "23"),
        b"/a_link": (EntryType.SYMLINK, "20"),
        b"/passwords.txt": (EntryType.FILE, "18"),
    }
    assert {path: found[path] for path in published} == published
    assert len(found) == 10


def test_contents_and_all_that_is_known(disk: bytes) -> None:
    fs = open_filesystem(BytesReader(disk))
    assert isinstance(fs, HasXattrs)
    assert isinstance(fs, HasStreams)
    file = fs.lookup(b"/passwords.txt")
    check_reader(fs.open(file), _PASSWORDS)
    (place,) = fs.places(file)
    assert disk[place.first :][: len(_PASSWORDS)] == _PASSWORDS
    assert (file.mode, file.uid, file.gid, file.nlink, file.size) == (0o644, 99, 99, 1, len(_PASSWORDS))
    assert fs.readlink(fs.lookup(b"/a_link")) == b"a_directory/another_file"
    assert fs.xattrs(fs.lookup(b"/a_directory/a_file")) == {b"user.myxattr": b"My extended attribute"}
    fork = fs.lookup(b"/a_directory/a_resourcefork")
    assert (fs.streams(fork), fs.xattrs(fork)) == ([Stream(b"rsrc", 17)], {})
    check_reader(fs.open_stream(fork, b"rsrc"), b"My resource fork\n")
    with pytest.raises(PathNotFound):
        fs.open_stream(file, b"rsrc")
    with pytest.raises(PathNotFound):
        fs.lookup(b"/a_directory/none")
    with pytest.raises(BrowseError, match="not a file"):
        fs.open(fs.root())
    fs.close()
    with pytest.raises(BrowseError, match="closed"):
        fs.children(fs.root())


def test_times_are_those_of_the_record_on_the_disk(disk: bytes) -> None:
    """j_inode_val: parent, private id, then creation, modification, change, access in ns since 1970."""
    file = open_apfs(BytesReader(disk)).lookup(b"/a_directory/a_file")
    record = struct.pack("<4Q", *map(int, (file.crtime_ns, file.mtime_ns, file.ctime_ns, file.atime_ns)))  # type: ignore[arg-type]
    assert struct.pack("<2Q", 16, 17) + record in disk


def test_a_volume_made_by_mkapfs(made: Path) -> None:
    fs = open_filesystem(FileReader(made))
    assert (fs.kind, fs.label) == ("apfs", "Größe")
    assert list(walk(fs, fs.root(), onerror=fails)) == []


def test_the_volume_of_util_linux(tmp_path: Path) -> None:
    path = unpacked_corpus_file("util-linux/tests/ts/blkid/images-fs/apfs.img.xz", tmp_path)
    assert open_filesystem(FileReader(path)).label == "testapfs"


def test_without_the_library_it_is_named(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "pyfsapfs":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(NotAFileSystem, match="not installed") as caught:
        open_filesystem(FileReader(made))
    assert "pip install 'imagefs[apfs]'" in caught.value.hint


def test_what_the_image_says_of_bad_bytes_is_what_comes_out(disk: bytes) -> None:
    reader = BreakingReader(BytesReader(disk), 0, len(disk), broken=False)
    fs = open_apfs(reader)
    file = fs.lookup(b"/passwords.txt")
    content = fs.open(file)
    reader.broken = True
    with pytest.raises(IntegrityError, match="chunk 17"):
        content.read_at(0, 10)
    reader.broken = False
    assert content.read_at(0, 10) == _PASSWORDS[:10]


class Several:
    """libfsapfs' container with volumes made of one, some of them locked."""

    def __init__(self, volume: Any, locked: bool) -> None:
        self.root_directory, self.get_file_entry_by_identifier = (
            volume.root_directory,
            volume.get_file_entry_by_identifier,
        )
        self._locked = locked

    def is_locked(self) -> bool:
        return self._locked


def test_several_volumes_are_folders_and_an_encrypted_one_says_so(disk: bytes) -> None:
    one = open_apfs(BytesReader(disk))
    volumes = [Several(one._volumes[0], locked) for locked in (False, True, False)]
    fs = ApfsFileSystem(one._file, one._container, volumes, ["Data", "Secret", "Data"])
    assert [entry.path for entry in fs.children(fs.root())] == [b"/Data~0-2", b"/Secret", b"/Data~2-2"]
    assert fs.open(fs.lookup(b"/Data~2-2/passwords.txt")).read_at(0, 99999) == _PASSWORDS
    assert fs.lookup(b"/Data~0-2/a_link").inode == "0-20"
    secret = fs.lookup(b"/Secret")
    assert secret.flags == ("encrypted",)
    with pytest.raises(BrowseError, match="'Secret' is encrypted"):
        list(fs.children(secret))
    with pytest.raises(BrowseError, match="encrypted"):
        ApfsFileSystem(one._file, one._container, volumes[1:2], ["Secret"]).root()


def test_damage_ends_in_errors_of_ours(made: Path) -> None:
    """A few places only: what a flipped byte does to the library's memory is for the worker process."""
    told = 0
    with open(made, "r+b") as file:
        for at in _written_blocks(file):
            kept = os.pread(file.fileno(), 4056, at + 40)
            os.pwrite(file.fileno(), bytes(4056), at + 40)
            try:
                fs = open_filesystem(FileReader(made))
                assert list(walk(fs, fs.root(), onerror=fails)) == []
            except ImagefsError:
                told += 1
            os.pwrite(file.fileno(), kept, at + 40)
    assert told > 3


def _written_blocks(file: IO[bytes]) -> Iterator[int]:
    """Blocks of 4 KiB that hold something, some of them."""
    at = 0
    while at < 64 << 20:
        at = os.lseek(file.fileno(), at, os.SEEK_DATA)
        if any(os.pread(file.fileno(), 4096, at)):
            yield at
        at += 4096


def test_the_library_is_loaded_only_for_apfs() -> None:
    assert "pyfsapfs" not in vars(apfs)
