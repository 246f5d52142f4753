"""ISO 9660 made by genisoimage and xorriso, held against the folder that went in."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from fixtures.tools import run_tool
from imagefs.block.views import BytesReader
from imagefs.browse.isorecord import decode
from imagefs.browse.opening import open_filesystem
from imagefs.browse.walk import walk
from imagefs.errors import BrowseError, ImagefsError
from imagefs.interfaces import Entry, EntryType, FileSystem
from tests.browse.disks import FileReader, pattern
from tests.support.oracles import corpus_file, need_tool

STAMP = 1_612_325_106
KINDS = {stat.S_IFREG: EntryType.FILE, stat.S_IFDIR: EntryType.DIRECTORY, stat.S_IFLNK: EntryType.SYMLINK}
KINDS |= {stat.S_IFIFO: EntryType.FIFO}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("iso") / "root"
    deep = root / "/".join(f"level{number}" for number in range(10))
    deep.mkdir(parents=True)
    (deep / "at the bottom").write_bytes(b"deep")
    (root / "A long name with spaces.text").write_bytes(pattern(100_000))
    (root / "Größe.txt").write_bytes(b"umlauts")
    (root / ("n" * 200)).write_bytes(b"long")
    (root / "empty").touch()
    os.symlink("level0/../Größe.txt", root / "link")
    os.symlink("/" + "/".join(["z" * 100, ".", "y" * 130, "..", "x"]), root / "longlink")
    os.symlink("/", root / "rootlink")
    os.mkfifo(root / "fifo", 0o600)
    (root / "many").mkdir()
    for number in range(120):
        (root / "many" / f"file {number:03d}").write_bytes(b"%d" % number)
    (root / "empty").chmod(0o4711)
    for path in (root, *root.rglob("*")):
        os.utime(path, (STAMP + 7, STAMP), follow_symlinks=False)
    return root


def make(path: Path, source: Path, *words: str) -> FileSystem:
    need_tool("genisoimage", "xorriso")
    tool = ["xorriso", "-as", "mkisofs"] if "xorriso" in words else ["genisoimage"]
    run_tool([*tool, "-quiet", "-V", "LABEL", *(w for w in words if w != "xorriso"), "-o", path, source])
    return open_filesystem(FileReader(path))


def fails(error: ImagefsError) -> None:
    raise error


def content(fs: FileSystem, entry: Entry) -> bytes:
    if entry.type is EntryType.SYMLINK:
        return fs.readlink(entry)
    return fs.open(entry).read_at(0, entry.size + 1) if entry.type is EntryType.FILE else b""


@pytest.mark.parametrize("words", [("-R",), ("-R", "-J"), ("xorriso", "-R"), ("xorriso", "-R", "-J")])
def test_rock_ridge_keeps_everything(tmp_path: Path, source: Path, words: tuple[str, ...]) -> None:
    fs = make(tmp_path / "iso", source, *words)
    assert (fs.kind, fs.label) == ("iso9660", "LABEL")
    ours = {entry.path: entry for entry in walk(fs, fs.root(), onerror=fails) if entry.name != b"rr_moved"}
    theirs = {b"/" + os.fsencode(path.relative_to(source)): path for path in source.rglob("*")}
    assert ours.keys() == theirs.keys()
    for name, path in theirs.items():
        entry, told = ours[name], path.lstat()
        assert entry.type is KINDS[stat.S_IFMT(told.st_mode)]
        assert (entry.mode, entry.uid, entry.gid) == (stat.S_IMODE(told.st_mode), told.st_uid, told.st_gid)
        if entry.type is not EntryType.DIRECTORY:
            assert (entry.mtime_ns, entry.size) == (STAMP * 10**9, 0 if path.is_fifo() else told.st_size)
        if path.is_symlink():
            assert content(fs, entry) == os.fsencode(os.readlink(path))
        elif path.is_file():
            assert content(fs, entry) == path.read_bytes()
        assert fs.lookup(name) == entry


def test_joliet_has_long_names(tmp_path: Path, source: Path) -> None:
    fs = make(tmp_path / "iso", source, "-J")
    found = {entry.path: entry for entry in walk(fs, fs.root(), onerror=fails)}
    assert content(fs, found[b"/A long name with spaces.text"]) == pattern(100_000)
    assert content(fs, found["/Größe.txt".encode()]) == b"umlauts"
    assert len([path for path in found if path.startswith(b"/many/")]) == 120
    assert (found[b"/many"].mode, found[b"/empty"].mode) == (0o555, 0o444)
    assert found[b"/empty"].mtime_ns == STAMP * 10**9


def test_plain_names_come_without_version(tmp_path: Path, source: Path) -> None:
    fs = make(tmp_path / "iso", source)
    names = {entry.name for entry in fs.children(fs.root())}
    assert {b"A_LONG_N.TEX", b"EMPTY", b"MANY"} <= names or {b"A_LONG_N.TXT", b"EMPTY", b"MANY"} <= names
    assert content(fs, fs.lookup(b"/EMPTY")) == b""


def test_a_file_in_two_parts_is_read_as_one(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "a").write_bytes(pattern(4096))
    (root / "b").write_bytes(b"the end")
    make(tmp_path / "iso", root)
    raw = bytearray((tmp_path / "iso").read_bytes())
    fs = open_filesystem(BytesReader(bytes(raw)))
    raw[int(fs.lookup(b"/A").inode) + 25] |= 0x80
    joined = open_filesystem(BytesReader(bytes(raw)))
    (entry,) = joined.children(joined.root())
    assert (entry.path, entry.size) == (b"/A", 4103)
    assert content(joined, entry) == pattern(4096) + b"the end"


def test_what_is_packed_is_refused(tmp_path: Path, source: Path) -> None:
    """zisofs keeps another length than it shows; the bytes on the disk are not the file's."""
    make(tmp_path / "iso", source, "-R")
    raw = (tmp_path / "iso").read_bytes()
    entry = (fs := open_filesystem(BytesReader(raw))).lookup(b"/empty")
    at = int(entry.inode)
    record = raw[at : at + raw[at]]
    swapped = record.replace(b"TF", b"ZF", 1)
    assert swapped != record
    fs = open_filesystem(BytesReader(raw[:at] + swapped + raw[at + len(record) :]))
    assert fs.lookup(b"/empty").flags == ("compressed",)
    with pytest.raises(BrowseError, match="zisofs"):
        fs.open(fs.lookup(b"/empty"))


def test_hostile_records_end(tmp_path: Path, source: Path) -> None:
    """A folder that holds itself, a list of gigabytes, records that are cut: each is an error or ends."""
    make(tmp_path / "iso", source, "-R")
    raw = bytearray((tmp_path / "iso").read_bytes())
    fs = open_filesystem(BytesReader(bytes(raw)))
    root = int(fs.root().inode)
    at, loop = root, b""
    while raw[at]:
        record = decode(bytes(raw[at : at + raw[at]]))
        if record and b"many" in record.extra:
            loop = (
                bytes(raw[at : at + 2])
                + bytes(raw[root + 2 : root + 18])
                + bytes(raw[at + 18 : at + raw[at]])
            )
            break
        at += raw[at]
    looped = bytes(raw[:at]) + loop + bytes(raw[at + len(loop) :])
    again = open_filesystem(BytesReader(looped))
    assert len(list(walk(again, again.root(), onerror=lambda error: None))) < 2_000
    huge = bytes(raw[: root + 10]) + b"\xff\xff\xff\x7f" + bytes(raw[root + 14 :])
    with pytest.raises(BrowseError, match="bytes"):
        list(open_filesystem(BytesReader(huge)).children(open_filesystem(BytesReader(huge)).root()))
    cut = open_filesystem(BytesReader(bytes(raw[: root + 2048])))
    with pytest.raises(BrowseError):
        cut.open(cut.lookup(b"/A long name with spaces.text")).read_at(0, 10)


def test_a_disc_of_others() -> None:
    fs = open_filesystem(FileReader(corpus_file("dfvfs/test_data/iso9660.raw")))
    found = {entry.path: entry for entry in walk(fs, fs.root(), onerror=fails)}
    text = next(entry for path, entry in found.items() if path.lower().endswith(b"passwords.txt"))
    assert content(fs, text).startswith(b"place,user,password")
