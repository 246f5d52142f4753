"""Listings are kept, bounded, and never wrong; superblocks and usage survive any bytes."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagefs.block.views import BytesReader
from imagefs.browse import listing as listing_module
from imagefs.browse import usage
from imagefs.browse.extinode import ExtInodes, decode_inode, read_superblock
from imagefs.browse.listing import Listings
from imagefs.browse.sniff import seems_to_be
from imagefs.errors import BrowseError, PathNotFound
from imagefs.interfaces import Entry
from tests.browse.disks import file, folder

ROOT = folder(b"/", "2")


class Scanner:
    """Counts scans of a tree of ten folders with ten files each."""

    def __init__(self) -> None:
        self.scans: list[bytes] = []
        self.damaged = False

    def __call__(self, directory: Entry) -> Iterator[Entry]:
        self.scans.append(directory.path)
        for number in range(10):
            if directory.path == b"/":
                yield folder(b"/d%d" % number, str(100 + number))
            else:
                yield file(directory.path + b"/File%d" % number)
        if self.damaged:
            raise BrowseError("the rest is damaged")


def listings(scanner: Scanner, *, folds: bool = False) -> Listings:
    return Listings(scanner, case_insensitive=folds, readlink=lambda entry: b"x")


def test_a_directory_is_scanned_once() -> None:
    scanner = Scanner()
    kept = listings(scanner)
    for number in range(10):
        assert kept.lookup(ROOT, b"/d3/File%d" % number).name == b"File%d" % number
    assert scanner.scans == [b"/", b"/d3"]
    kept.clear()
    kept.lookup(ROOT, b"/d3")
    assert scanner.scans == [b"/", b"/d3", b"/"]


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing_module, "KEPT_ENTRIES", 35)
    scanner = Scanner()
    kept = listings(scanner)
    for _ in range(3):
        for number in range(10):
            kept.lookup(ROOT, b"/d%d/File0" % number)
            assert kept._total <= 35
    assert len(scanner.scans) > 20


def test_a_directory_too_large_to_keep_is_still_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing_module, "KEPT_LISTING", 5)
    scanner = Scanner()
    kept = listings(scanner, folds=True)
    assert kept.lookup(ROOT, b"/d9/file9").name == b"File9"
    with pytest.raises(PathNotFound):
        kept.lookup(ROOT, b"/d9/nothing")
    assert kept._total == 0


def test_a_damaged_directory_gives_what_was_read_and_is_not_kept() -> None:
    scanner = Scanner()
    scanner.damaged = True
    kept = listings(scanner)
    assert kept.lookup(ROOT, b"/d1").name == b"d1"
    with pytest.raises(BrowseError, match="damaged"):
        kept.lookup(ROOT, b"/nothing")
    with pytest.raises(BrowseError, match="damaged"):
        list(kept.children(ROOT))
    assert len(scanner.scans) == 3


def test_an_exact_name_goes_before_one_without_case() -> None:
    def scan(directory: Entry) -> Iterator[Entry]:
        yield file(b"/ABC", "1")
        yield file(b"/abc", "2")

    for folds in (True, False):
        kept = Listings(scan, case_insensitive=folds, readlink=lambda entry: b"")
        for _ in range(2):  # from a scan, then from what was kept
            assert kept.lookup(ROOT, b"/abc").inode == "2"
            if folds:
                assert kept.lookup(ROOT, b"/Abc").inode == "1"
            else:
                with pytest.raises(PathNotFound):
                    kept.lookup(ROOT, b"/Abc")


# -- what is read beside TSK -----------------------------------------------------------------------


@given(st.binary(min_size=128, max_size=256))
def test_any_inode_is_decoded(raw: bytes) -> None:
    inode = decode_inode(raw, 0, room=len(raw))
    assert 0 <= inode.size < 1 << 64
    assert inode.link is None or 0 < len(inode.link) < 60


@given(st.binary(min_size=1024, max_size=1024), st.integers(-1, 1 << 33))
def test_any_superblock_is_survived(raw: bytes, number: int) -> None:
    marked = bytes(1024) + raw[:56] + b"\x53\xef" + raw[58:]
    superblock = read_superblock(BytesReader(marked))
    if superblock is not None:
        assert 1024 <= superblock.block_size <= 65536
        ExtInodes(BytesReader(marked), superblock).get(number)


KINDS = ["ntfs", "ext4", "exfat", "fat12", "fat16", "fat32", "hfs", "iso9660", "ufs2"]


@given(st.sampled_from(KINDS), st.binary(max_size=3000), st.binary(max_size=64))
def test_usage_survives_any_bytes(kind: str, data: bytes, system: bytes) -> None:
    reader = BytesReader(data)
    assert isinstance(usage.label(kind, reader, lambda *_: system), str)
    used = usage.used_bytes(kind, reader, lambda *_: system)
    assert used is None or used >= 0


@given(st.binary(max_size=5000))
def test_sniffing_survives_any_bytes(data: bytes) -> None:
    name, _ = seems_to_be(BytesReader(data))
    assert name == "" or name.isprintable()


def test_device_numbers_old_and_new() -> None:
    def device(old: int, new: int) -> tuple[int, int] | None:
        raw = bytearray(128)
        struct.pack_into("<H", raw, 0, 0x6000)
        struct.pack_into("<II", raw, 40, old, new)
        return decode_inode(bytes(raw), 0, room=128).rdev

    assert device(0x0811, 0) == (8, 17)
    assert device(0, (4000 << 8) | (70000 & 0xFF) | ((70000 & ~0xFF) << 12)) == (4000, 70000)
