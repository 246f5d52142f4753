"""NTFS through TSK: streams, reparse points made by hand, and what must be refused."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from imagefs.browse.opening import open_filesystem
from imagefs.browse.walk import walk
from imagefs.errors import BrowseError, PathNotFound
from imagefs.interfaces import EntryType, FileSystem, State
from tests.browse.disks import (
    FileReader,
    add_attribute,
    fls,
    icat,
    make_ntfs,
    mft_record,
    pattern,
    reparse_point,
    symlink_data,
    write_record,
)
from tests.support.oracles import need_tool, root_only, run_tool
from tests.support.reader_contract import check_reader

REPARSE, UTILITY_STREAM = 0xC0, 0x100


@pytest.fixture
def fs(ntfs: Path) -> FileSystem:
    return open_filesystem(FileReader(ntfs))


@pytest.fixture
def copy(ntfs: Path, tmp_path: Path) -> Path:
    """A volume to be changed by hand."""
    return Path(shutil.copy(ntfs, tmp_path / "ntfs"))


def number_of(volume: Path, name: bytes) -> int:
    return int(fls(volume)[name].split("-")[0])


def ntfs_fails(error: Exception) -> None:
    raise error


def test_facts(fs: FileSystem, ntfs: Path) -> None:
    assert (fs.kind, fs.label, fs.case_insensitive) == ("ntfs", "NtLabel", True)
    bitmap = icat(ntfs, "6-128-1")
    clusters = sum(byte.bit_count() for byte in bitmap)
    assert fs.used_bytes == clusters * 4096


def test_the_listing_is_that_of_fls(fs: FileSystem, ntfs: Path) -> None:
    ours = {entry.path: entry.inode for entry in walk(fs, fs.root(), onerror=ntfs_fails)}
    theirs = fls(ntfs)
    assert theirs.items() <= ours.items()
    # what fls shows by its streams only
    assert {p for p in ours if p not in theirs} == {
        b"/$Secure",
        b"/$Extend/$ObjId",
        b"/$Extend/$Quota",
        b"/$Extend/$Reparse",
    }
    assert b"/$MFT" in ours


def test_content_is_the_unnamed_stream(fs: FileSystem, ntfs: Path) -> None:
    expected = {b"/a.txt": b"hello\n", b"/Rnd.bin": pattern(300_000), b"/empty": b"", b"/plain": b"p" * 100}
    for path, data in expected.items():
        entry = fs.lookup(path)
        assert entry.size == len(data)
        assert fs.open(entry).read_at(0, len(data) + 1) == data
        assert icat(ntfs, entry.inode) == data


def test_files_keep_the_reader_contract(fs: FileSystem) -> None:
    check_reader(fs.open(fs.lookup(b"/Rnd.bin")), pattern(300_000), rounds=60)
    check_reader(fs.open(fs.lookup(b"/plain")), b"p" * 100, rounds=20)


def test_names_match_without_case(fs: FileSystem) -> None:
    assert fs.lookup(b"/rND.BIN").path == b"/Rnd.bin"
    assert fs.lookup("/GRÖßE ω.TXT".encode()).path == "/Größe Ω.txt".encode()
    assert fs.lookup(b"/$mft").path == b"/$MFT"
    with pytest.raises(PathNotFound):
        fs.lookup(b"/rnd.bim")


def test_permissions_are_plain_and_times_exact(fs: FileSystem, ntfs: Path) -> None:
    entry = fs.lookup(b"/a.txt")
    assert (entry.mode, entry.uid, entry.gid) == (0o644, 0, 0)
    assert fs.root().mode == 0o755
    _, record = mft_record(ntfs, int(entry.inode.split("-")[0]))
    start = struct.unpack_from("<H", record, 20)[0]  # $STANDARD_INFORMATION comes first
    _, modified = struct.unpack_from("<QQ", record, start + 24)
    assert entry.mtime_ns == (modified - 116_444_736_000_000_000) * 100


def test_times_outside_of_32_bits(copy: Path) -> None:
    offset, record = mft_record(copy, number_of(copy, b"/plain"))
    start = struct.unpack_from("<H", record, 20)[0] + 24
    early, late = 1, 0x7FFFFFFFFFFFFFFF
    write_record(copy, offset, record[:start] + struct.pack("<QQ", early, late) + record[start + 16 :])
    entry = open_filesystem(FileReader(copy)).lookup(b"/plain")
    assert entry.crtime_ns == (early - 116_444_736_000_000_000) * 100
    assert entry.mtime_ns == (late - 116_444_736_000_000_000) * 100


def test_a_read_only_file_is_read_only(copy: Path) -> None:
    offset, record = mft_record(copy, number_of(copy, b"/plain"))
    start = struct.unpack_from("<H", record, 20)[0] + 24 + 32
    write_record(copy, offset, record[:start] + b"\x01" + record[start + 1 :])
    assert open_filesystem(FileReader(copy)).lookup(b"/plain").mode == 0o444


def test_a_relative_symlink(copy: Path) -> None:
    data = reparse_point(0xA000000C, symlink_data("sub\\a.txt", relative=True))
    add_attribute(copy, number_of(copy, b"/plain"), REPARSE, data)
    fs = open_filesystem(FileReader(copy))
    entry = fs.lookup(b"/plain")
    assert (entry.type, entry.size) == (EntryType.SYMLINK, 9)
    assert fs.readlink(entry) == b"sub/a.txt"
    with pytest.raises(BrowseError, match="not a file"):
        fs.open(entry)


def test_a_link_of_unknown_kind_is_a_symlink_without_target(copy: Path) -> None:
    add_attribute(copy, number_of(copy, b"/plain"), REPARSE, reparse_point(0xA0009999, b"?"))
    fs = open_filesystem(FileReader(copy))
    with pytest.raises(BrowseError, match="cannot be decoded"):
        fs.readlink(fs.lookup(b"/plain"))


def test_compactos_files_are_refused(copy: Path) -> None:
    add_attribute(copy, number_of(copy, b"/Rnd.bin"), REPARSE, reparse_point(0x80000017, bytes(16)))
    fs = open_filesystem(FileReader(copy))
    entry = fs.lookup(b"/Rnd.bin")
    assert (entry.type, entry.flags) == (EntryType.FILE, ("wof",))
    with pytest.raises(BrowseError, match="CompactOS"):
        fs.open(entry)


def test_a_cloud_file_is_read_when_it_is_all_there(copy: Path) -> None:
    add_attribute(copy, number_of(copy, b"/Rnd.bin"), REPARSE, reparse_point(0x9000601A, bytes(16)))
    fs = open_filesystem(FileReader(copy))
    assert fs.open(fs.lookup(b"/Rnd.bin")).read_at(0, 300_000) == pattern(300_000)


def test_a_cloud_file_with_holes_is_refused(copy: Path) -> None:
    number = number_of(copy, b"/Rnd.bin")
    make_sparse_stream(copy, number)
    add_attribute(copy, number, REPARSE, reparse_point(0x9000601A, bytes(16)))
    fs = open_filesystem(FileReader(copy))
    with pytest.raises(BrowseError, match="cloud"):
        fs.open(fs.lookup(b"/Rnd.bin"))


def test_holes_of_a_sparse_file_are_known(copy: Path) -> None:
    make_sparse_stream(copy, number_of(copy, b"/Rnd.bin"))
    fs = open_filesystem(FileReader(copy))
    reader = fs.open(fs.lookup(b"/Rnd.bin"))
    assert reader.read_at(0, 300_000) == bytes(300_000)
    assert [extent.state for extent in reader.extents(0, 300_000)] == [State.ZERO]  # type: ignore[attr-defined]


def make_sparse_stream(volume: Path, number: int) -> None:
    """Replace the run list of the unnamed $DATA by one hole of the same length."""
    offset, record = mft_record(volume, number)
    at = struct.unpack_from("<H", record, 20)[0]
    while struct.unpack_from("<I", record, at)[0] != 0x80:
        at += struct.unpack_from("<I", record, at + 4)[0]
    assert record[at + 8] == 1, "the stream is not resident"
    runs = at + struct.unpack_from("<H", record, at + 32)[0]
    clusters = struct.unpack_from("<Q", record, at + 24)[0] + 1
    hole = b"\x02" + struct.pack("<H", clusters) + b"\0"
    flagged = record[: at + 12] + struct.pack("<H", 0x8000) + record[at + 14 :]
    write_record(volume, offset, flagged[:runs] + hole + flagged[runs + len(hole) :])


def test_encrypted_files_are_refused(copy: Path) -> None:
    number = number_of(copy, b"/plain")
    add_attribute(copy, number, UTILITY_STREAM, bytes(32), name="$EFS")
    fs = open_filesystem(FileReader(copy))
    entry = fs.lookup(b"/plain")
    assert "encrypted" in entry.flags
    with pytest.raises(BrowseError, match="EFS"):
        fs.open(entry)


def test_a_transactional_stream_is_not_encryption(copy: Path) -> None:
    add_attribute(copy, number_of(copy, b"/plain"), UTILITY_STREAM, bytes(32), name="$TXF_DATA")
    fs = open_filesystem(FileReader(copy))
    assert fs.open(fs.lookup(b"/plain")).read_at(0, 200) == b"p" * 100


def test_what_was_never_written_is_zeros(copy: Path) -> None:
    """Past the valid data length stale bytes lie on the disk."""
    number = number_of(copy, b"/Rnd.bin")
    offset, record = mft_record(copy, number)
    at = struct.unpack_from("<H", record, 20)[0]
    while struct.unpack_from("<I", record, at)[0] != 0x80:
        at += struct.unpack_from("<I", record, at + 4)[0]
    write_record(copy, offset, record[: at + 56] + struct.pack("<Q", 100_001) + record[at + 64 :])
    fs = open_filesystem(FileReader(copy))
    expected = pattern(300_000)[:100_001] + bytes(199_999)
    assert fs.open(fs.lookup(b"/Rnd.bin")).read_at(0, 300_000) == expected


def test_a_torn_record_is_an_unreadable_entry_not_the_end(copy: Path) -> None:
    offset, _ = mft_record(copy, number_of(copy, b"/plain"))
    with copy.open("r+b") as stream:
        stream.seek(offset + 510)
        stream.write(b"\xde\xad")
    fs = open_filesystem(FileReader(copy))
    found = {entry.name: entry for entry in fs.children(fs.root())}
    assert found[b"a.txt"].size == 6
    assert found[b"plain"].flags == ("unreadable",)
    with pytest.raises(BrowseError, match="where its bytes lie"):
        fs.open(found[b"plain"])


@root_only
def test_folders_compression_and_a_full_directory(tmp_path: Path) -> None:
    """What only a driver can make: through ntfs-3g, compared with what it reads itself."""
    need_tool("ntfs-3g", "fusermount3")
    volume = make_ntfs(tmp_path / "ntfs", {}, tmp_path, size=24 << 20)
    mounted = tmp_path / "mnt"
    mounted.mkdir()
    run_tool(["ntfs-3g", "-o", "compression,streams_interface=xattr", volume, mounted])
    try:
        packed = mounted / "packed"
        packed.mkdir()
        compress(packed)
        (packed / "file").write_bytes(b"compress me " * 50_000)
        (packed / "noise").write_bytes(os.urandom(200_000))
        many = mounted / "many"
        many.mkdir()
        for number in range(900):
            (many / f"{number:04d} {'w' * 120}").touch()
        os.link(packed / "noise", mounted / "hard")
        expected = {name: (packed / name).read_bytes() for name in ("file", "noise")}
        names = set(os.listdir(os.fsencode(many)))
    finally:
        run_tool(["fusermount3", "-u", mounted])
    fs = open_filesystem(FileReader(volume))
    for name, data in expected.items():
        check_reader(fs.open(fs.lookup(b"/packed/" + name.encode())), data, rounds=20)
    assert fs.open(fs.lookup(b"/hard")).read_at(0, 300_000) == expected["noise"]
    listed = {entry.path: entry.inode for entry in fs.children(fs.lookup(b"/many"))}
    assert {path.rsplit(b"/", 1)[1] for path in listed} == names
    assert listed.items() == {p: i for p, i in fls(volume).items() if p.startswith(b"/many/")}.items()


def compress(path: Path) -> None:
    """Mark a folder so that ntfs-3g compresses what is made in it."""
    need_tool("setfattr")
    value = "0x" + struct.pack("<I", 0x800).hex()
    subprocess.run(["setfattr", "-h", "-v", value, "-n", "system.ntfs_attrib", path], check=True, timeout=600)
