"""What goes wrong below TSK comes out as what it was; threads do not meet inside it."""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from imagefs.block.views import BytesReader
from imagefs.browse.opening import open_filesystem
from imagefs.browse.sniff import seems_to_be
from imagefs.browse.tsk import open_tsk
from imagefs.browse.walk import walk
from imagefs.errors import BrowseError, IntegrityError, NotAFileSystem
from imagefs.interfaces import FileSystem
from tests.browse.disks import (
    MIB,
    BreakingReader,
    CrowdedReader,
    FileReader,
    debugfs,
    mft_record,
    pattern,
    sparse_file,
)
from tests.support.oracles import need_tool, run_tool


def blocks_of(volume: Path, name: str) -> list[int]:
    said = debugfs(volume, f"blocks {name}").split(f"blocks {name}")[1]
    return [int(word) for word in said.split() if word.isdigit()]


@pytest.fixture
def broken_directory(ext4: Path) -> BreakingReader:
    """The first block of /many cannot be read."""
    start = blocks_of(ext4, "many")[0] * 1024
    return BreakingReader(FileReader(ext4), start, start + 1024)


def test_an_error_of_the_reader_comes_out_as_itself(broken_directory: BreakingReader) -> None:
    fs = open_filesystem(broken_directory)
    many = fs.lookup(b"/many")
    with pytest.raises(IntegrityError) as caught:
        list(fs.children(many))
    assert caught.value.data == {"chunk": 17}
    broken_directory.broken = False
    assert len(list(fs.children(many))) == 300, "nothing of the failure is kept"


def test_opening_on_a_broken_reader(ext4: Path, ntfs: Path) -> None:
    for path in (ext4, ntfs):
        with pytest.raises(IntegrityError):
            open_filesystem(BreakingReader(FileReader(path), 0, 4096))


def test_a_damaged_spot_does_not_spoil_what_lies_beside_it(ntfs: Path) -> None:
    """TSK reads ahead in 64 KiB; one bad sector right behind the MFT record of a file is no matter."""
    fs = open_filesystem(FileReader(ntfs))
    number = int(fs.lookup(b"/plain").inode.split("-")[0])
    offset, _ = mft_record(ntfs, number)
    fs = open_filesystem(BreakingReader(FileReader(ntfs), offset + 4096, offset + 4608))
    assert fs.open(fs.lookup(b"/plain")).read_at(0, 200) == b"p" * 100
    fs = open_filesystem(BreakingReader(FileReader(ntfs), offset, offset + 512))
    with pytest.raises(IntegrityError):
        list(fs.children(fs.root()))


def test_an_inode_that_cannot_be_read_spoils_its_own_entry_only(ext4: Path) -> None:
    """The other names are still given; the error comes after them."""
    fs = open_filesystem(FileReader(ext4))
    number = int(fs.lookup(b"/many/file_with_a_longish_name_250").inode)
    place = debugfs(ext4, f"imap <{number}>").split("located at block ")[1].split(",")
    block = int(place[0])
    reader = BreakingReader(FileReader(ext4), block * 1024, (block + 1) * 1024)
    fs = open_filesystem(reader)
    found = fs.children(fs.lookup(b"/many"))
    flags = {entry.name: entry.flags for entry in itertools.islice(found, 300)}
    with pytest.raises(IntegrityError):
        next(found)
    assert len(flags) == 300
    assert 1 <= list(flags.values()).count(("unreadable",)) <= 16
    assert flags[b"file_with_a_longish_name_250"] == ("unreadable",)


def test_file_content_that_cannot_be_read(ext4: Path, ntfs: Path) -> None:
    start = blocks_of(ext4, "rnd")[50] * 1024
    reader = BreakingReader(FileReader(ext4), start, start + 1)
    fs = open_filesystem(reader)
    content = fs.open(fs.lookup(b"/rnd"))
    with pytest.raises(IntegrityError):
        content.read_at(0, 300_000)
    assert content.read_at(0, 50 * 1024) == pattern(50 * 1024)
    where = ntfs.read_bytes().index(pattern(300_000)[4096:8192])
    fs = open_filesystem(BreakingReader(FileReader(ntfs), where + 90_000, where + 90_001))
    content = fs.open(fs.lookup(b"/Rnd.bin"))
    with pytest.raises(IntegrityError):
        content.read_at(0, 300_000)
    assert content.read_at(0, 4096) == pattern(4096)


def test_an_interrupt_inside_tsk_stays_an_interrupt(ntfs: Path) -> None:
    class Interrupted(BytesReader):
        armed = False

        def read_at(self, offset: int, length: int, /) -> bytes:
            if self.armed:
                raise KeyboardInterrupt
            return super().read_at(offset, length)

    reader = Interrupted(ntfs.read_bytes())
    fs = open_tsk(reader)
    entry = fs.lookup(b"/Rnd.bin")
    content = fs.open(entry)
    Interrupted.armed = True
    with pytest.raises(KeyboardInterrupt):
        content.read_at(0, 300_000)


@pytest.mark.parametrize("name", ["ext4", "ntfs"])
def test_many_threads_see_the_same(name: str, request: pytest.FixtureRequest) -> None:
    fs = open_filesystem(FileReader(request.getfixturevalue(name)))
    path = b"/rnd" if name == "ext4" else b"/Rnd.bin"

    def work(number: int) -> list[bytes]:
        names = [entry.path for entry in walk(fs, fs.root(), onerror=ignore)]
        content = fs.open(fs.lookup(path))
        for offset in range(number, 300_000, 60_013):
            assert content.read_at(offset, 50_000) == pattern(300_000)[offset : offset + 50_000]
        return names

    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(work, range(6)))
    assert all(names == results[0] for names in results)


def ignore(error: Exception) -> None:
    raise error


def test_tsk_is_entered_by_one_thread_at_a_time(ntfs: Path) -> None:
    reader = CrowdedReader(FileReader(ntfs))
    fs = open_filesystem(reader)
    content = fs.open(fs.lookup(b"/Rnd.bin"))
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda at: content.read_at(at, 100_000), range(0, 200_000, 5_000)))
    assert not reader.crowded


def test_no_lock_is_held_while_a_listing_waits(ext4: Path) -> None:
    fs = open_filesystem(FileReader(ext4))
    listing = fs.children(fs.lookup(b"/many"))
    next(listing)
    done = threading.Event()

    def other() -> None:
        fs.open(fs.lookup(b"/rnd")).read_at(0, 100)
        list(fs.children(fs.lookup(b"/many")))
        done.set()

    threading.Thread(target=other, daemon=True).start()
    assert done.wait(300)
    assert len(list(listing)) == 299


# -- what is no file system ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", "empty"),
        (bytes(MIB), "empty"),
        (pattern(MIB), "no file system"),
        (b"XFSB".ljust(4096, b"\0"), "XFS"),
        (b"\xebX\x90-FVE-FS-".ljust(4096, b"\0"), "BitLocker"),
        (b"\xebR\x90NTFS    ".ljust(4096, b"\1"), "damaged NTFS"),
        (bytes(4086) + b"SWAPSPACE2", "swap"),
        (bytes(512) + b"LABELONE".ljust(4096, b"\0"), "LVM"),
    ],
)
def test_a_volume_without_a_file_system_is_named(data: bytes, word: str) -> None:
    with pytest.raises(NotAFileSystem) as caught:
        open_filesystem(BytesReader(data))
    assert word in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(("tool", "name"), [("mkfs.btrfs", "Btrfs"), ("mkswap", "swap")])
def test_volumes_of_other_tools_are_recognised(tool: str, name: str, tmp_path: Path) -> None:
    need_tool(tool)
    path = sparse_file(tmp_path / "volume", 320 * MIB)
    run_tool([tool, path])
    assert name in seems_to_be(FileReader(path))[0]
    with pytest.raises(NotAFileSystem, match=name) as caught:
        open_filesystem(FileReader(path))
    assert "pN.raw" in caught.value.hint


def test_kinds_are_told_from_the_first_bytes_alone(ext4: Path, ntfs: Path) -> None:
    """Cut to 8 KiB nothing opens, but the name is still known."""
    for path, word in ((ext4, "ext"), (ntfs, "NTFS")):
        with pytest.raises((NotAFileSystem, BrowseError), match=word):
            fs: FileSystem = open_filesystem(BytesReader(path.read_bytes()[:2048]))
            fs.root()
