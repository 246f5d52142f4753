"""The timeline, line by line against ``fls -m`` and through ``mactime``; every difference that stays is named."""

from __future__ import annotations

import csv
import io
import shutil
import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagefs.browse import mft, timeline, tskentry
from imagefs.browse.opening import open_filesystem
from imagefs.browse.timeline import Line, Timeline, body, lines
from imagefs.browse.tsk import TskFileSystem, open_tsk
from imagefs.errors import BrowseError, ImagefsError
from imagefs.interfaces import Entry, HasStreams, NameTimes
from tests.browse.disks import (
    FakeFs,
    FileReader,
    debugfs,
    file,
    folder,
    make_ext,
    make_fat,
    mft_record,
    pattern,
)
from tests.browse.test_find_content import ForensicFs
from tests.support.oracles import corpus_file, need_tool, run_tool, unpack, unpacked_corpus_file

WITHOUT_MODES = ("ntfs", "fat12", "fat16", "fat32", "exfat")
#: System files that TSK names, or gives names of its own, and that no folder of the volume holds.
MADE_UP = {b"$ALLOC_BITMAP", b"$UPCASE_TABLE", b"$EMPTY_VOLUME_LABEL"}
MADE_UP |= {
    b"$AllocationFile",
    b"$AttributesFile",
    b"$BadBlockFile",
    b"$CatalogFile",
    b"$ExtentsFile",
    b"$StartupFile",
}
#: 1601 as fls 4.11 writes it: a time that is not set, wrapped round.
NO_WINDOWS_TIME = b"3373865674"


def fls(path: Path, start: int = 0) -> list[bytes]:
    need_tool("fls")
    words = ["fls", "-r", "-m", "/p1", "-z", "UTC", "-o", str(start // 512), path]
    done = run_tool(["env", "TZ=UTC", *words])
    return done.stdout.splitlines()


def theirs(raw: list[bytes], kind: str, *, streams: bool) -> Iterator[tuple[bytes, ...]]:
    """What fls says, but for what it is known to say otherwise."""
    for line in raw:
        head, *rest = line.rsplit(b"|", 9)
        name, (inode, mode, uid, *facts) = head.removeprefix(b"0|"), rest
        base = name.removesuffix(b" (Volume Label Entry)")
        if (
            b" (deleted" in name
            or (base != name and facts[1] == b"0")
            or mode[:1] in (b"v", b"V")
            or base[4:] in MADE_UP
        ):
            continue
        if kind == "ntfs" and b":" in name and (not streams or b"-128-" not in inode):
            continue  # indexes of system files are no content
        if kind in WITHOUT_MODES:
            mode, uid = mode[:3], b"0"
        times = (b"0" if time == NO_WINDOWS_TIME else time for time in facts[2:])
        if kind.startswith("ext"):  # the days before 1970 are wrapped round
            times = (b"%d" % (int(time) - 2**32) if int(time) > 2**32 - 10**6 else time for time in times)
        yield (name, inode, mode, uid, *facts[:2], *times)


def ours(fs: TskFileSystem) -> Iterator[tuple[bytes, ...]]:
    for line in lines(fs, fs.root(), onerror=pytest.fail):
        if line.entry.deleted:
            continue
        head, *rest = body(line, b"/p1").rstrip(b"\n").rsplit(b"|", 9)
        inode, mode, *facts = rest
        name = head.removeprefix(b"0|")
        if fs.kind == "hfs" and name.endswith(b":rsrc"):
            continue  # fls has no lines for resource forks
        if fs.kind == "ntfs" and b":" not in name and b"-" not in inode:
            continue  # fls has no line for a file without a content
        if fs.kind in WITHOUT_MODES:
            mode = mode[:3]
        if fs.kind == "ext4" and len(line.target) >= 60:
            name = name.split(b" -> ")[0]  # fls does not know targets that lie in an extent
        yield (name.replace(b"%7C", b"|").replace(b"%25", b"%"), inode, mode, *facts)


def compare(path: Path, start: int = 0) -> int:
    fs = open_tsk(FileReader(path, start))
    try:
        expected = sorted(theirs(fls(path, start), fs.kind, streams=isinstance(fs, HasStreams)))
        assert sorted(ours(fs)) == expected
    finally:
        fs.close()
    return len(expected)


def test_ext4(ext4: Path) -> None:
    assert compare(ext4) > 300


def test_ext2(ext2: Path) -> None:
    assert compare(ext2) > 300


def test_ntfs(ntfs: Path) -> None:
    assert compare(ntfs) > 30


def test_fat(fat: Path) -> None:
    assert compare(fat) == 5


@pytest.mark.parametrize(
    ("name", "member"),
    [
        ("sleuthkit_test_data/from_brian/7-undel-ntfs.zip", "7-ntfs-undel.dd"),
        ("sleuthkit_test_data/from_brian/9-fat-label.zip", "*.dd"),
        ("sleuthkit_test_data/nps-2009-hfsjtest1/image.gen1.zip", "*.dmg"),
    ],
)
def test_packed_disks_of_the_corpus(name: str, member: str, tmp_path: Path) -> None:
    assert compare(unpacked_corpus_file(name, tmp_path, member=member))


@pytest.mark.parametrize("name", ["hfsplus.raw", "iso9660.raw"])
def test_disks_of_dfvfs(name: str) -> None:
    assert compare(corpus_file(f"dfvfs/test_data/{name}"))


@pytest.mark.parametrize("name", ["dfvfs/test_data/windows_volume.qcow2", "plaso/test_data/vsstest.qcow2"])
def test_ntfs_made_by_windows(name: str, tmp_path: Path) -> None:
    """Names with DOS names beside them, which have no lines."""
    need_tool("qemu-img")
    run_tool(["qemu-img", "convert", "-O", "raw", corpus_file(name), tmp_path / "raw"])
    assert compare(tmp_path / "raw") > 30


def test_four_file_systems_on_one_disk(tmp_path: Path) -> None:
    disk = unpack(corpus_file("debian-forensics-samples/fs.multiple.xz"), tmp_path)
    for sector in (227_328, 309_248, 391_168):
        assert compare(disk, sector * 512)


# -- deleted files ---------------------------------------------------------------------------------

REALLOC = b" (deleted-realloc)"
#: Records of NTFS that were never used, which fls lists.
NEVER_USED = {b"/p1/$OrphanFiles/OrphanFile-%d (deleted)" % number for number in range(12, 24)}


def same(line: bytes, kind: str) -> tuple[bytes, ...]:
    """A line for a deleted name, without what is known to be said otherwise."""
    head, *rest = line.rsplit(b"|", 9)
    name, (inode, mode, uid, gid, size, *times) = head.removeprefix(b"0|"), rest
    if name.endswith(REALLOC):  # fls tells of the file that has the inode now
        return (name, inode, mode[:1])
    if kind in WITHOUT_MODES:
        mode, uid = mode[:3], b"0"
    # fls does not know what a deleted name of NTFS named; a name of ext may say otherwise than its inode.
    mode = mode if name.startswith(b"/p1/$OrphanFiles/") and kind != "ntfs" else mode[1:]
    if "fat" in kind:  # 1.00 second above an even one is none for fls
        times = [b"%d" % (int(time) & ~1) for time in times]
    return (name, inode, mode, uid, gid, size, *times)


def compare_deleted(path: Path) -> Counter[tuple[bytes, ...]]:
    fs = open_tsk(FileReader(path))
    theirs = Counter(same(line, fs.kind) for line in fls(path) if b" (deleted" in line)
    if fs.kind == "ntfs":
        theirs = Counter({line: count for line, count in theirs.items() if line[0] not in NEVER_USED})
    told = (line for line in lines(fs, fs.root(), onerror=lambda error: None) if line.entry.deleted)
    assert Counter(same(body(line, b"/p1").rstrip(b"\n"), fs.kind) for line in told) == theirs
    fs.close()
    return theirs


@pytest.mark.parametrize(
    ("name", "member", "count"),
    [
        ("sleuthkit_test_data/from_brian/7-undel-ntfs.zip", "7-ntfs-undel.dd", 21),
        ("sleuthkit_test_data/from_brian/9-fat-label.zip", "*.dd", 1),
        ("dfir_ntfs/test_data/fat_deleted_dir.raw.gz", "*", 504),
        ("dfir_ntfs/test_data/fat16_moved.raw.gz", "*", 1),
        ("dfir_ntfs/test_data/fat32_loop.raw.gz", "*", 1),
        ("dfir_ntfs/test_data/fat_dir.raw.gz", "*", 1),
        ("e2fsprogs/tests/f_badorphan/image.gz", "*", 37),
        ("e2fsprogs/tests/f_dup_de/image.gz", "*", 199),
        ("e2fsprogs/tests/f_journal/image.gz", "*", 103),
        ("e2fsprogs/tests/f_verity/image.gz", "*", 79),
    ],
)
def test_deleted_files_of_packed_disks(name: str, member: str, count: int, tmp_path: Path) -> None:
    assert sum(compare_deleted(unpacked_corpus_file(name, tmp_path, member=member)).values()) == count


@pytest.mark.parametrize(
    ("name", "count"), [("go-exfat/test/assets/test.exfat", 3), ("go-ext4/assets/hierarchy_64.ext4", 5)]
)
def test_deleted_files_of_disks(name: str, count: int) -> None:
    assert sum(compare_deleted(corpus_file(name)).values()) == count


def test_records_that_were_never_used_have_no_lines(tmp_path: Path) -> None:
    need_tool("qemu-img")
    source = corpus_file("dfvfs/test_data/windows_volume.qcow2")
    run_tool(["qemu-img", "convert", "-O", "raw", source, tmp_path / "raw"])
    assert not compare_deleted(tmp_path / "raw")
    assert sum(b" (deleted" in line for line in fls(tmp_path / "raw")) == 8


def test_what_was_deleted_just_now(tmp_path: Path) -> None:
    """ext4 by debugfs (it keeps the map, as ext2 does), FAT by mtools, and a name whose inode is taken again."""
    room = tmp_path / "room"
    (room / "d").mkdir(parents=True)
    for name in ("a", "b", "d/x"):
        (room / name).write_bytes(pattern(9_000))
    (room / "link").symlink_to("target")
    ext = make_ext(tmp_path / "ext4", room)
    debugfs(ext, "rm a", "rm link", "rm d/x", "rmdir d", f"write {room / 'b'} another")
    found = compare_deleted(ext)
    assert len(found) == 4
    assert {name for name, *_ in found if name.endswith(REALLOC)}
    (room / "link").unlink()
    fat = make_fat(tmp_path / "fat", room, "-F12", "-s8")
    run_tool(["mdel", "-i", fat, "::/a"])
    run_tool(["mdeltree", "-i", fat, "::/d"])
    assert {name for name, *_ in compare_deleted(fat)} == {b"/p1/_ (deleted)", b"/p1/_/_ (deleted)"}


# -- what fls does not do right --------------------------------------------------------------------


def mactime(text: bytes, folder: Path) -> list[list[str]]:
    """The rows of ``mactime -d``: date, size, macb, mode, uid, gid, inode, name."""
    need_tool("mactime")
    (folder / "body").write_bytes(text)
    said = run_tool(["mactime", "-b", folder / "body", "-d", "-y", "-z", "UTC"]).stdout
    return list(csv.reader(io.StringIO(said.decode("utf-8", "surrogateescape"))))[1:]


def test_names_that_break_lines_survive_mactime(tmp_path: Path) -> None:
    """fls writes such names as they are: mactime then drops the line, or shows another name."""
    names = [b"pipe|0|0|0", b"50%25", b"100%", b"a,b\"c'", b"\xe4", b"two\nlines\r"]
    made = [file(b"/" + name, mtime_ns=10**18 + at) for at, name in enumerate(names)]
    rows = mactime(b"".join(body(Line(entry), b"/p1") for entry in made), tmp_path)
    said = {row[7].encode("utf-8", "surrogateescape") for row in rows}
    assert {b"/p1/pipe|0|0|0", b"/p1/50%25", b"/p1/100%", b"/p1/\xe4", b"/p1/two^lines^"} <= said


def test_csv_says_what_mactime_says(ext4: Path, ntfs: Path, tmp_path: Path) -> None:
    """Second by second and letter by letter; the CSV tells fractions of seconds apart, and times before 1970."""
    for path in (ext4, ntfs):
        fs = open_filesystem(FileReader(path))
        found = list(lines(fs, fs.root(), onerror=pytest.fail))
        rows = mactime(b"".join(body(line, b"/p1") for line in found), tmp_path)
        said = {(row[0][:19], letter, row[6], row[7]) for row in rows for letter in row[2].replace(".", "")}
        told = Timeline()
        for line in found:
            told.add(line, b"/p1")
        ours = list(csv.reader(io.StringIO(b"".join(told.rows()).decode("utf-8", "surrogateescape"))))
        assert [row[0] for row in ours] == sorted(row[0] for row in ours)
        flat = {(row[0][:19], letter, row[6], row[7]) for row in ours for letter in row[2].replace(".", "")}
        assert {each for each in flat if each[0] >= "1970-01-01T00:00:01"} == {
            each for each in said if not each[0].startswith("1970-01-01T00:00:00")
        }
        fs.close()


def test_any_time_is_told(tmp_path: Path) -> None:
    stamps = [0, -1, 10**9 - 1, 253_402_300_799 * 10**9, 253_402_300_800 * 10**9, 2**64 * 100, -(2**64) * 100]
    told = Timeline()
    for at, stamp in enumerate(stamps):
        told.add(Line(file(b"/%d" % at, mtime_ns=stamp, crtime_ns=stamp, atime_ns=5)), b"")
    told.add(Line(file(b"/none")), b"")
    times = [row.split(b",")[0].decode() for row in told.rows()]
    assert times[0] == f"@{-(2**64) * 100 // 10**9}"
    assert times[1:3] == ["1969-12-31T23:59:59.999999999Z", "1970-01-01T00:00:00.000000000Z"]
    assert times[-3:] == ["9999-12-31T23:59:59.000000000Z", "@253402300800", f"@{2**64 * 100 // 10**9}"]
    assert times.count("1970-01-01T00:00:00.000000005Z") == len(stamps)
    together = [row for row in told.rows() if row.endswith(b"/1\n")]
    assert [row.split(b",")[2] for row in together] == [b"m..b", b".a.."]


# -- names of NTFS ---------------------------------------------------------------------------------


def test_records_and_tsk_tell_the_same_names(ntfs: Path) -> None:
    fs = open_tsk(FileReader(ntfs))
    table = fs._facts.mft
    assert table is not None
    count = 0
    for number in range(table._count):
        found = table.names(number)
        with fs._handle.hold("it") as info:
            try:
                expected = tskentry.name_times(info.open_meta(inode=number))
            except OSError:
                continue
        if found is not None:
            assert found == expected, number
            count += bool(found)
    assert count > 15


def test_names_are_those_of_the_path(ntfs: Path) -> None:
    fs = open_tsk(FileReader(ntfs))
    entry = fs.lookup(b"/a.txt")
    (name,) = fs.name_times(entry)
    assert (name.name, name.inode.split("-")[:2], name.size) == (
        b"a.txt",
        [entry.inode.split("-")[0], "48"],
        76,
    )
    assert name.mtime_ns is not None


def name_content(name: str, namespace: int) -> bytes:
    text = name.encode("utf-16-le")
    return struct.pack("<9Q", 5, 1, 2, 3, 4, 0, 0, 0, len(name) | namespace << 8)[:66] + text


def test_names_of_dos_have_no_times_of_their_own_and_a_list_is_for_tsk(ntfs: Path, tmp_path: Path) -> None:
    assert mft.decode_name(2, name_content("LONGNA~1", 2)) is None
    found = mft.decode_name(2, name_content("Long name ä", 1))
    assert found == mft.FileName(2, 88, "Long name ä".encode(), (1, 2, 3, 4))
    path = shutil.copy(ntfs, tmp_path / "ntfs")
    number = int(open_tsk(FileReader(path)).lookup(b"/a.txt").inode.split("-")[0])
    _, record = mft_record(path, number)
    at = struct.unpack_from("<H", record, 20)[0]
    assert [name.name for name in mft.decode_names(torn(record)) or ()] == [b"a.txt"]
    where = record.index("a.txt".encode("utf-16-le")) - 66 - 24
    longer = record[: where + 16] + struct.pack("<I", 500) + record[where + 20 :]
    assert mft.decode_names(torn(longer)) == []
    listed = record[:at] + struct.pack("<I", 32) + record[at + 4 :]
    assert mft.decode_names(torn(listed)) is None


def torn(record: bytes) -> bytes:
    """A record as it lies on the disk, out of one whose sectors are put together."""
    raw, array = bytearray(record), struct.unpack_from("<H", record, 4)[0]
    for sector in (1, 2):
        end = sector * 512
        raw[array + 2 * sector : array + 2 * sector + 2] = raw[end - 2 : end]
        raw[end - 2 : end] = raw[array : array + 2]
    return bytes(raw)


@given(st.binary(max_size=1100))
def test_any_record_is_survived(data: bytes) -> None:
    mft.decode_names(data)
    head = b"FILE" + b"\x30\0\x03\0" + bytes(8) + b"\1\0\1\0\x38\0\1\0" + b"\0\4\0\0\0\4\0\0" + bytes(24)
    mft.decode_names((head + data).ljust(1024, b"\0")[:1024])


class Named(ForensicFs):
    """A FakeFs with hard links: two names of one record, and a deleted file whose record has another's."""

    def name_times(self, entry: Entry, /) -> list[NameTimes]:
        return [NameTimes(name, f"9-48-{at}", 70, at, at, at, at) for at, name in enumerate([b"a.txt", b"b"])]


def test_of_hard_links_each_has_the_times_of_its_name_and_deleted_ones_no_others() -> None:
    fs = Named({b"/": [file(b"/a.txt"), file(b"/c")]}, gone=[file(b"/old", deleted=True)])
    found = list(lines(fs, fs.root(), onerror=pytest.fail))
    assert [(line.entry.path, line.source, line.entry.inode) for line in found] == [
        (b"/a.txt", "", "9"),
        (b"/a.txt", timeline.FILE_NAME, "9-48-0"),
        (b"/c", "", "9"),
        (b"/c", timeline.FILE_NAME, "9-48-1"),
        (b"/old", "", "9"),
    ]
    assert body(found[1], b"/p2") == b"0|/p2/a.txt ($FILE_NAME)|9-48-0|r/rrw-r--r--|0|0|70|0|0|0|0\n"


def test_deleted_files_and_streams_have_lines() -> None:
    fs = ForensicFs(
        {b"/": [folder(b"/d", "3"), file(b"/bad")]},
        named={b"/d": {b"s": b"12345"}},
        gone=[file(b"/d/gone", inode="7", deleted=True, mtime_ns=3 * 10**9)],
    )
    errors: list[ImagefsError] = []
    text = [body(line, b"/p2") for line in lines(fs, fs.root(), onerror=errors.append)]
    assert text == [
        b"0|/p2/d|3|d/drwxr-xr-x|0|0|0|0|0|0|0\n",
        b"0|/p2/d:s|3|r/rrwxr-xr-x|0|0|5|0|0|0|0\n",
        b"0|/p2/bad|9|r/rrw-r--r--|0|0|4|0|0|0|0\n",
        b"0|/p2/d/gone (deleted)|7|r/rrw-r--r--|0|0|7|0|3|0|0\n",
    ]
    assert [error.message for error in errors] == ["its streams cannot be listed"]


def test_damage_is_told_and_passed(tmp_path: Path) -> None:
    fs = FakeFs({b"/": [folder(b"/bad", "3"), file(b"/after")]}, damaged={b"/bad"})
    errors: list[ImagefsError] = []
    found = [line.entry.path for line in lines(fs, fs.root(), onerror=errors.append)]
    assert found == [b"/bad", b"/after"]
    assert [type(error) for error in errors] == [BrowseError]


def test_a_socket_and_what_it_is_called(tmp_path: Path) -> None:
    import socket

    room = tmp_path / "stage"
    room.mkdir()
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(str(room / "s"))
        make_ext(tmp_path / "ext4", room)
    assert compare(tmp_path / "ext4") == 2
