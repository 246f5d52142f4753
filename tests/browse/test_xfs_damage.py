"""XFS that is damaged, or lies: BrowseError and an end, and no more lost than must be."""

from __future__ import annotations

import contextlib
import mmap
import random
import struct
from collections.abc import Iterator
from pathlib import Path

import google_crc32c
import pytest

from imagefs.browse.walk import walk
from imagefs.browse.xfs import open_xfs
from imagefs.browse.xfsdisk import Xfs, read_superblock
from imagefs.errors import BrowseError, NotAFileSystem, PathNotFound
from imagefs.interfaces import EntryType, Named
from tests.browse.disks import pattern
from tests.browse.test_xfs import make_xfs
from tests.support.kernelview import fails


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    room = tmp_path_factory.mktemp("plain")
    (room / "content").write_bytes(pattern(50_000))
    names = [f"{'n' * 40}{number:04} ---600 11 12 {room}/content" for number in range(120)]
    (room / "proto").write_text("\n".join(["/", "0 0", "d--755 0 0", "sub d--755 0 0", *names, "$", "$", ""]))
    return make_xfs(room / "xfs", "-p", str(room / "proto"))


@pytest.fixture
def plain(made: Path) -> Iterator[mmap.mmap]:
    """A volume in memory that can be changed; the file stays as it is."""
    with open(made, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as memory:
        yield memory


class Borrowed:
    """A Reader over memory that is not copied."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self.size = len(data)

    def read_at(self, offset: int, length: int, /) -> bytes:
        return self._data[offset : offset + length]

    def close(self) -> None:
        pass


def test_names_lookups_places_and_the_end(plain: mmap.mmap) -> None:
    fs = open_xfs(Borrowed(plain))
    sub = fs.lookup(b"/sub")
    names = list(fs.names(sub))
    assert all(isinstance(each, Named) and each.type is EntryType.FILE for each in names)
    assert [each.name for each in names] == [entry.name for entry in fs.children(sub)]
    assert list(fs.names(sub)) == list(fs.children(sub))
    with pytest.raises(PathNotFound):
        fs.lookup(b"/sub/none")
    file = fs.lookup(b"/sub/" + b"n" * 40 + b"0007")
    (place,) = fs.places(file)
    assert plain[place.first : place.first + 50_000] == pattern(50_000)
    with pytest.raises(BrowseError, match="not a file"):
        fs.open(sub)
    with pytest.raises(BrowseError, match="not a symbolic link"):
        fs.readlink(file)
    fs.close()
    with pytest.raises(BrowseError, match="closed"):
        fs.root()


def test_damage_is_told_and_costs_no_more_than_it_must(plain: mmap.mmap) -> None:
    fs = open_xfs(Borrowed(plain))
    whole = {entry.path for entry in walk(fs, fs.root(), onerror=fails)}
    sub, file = fs.lookup(b"/sub"), fs.lookup(b"/sub/" + b"n" * 40 + b"0007")
    xfs = read_superblock(Borrowed(plain))

    block = plain.find(b"XDD3")
    with changed(plain, block + 100, bytes([plain[block + 100] ^ 1])):
        seen, errors = names_of(plain)
    assert errors
    assert all("checksum" in error for error in errors)
    assert {b"/sub"} < seen < whole

    at = inode_at(xfs, int(file.inode))
    with changed(plain, at + 56, b"\x01"):  # the size of a file
        again = open_xfs(Borrowed(plain))
        entry = again.lookup(file.path)
        assert (entry.flags, entry.type) == (("damaged",), EntryType.FILE)
        with pytest.raises(BrowseError, match="checksum"):
            again.open(entry)
    sound = inode_at(xfs, int(sub.inode))
    with (
        changed(plain, at, plain[sound : sound + xfs.inode]),
        pytest.raises(BrowseError, match="belongs to something else"),
    ):
        open_xfs(Borrowed(plain)).open(entry)


@contextlib.contextmanager
def changed(data: mmap.mmap, at: int, now: bytes) -> Iterator[None]:
    kept = data[at : at + len(now)]
    data[at : at + len(now)] = now
    try:
        yield
    finally:
        data[at : at + len(kept)] = kept


def inode_at(xfs: Xfs, number: int) -> int:
    bits = xfs.per_block_bits
    address = xfs.address(number >> bits)
    assert address is not None
    return address + (number & ((1 << bits) - 1)) * xfs.inode


def names_of(data: mmap.mmap) -> tuple[set[bytes], list[str]]:
    errors: list[str] = []
    fs = open_xfs(Borrowed(data))
    seen = {entry.path for entry in walk(fs, fs.root(), onerror=lambda error: errors.append(error.message))}
    return seen, errors


def seal(data: mmap.mmap, at: int, length: int, place: int) -> None:
    """Give a block the checksum of what it holds now."""
    data[at + place : at + place + 4] = bytes(4)
    struct.pack_into("<I", data, at + place, google_crc32c.value(data[at : at + length]))


def test_lies_under_good_checksums_end_in_browse_errors(plain: mmap.mmap) -> None:
    """Any bytes of inodes and names, with their checksums made right: nothing but BrowseError, and an end."""
    xfs = read_superblock(Borrowed(plain))
    fs = open_xfs(Borrowed(plain))
    spots = [(inode_at(xfs, int(e.inode)), xfs.inode, 100) for e in walk(fs, fs.root(), onerror=fails)][:6]
    spots += [(inode_at(xfs, xfs.root), xfs.inode, 100)]
    at = plain.find(b"XDD3")
    spots += [(at, 4096, 4)] * 4
    dice = random.Random(5)
    broken = 0
    for _ in range(250):
        at, length, place = dice.choice(spots)
        kept = plain[at : at + length]
        for _ in range(dice.randrange(1, 4)):
            spot = at + dice.randrange(176 if place == 100 else 400)
            if dice.random() < 0.5:
                spot = at + dice.randrange(176, 230) if place == 100 else spot
            plain[spot] = dice.choice([0, 1, 0x7F, 0xFF, dice.randrange(256)])
        seal(plain, at, length, place)
        try:
            broken += bool(visit(plain))
        finally:
            plain[at : at + length] = kept
    assert broken > 50


def visit(data: mmap.mmap) -> int:
    """Read all of it; the number of BrowseErrors."""
    errors: list[object] = []
    try:
        fs = open_xfs(Borrowed(data))
        for entry in walk(fs, fs.root(), onerror=errors.append):
            try:
                fs.xattrs(entry)
                fs.places(entry)
                if entry.type is EntryType.FILE:
                    fs.open(entry).read_at(0, 60_000)
                elif entry.type is EntryType.SYMLINK:
                    fs.readlink(entry)
            except BrowseError as error:
                errors.append(error)
    except BrowseError as error:
        errors.append(error)
    assert all(isinstance(error, BrowseError) for error in errors), errors
    return len(errors)


def test_a_folder_of_terabytes_of_nothing_ends(plain: mmap.mmap) -> None:
    """A superblock and one map that claim the most there can be, over a disk that has as much."""
    xfs = read_superblock(Borrowed(plain))
    root = inode_at(xfs, xfs.root)
    plain[8:16], plain[84:92] = struct.pack(">Q", 1 << 50), struct.pack(">II", 1 << 30, 1 << 21)
    plain[124] = 30  # bits of a block's number in its group
    seal(plain, 0, 512, 224)
    lied = read_superblock(Borrowed(plain))
    inode = inode_at(lied, lied.root)
    plain[inode : inode + xfs.inode] = plain[root : root + xfs.inode]
    plain[inode + 5] = 2  # extents
    count = 15
    struct.pack_into(">Q", plain, inode + 24, count)  # where it is counted in 64 bits,
    struct.pack_into(">I", plain, inode + 76, count)  # and where it is not
    for number in range(count):
        low = (1 << 20) << 21 | 0x1F_FFFF
        struct.pack_into(">QQ", plain, inode + 176 + number * 16, (number << 21) << 9, low)
    plain[inode + 82] = 0
    seal(plain, inode, xfs.inode, 100)
    for size, said in ((len(plain), "past the end"), (1 << 46, "no names in their place")):
        fs = open_xfs(Padded(plain, size))
        with pytest.raises(BrowseError, match=said):
            list(fs.children(fs.root()))


class Padded(Borrowed):
    """The same, and zeros up to ``size``."""

    def __init__(self, data: mmap.mmap, size: int) -> None:
        super().__init__(data)
        self.size = size

    def read_at(self, offset: int, length: int, /) -> bytes:
        return super().read_at(offset, length).ljust(max(0, min(length, self.size - offset)), b"\0")


@pytest.mark.parametrize(
    ("at", "now", "sealed", "said"),
    [
        (0, b"XFSX", False, "not XFS"),
        (300, b"\x01", False, "checksum"),
        (216, b"\x80\0\0\x01", True, "does not know"),
        (84, b"\0\0\0\0", True, "no sense"),
    ],
)
def test_superblocks_that_cannot_be_relied_on(
    plain: mmap.mmap, at: int, now: bytes, sealed: bool, said: str
) -> None:
    plain[at : at + len(now)] = now
    if sealed:
        seal(plain, 0, 512, 224)
    with pytest.raises(NotAFileSystem, match=said):
        open_xfs(Borrowed(plain))
