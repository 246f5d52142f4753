"""FAT12/16/32 and exFAT through TSK, and the same FAT volumes through pyfatfs."""

from __future__ import annotations

import calendar
import os
import shutil
import struct
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagefs.block.views import BytesReader
from imagefs.browse.fat import chain, open_fat
from imagefs.browse.fatdentry import Dentries, _dos_ns, _zoned
from imagefs.browse.opening import open_filesystem
from imagefs.browse.tsk import open_tsk
from imagefs.browse.walk import walk
from imagefs.errors import BrowseError, NotAFileSystem, PathNotFound
from imagefs.interfaces import EntryType, FileSystem
from tests.browse.disks import FileReader, fls, icat, make_fat, pattern
from tests.support.oracles import need_tool, run_tool, unpacked_corpus_file
from tests.support.reader_contract import check_reader


@pytest.fixture(params=["tsk", "pyfatfs"])
def fs(request: pytest.FixtureRequest, fat: Path) -> FileSystem:
    reader = FileReader(fat)
    return open_tsk(reader) if request.param == "tsk" else open_fat(reader)


def fails(error: Exception) -> None:
    raise error


def test_facts(fs: FileSystem, fat: Path) -> None:
    assert fs.kind == fat.name
    assert fs.label == "FATLABEL"
    assert fs.case_insensitive


def test_used_bytes_are_those_of_mdir(fs: FileSystem, fat: Path) -> None:
    need_tool("mdir")
    last = run_tool(["mdir", "-i", fat, "::"]).stdout.decode().strip().splitlines()[-1]
    free = int("".join(last.replace("bytes free", "").split()))
    boot = fat.read_bytes()[:512]
    sector, cluster, reserved, fats, roots = struct.unpack_from("<HBHBH", boot, 11)
    per_fat = struct.unpack_from("<H", boot, 22)[0] or struct.unpack_from("<I", boot, 36)[0]
    total = struct.unpack_from("<H", boot, 19)[0] or struct.unpack_from("<I", boot, 32)[0]
    data = total - reserved - fats * per_fat - roots * 32 // sector
    assert fs.used_bytes == data // cluster * cluster * sector - free


def test_the_listing_is_that_of_fls(fs: FileSystem, fat: Path) -> None:
    assert {entry.path: entry.inode for entry in walk(fs, fs.root(), onerror=fails)} == fls(fat)


def test_content_times_and_modes(fs: FileSystem, fat: Path, plain_stage: Path) -> None:
    for path in (b"/a.txt", "/Größe.txt".encode(), b"/Dir/A long name.bin", b"/Dir/empty"):
        source = plain_stage / os.fsdecode(path[1:])
        entry = fs.lookup(path)
        assert fs.open(entry).read_at(0, 400_000) == source.read_bytes()
        if entry.size:
            assert icat(fat, entry.inode) == source.read_bytes()
        assert (entry.mode, entry.uid, entry.type) == (0o644, 0, EntryType.FILE)
        assert entry.mtime_ns is not None
        local = int(source.stat().st_mtime)
        assert abs(entry.mtime_ns / 10**9 - local) <= 2 + 14 * 3600  # mtools writes local time


def test_a_file_keeps_the_reader_contract(fs: FileSystem) -> None:
    check_reader(fs.open(fs.lookup(b"/Dir/A long name.bin")), pattern(300_000))


def test_lookups(fs: FileSystem) -> None:
    assert fs.lookup(b"/dir/a LONG name.BIN").path == b"/Dir/A long name.bin"
    for path in (b"/nope", b"/Dir/..", b"/FATLABEL", b"/$FAT1", b"/$OrphanFiles", b"/a.txt/x"):
        with pytest.raises(PathNotFound):
            fs.lookup(path)
    with pytest.raises(BrowseError, match="not a symbolic link"):
        fs.readlink(fs.lookup(b"/a.txt"))
    with pytest.raises(BrowseError, match="not a file"):
        fs.open(fs.lookup(b"/Dir"))
    fs.close()
    with pytest.raises(BrowseError, match="closed"):
        fs.root()


def test_a_chain_that_ends_early_is_damage(fat: Path, tmp_path: Path) -> None:
    """The FAT entry of the second cluster of the long file says: end."""
    copy = Path(shutil.copy(fat, tmp_path / fat.name))
    size = open_tsk(FileReader(copy)).lookup(b"/Dir/A long name.bin").size
    raw = bytearray(copy.read_bytes())
    reserved, fats = struct.unpack_from("<HB", raw, 14)
    per_fat = struct.unpack_from("<H", raw, 22)[0] or struct.unpack_from("<I", raw, 36)[0]
    for number in range(fats):
        start = (reserved + number * per_fat) * 512
        end = start + per_fat * 512
        bits = int(fat.name[3:])
        keep = {12: 3, 16: 4, 32: 8}[bits]
        raw[start + keep : end] = b"\xff" * (end - start - keep)
    copy.write_bytes(raw)
    for opened in (open_tsk(FileReader(copy)), open_fat(FileReader(copy))):
        with pytest.raises(BrowseError):
            opened.open(opened.lookup(b"/Dir/A long name.bin")).read_at(0, size)


def test_times_do_not_depend_on_the_time_zone(plain_stage: Path, tmp_path: Path) -> None:
    fat = make_fat(tmp_path / "fat", plain_stage)
    code = (
        "import sys; from pathlib import Path; from tests.browse.disks import FileReader;"
        "from imagefs.browse.opening import open_filesystem;"
        "print(open_filesystem(FileReader(Path(sys.argv[1]))).lookup(b'/a.txt').mtime_ns)"
    )
    root = Path(__file__).parents[2]
    said = {
        subprocess.run(
            [sys.executable, "-c", code, fat],
            env={**os.environ, "TZ": zone},
            cwd=root,
            check=True,
            capture_output=True,
            timeout=600,
        ).stdout
        for zone in ("UTC", "EST5EDT")
    }
    assert len(said) == 1


# -- entries by hand -------------------------------------------------------------------------------


@given(st.datetimes(datetime(1980, 1, 1), datetime(2107, 12, 31)), st.integers(0, 199))
def test_dos_times(when: datetime, tenths: int) -> None:
    when = when.replace(second=when.second & ~1, microsecond=0)
    date = (when.year - 1980) << 9 | when.month << 5 | when.day
    time = when.hour << 11 | when.minute << 5 | when.second // 2
    seconds = calendar.timegm(when.timetuple())
    assert _dos_ns(date, time, tenths) == seconds * 10**9 + tenths * 10**7


@given(st.integers(0, 65535), st.integers(0, 65535), st.integers(0, 255))
def test_no_dos_time_is_too_odd(date: int, time: int, tenths: int) -> None:
    value = _dos_ns(date, time, tenths)
    assert value is None or value >= calendar.timegm((1980, 1, 1, 0, 0, 0)) * 10**9


def test_exfat_offsets() -> None:
    hour = 3600 * 10**9
    assert _zoned(10 * hour, 0) == 10 * hour, "no offset: taken as UTC"
    assert _zoned(10 * hour, 0x80 | 8) == 8 * hour, "+02:00"
    assert _zoned(10 * hour, 0x80 | (-20 & 0x7F)) == 15 * hour, "-05:00"
    assert _zoned(None, 0x88) is None


@given(st.binary(min_size=0, max_size=4096), st.integers(-5, 1 << 40), st.booleans())
def test_dentries_survive_any_bytes(data: bytes, inode: int, exfat: bool) -> None:
    Dentries(BytesReader(data), exfat=exfat).get(inode)


@given(st.lists(st.integers(0, 40), min_size=2, max_size=30), st.integers(0, 40))
def test_chains_end(fat_table: list[int], first: int) -> None:
    table = [value if value < 35 else 0xFFFF for value in fat_table]
    try:
        clusters = chain(table, 16, first)
    except ValueError:
        return
    assert len(set(clusters)) == len(clusters) <= len(table)
    assert not clusters or table[clusters[-1]] >= 0xFFF8


# -- exFAT and what TSK refuses --------------------------------------------------------------------


@pytest.fixture
def exfat(tmp_path: Path) -> Path:
    disk = unpacked_corpus_file("debian-forensics-samples/fs.multiple.xz", tmp_path)
    path = tmp_path / "exfat"
    with disk.open("rb") as source, path.open("wb") as target:
        source.seek(309_248 * 512)
        target.write(source.read(8 << 20))
        target.truncate(81_920 * 512)
    return path


def test_exfat_hides_its_system_files(exfat: Path) -> None:
    fs = open_filesystem(FileReader(exfat))
    assert fs.kind == "exfat"
    assert {entry.name for entry in fs.children(fs.root())} >= {b"debian_logo.jpg", b"test.txt"}
    assert not [entry for entry in fs.children(fs.root()) if entry.name.startswith(b"$")]
    assert fs.used_bytes
    assert fs.lookup(b"/TEST.TXT").path == b"/test.txt"


def test_exfat_past_the_valid_length_is_zeros(exfat: Path) -> None:
    fs = open_filesystem(FileReader(exfat))
    entry = fs.lookup(b"/debian_logo.jpg")
    whole = fs.open(entry).read_at(0, entry.size)
    raw = bytearray(exfat.read_bytes())
    heap = struct.unpack_from("<I", raw, 88)[0] << raw[108]
    at = heap + (int(entry.inode) - 3) * 32
    assert (raw[at], raw[at + 32]) == (0x85, 0xC0)
    struct.pack_into("<Q", raw, at + 40, 1_001)
    exfat.write_bytes(raw)
    again = open_filesystem(FileReader(exfat))
    data = again.open(again.lookup(b"/debian_logo.jpg")).read_at(0, entry.size)
    assert data == whole[:1_001] + bytes(entry.size - 1_001)


def test_tiny_fat32_goes_through_pyfatfs(tmp_path: Path) -> None:
    path = unpacked_corpus_file("dfir_ntfs/test_data/fat32_small.raw.gz", tmp_path)
    with pytest.raises(NotAFileSystem):
        open_tsk(FileReader(path))
    fs = open_filesystem(FileReader(path))
    found = {entry.path: entry.size for entry in walk(fs, fs.root(), onerror=fails)}
    assert found == {b"/test": 0, b"/test/1.TXT": 6, b"/test/2.TXT": 6}
    assert fs.open(fs.lookup(b"/test/1.txt")).read_at(0, 99) == b"test1\n"


def test_a_64_bit_sector_count_goes_through_pyfatfs(tmp_path: Path) -> None:
    path = unpacked_corpus_file("dfir_ntfs/test_data/fat64.raw.gz", tmp_path)
    start = 1 << 20
    with pytest.raises(NotAFileSystem):
        open_tsk(FileReader(path, start))
    fs = open_filesystem(FileReader(path, start))
    assert [entry.path for entry in walk(fs, fs.root(), onerror=fails)] == [b"/test", b"/test/test.test"]


def test_pyfatfs_says_nothing_on_stderr(tmp_path: Path) -> None:
    """A torn long name makes it warn; in a process of its own, where pytest catches nothing."""
    path = unpacked_corpus_file("dfir_ntfs/test_data/fat32_small.raw.gz", tmp_path)
    raw = path.read_bytes()
    at = raw.index(b"1       TXT")
    torn = b"\x42" + b"x\0" * 5 + b"\x0f\0\0" + b"y\0" * 6 + b"\0\0" + b"z\0" * 2
    path.write_bytes(raw[:at] + torn + raw[at:][: len(raw) - at - 32])
    code = (
        "import sys; from pathlib import Path; from tests.browse.disks import FileReader;"
        "from imagefs.browse.opening import open_filesystem; from imagefs.browse.walk import walk;"
        "fs = open_filesystem(FileReader(Path(sys.argv[1])));"
        "print([entry.path for entry in walk(fs, fs.root(), onerror=print)])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, path],
        cwd=Path(__file__).parents[2],
        check=True,
        capture_output=True,
        timeout=600,
    )
    assert b"/test/1.TXT" in done.stdout
    assert done.stderr == b""


def test_a_volume_is_never_written_to(fat: Path) -> None:
    before = fat.read_bytes()
    fs = open_fat(FileReader(fat))
    list(walk(fs, fs.root(), onerror=fails))
    fs.close()
    assert fat.read_bytes() == before


def test_a_fat_too_large_for_pyfatfs_is_refused() -> None:
    boot = bytearray(512)
    boot[0:3] = b"\xeb\x58\x90"
    struct.pack_into("<HBHB", boot, 11, 4096, 8, 32, 255)
    struct.pack_into("<I", boot, 36, 0x7FFFFFFF)
    boot[510:] = b"\x55\xaa"
    with pytest.raises(NotAFileSystem):
        open_fat(BytesReader(bytes(boot) + bytes(4096)))
