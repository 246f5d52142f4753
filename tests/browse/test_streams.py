"""Named streams of NTFS and compressed ones, held against ntfs-3g; the resource forks of HFS+."""

from __future__ import annotations

import os
import struct
from collections import Counter
from pathlib import Path

import pytest

from imagefs.block.views import BytesReader, MarkedReader
from imagefs.browse.content import Piece
from imagefs.browse.examine import Content
from imagefs.browse.find import find
from imagefs.browse.lznt1 import CompressedReader, blocks
from imagefs.browse.opening import open_filesystem
from imagefs.errors import BrowseError, ImagefsError, PathNotFound
from imagefs.interfaces import EntryType, Extent, FileSystem, HasStreams, HasXattrs, Place, Reader, State
from tests.browse.disks import (
    FileReader,
    add_attribute,
    icat,
    make_ntfs,
    mft_record,
    pattern,
    write_record,
)
from tests.browse.test_tsk_ntfs import UTILITY_STREAM, compress, number_of
from tests.browse.windows import ntfs3g
from tests.support.oracles import corpus_file, root_only, tool_text
from tests.support.reader_contract import check_reader

PROGRAM = Path(os.path.realpath("/bin/bash")).read_bytes()[:700_000]


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """What only a driver makes, and what ntfs-3g reads of it."""
    room = tmp_path_factory.mktemp("streams")
    path = make_ntfs(room / "ntfs", {}, room, size=24 << 20)
    with ntfs3g(path, room / "mnt", "compression") as mounted:
        packed = mounted / "packed"
        packed.mkdir()
        compress(packed)
        (packed / "program").write_bytes(PROGRAM)
        Path(f"{packed}/program:copy").write_bytes(PROGRAM[:300_000])
        (packed / "zeros").write_bytes(bytes(500_000) + b"x")
        for place in (packed / "holes", mounted / "sparse"):
            with place.open("wb") as stream:
                stream.write(b"start" * 1_000)
                stream.seek(1 << 20)
                stream.write(PROGRAM[:100_000])
                stream.truncate(3 << 20)
        (mounted / "file").write_bytes(b"content")
        Path(f"{mounted}/file:small").write_bytes(b"resident")
        Path(f"{mounted}/file:Large Ω").write_bytes(pattern(200_000))
        Path(f"{mounted}/packed:of a folder").write_bytes(b"folders have some too")
        names = ["packed/program", "packed/program:copy", "packed/zeros", "packed/holes", "sparse"]
        names += ["file:small", "file:Large Ω", "packed:of a folder"]
        found = {name: Path(f"{mounted}/{name}").read_bytes() for name in names}
    return path, found


@pytest.fixture
def fs(volume: tuple[Path, dict[str, bytes]]) -> FileSystem:
    return open_filesystem(FileReader(volume[0]))


@root_only
def test_all_content_is_that_of_ntfs_3g(fs: FileSystem, volume: tuple[Path, dict[str, bytes]]) -> None:
    for name, data in volume[1].items():
        entry = fs.lookup(b"/" + name.encode())
        assert (entry.type, entry.size) == (EntryType.FILE, len(data))
        check_reader(fs.open(entry), data, rounds=40)


@root_only
def test_streams_are_told_and_opened_by_name_without_case(fs: FileSystem) -> None:
    assert isinstance(fs, HasStreams)
    entry = fs.lookup(b"/file")
    assert {each[:2] for each in fs.streams(entry)} == {(b"small", 8), ("Large Ω".encode(), 200_000)}
    assert {each.inode for each in fs.streams(entry)} == {
        fs.lookup(name).inode for name in (b"/file:small", "/file:Large Ω".encode())
    }
    assert fs.open_stream(entry, b"SMALL").read_at(0, 99) == b"resident"
    assert fs.lookup(b"/FILE:Small:$data").path == b"/file:small"
    assert fs.lookup(b"/file::$DATA").path == b"/file"
    assert fs.streams(fs.lookup(b"/sparse")) == []
    for missing in (b"/file:none", b"/none:small", b"/file:small/x", b"/:", b"/file:a:b"):
        with pytest.raises(PathNotFound):
            fs.lookup(missing)
    with pytest.raises(PathNotFound, match="'/file:none'"):
        fs.open_stream(entry, b"none")


@root_only
def test_the_address_of_a_stream_is_that_of_the_sleuth_kit(
    fs: FileSystem, volume: tuple[Path, dict[str, bytes]]
) -> None:
    for name, data in volume[1].items():
        assert icat(volume[0], fs.lookup(b"/" + name.encode()).inode) == data


@root_only
def test_holes_of_compressed_files_are_told(fs: FileSystem) -> None:
    content = fs.open(fs.lookup(b"/packed/holes"))
    states = [(each.state, each.offset) for each in content.extents(0, content.size)]  # type: ignore[attr-defined]
    assert states == [
        (State.STORED, 0),
        (State.ZERO, 1 << 16),
        (State.STORED, 1 << 20),
        (State.ZERO, (1 << 20) + (2 << 16)),
    ]


@root_only
@pytest.mark.parametrize("state", [State.SKIPPED, State.UNREADABLE])
def test_what_a_compressed_file_lacks_in_the_image_is_no_data(
    fs: FileSystem, volume: tuple[Path, dict[str, bytes]], state: State
) -> None:
    """A sector late in a unit, where zeros decode to zeros."""
    place = [each for each in fs.places(fs.lookup(b"/packed/program")) if not each.stream][1]
    lacking = MarkedReader(FileReader(volume[0]), [place.end - 1024], [place.end - 512], state)
    part = open_filesystem(lacking)
    content, told = part.open(part.lookup(b"/packed/program")), list[str]()
    for offset in range(0, content.size, 1 << 16):
        try:
            assert content.read_at(offset, 1 << 16) == PROGRAM[offset : offset + (1 << 16)]
        except BrowseError as error:
            told.append(error.message)
    assert ["not in this image" in each for each in told] == [True]


@root_only
def test_damage_to_compressed_data_is_never_answered_with_zeros(
    fs: FileSystem, volume: tuple[Path, dict[str, bytes]]
) -> None:
    """A block header of zeros ends a unit: The Sleuth Kit then makes the rest of it up."""
    places = [place for place in fs.places(fs.lookup(b"/packed/program")) if not place.stream]
    raw, outcomes = volume[0].read_bytes(), Counter[str]()
    for place in places:
        damaged = raw[: place.first] + bytes(64) + raw[place.first + 64 :]
        fresh = open_filesystem(BytesReader(damaged))
        content = fresh.open(fresh.lookup(b"/packed/program"))
        for offset in range(0, content.size, 1 << 16):
            try:
                same = content.read_at(offset, 1 << 16) == PROGRAM[offset : offset + (1 << 16)]
                outcomes["same" if same else "wrong"] += 1
            except BrowseError:
                outcomes["refused"] += 1
    assert outcomes["refused"] == len(places)
    assert not outcomes["wrong"]


@pytest.mark.parametrize(
    "pieces",
    [
        [],
        [(0, 65_536, None), (65_536, 4_096, 0)],  # a unit that is cut off
        [(0, 65_536, None), (65_536, 4_096, None), (69_632, 61_440, 0)],  # a hole before data
        [(0, 65_536, None), (65_536, 4_096, 0), (69_632, 61_440, None)],  # too few blocks
    ],
)
def test_a_unit_that_makes_no_sense_is_refused(pieces: list[tuple[int, int, int | None]]) -> None:
    reader = CompressedReader(
        BytesReader(b"\x03\xb0" + bytes(70_000)),
        131_072,
        [Piece(*piece) for piece in pieces],
        unit=65_536,
        fetch=lambda offset, length: bytes(length),
        label="/f",
    )
    with pytest.raises(BrowseError, match="/f"):
        reader.read_at(65_536, 10)


def test_blocks_of_a_unit_are_counted() -> None:
    stored, packed = b"\xff\x3f" + bytes(4096), b"\x02\xb0abc"
    assert blocks(stored + packed + b"\0\0" + stored) == 2
    assert blocks(stored + b"\xff\x3f" + bytes(4095)) == 1
    assert blocks(b"\xff\x0f" + bytes(4096)) == 0


def test_the_resource_fork_of_a_mac_is_a_stream() -> None:
    path = corpus_file("dfvfs/test_data/hfsplus.raw")
    fs = open_filesystem(FileReader(path))
    entry = fs.lookup(b"/a_directory/a_resourcefork")
    (found,) = fs.streams(entry)  # type: ignore[attr-defined]
    assert (found.name, entry.size) == (b"rsrc", 0)
    content = fs.open(fs.lookup(b"/a_directory/a_resourcefork:rsrc"))
    assert content.size == found.size > 0
    theirs = icat(path, f"{entry.inode}-4353-1")
    check_reader(content, theirs, rounds=20)
    assert fs.streams(fs.lookup(b"/a_directory/a_file")) == []  # type: ignore[attr-defined]


def test_extended_attributes_of_a_mac_are_named_as_linux_does() -> None:
    path = corpus_file("dfvfs/test_data/hfsplus.raw")
    fs = open_filesystem(FileReader(path))
    assert isinstance(fs, HasXattrs)
    found = fs.xattrs(fs.lookup(b"/a_directory/a_file"))
    assert found == {b"osx.myxattr": icat(path, "19-4354-2")}
    assert len(found[b"osx.myxattr"]) == 21
    assert fs.xattrs(fs.lookup(b"/a_directory/another_file")) == {}


def test_names_on_a_mac_are_found_without_case() -> None:
    fs = open_filesystem(FileReader(corpus_file("dfvfs/test_data/hfsplus.raw")))
    assert fs.lookup(b"/PASSWORDS.TXT").path == b"/passwords.txt"
    assert fs.lookup(b"/A_Directory/A_FILE").path == b"/a_directory/a_file"
    with pytest.raises(PathNotFound):
        fs.lookup(b"/passwords.tx")


@root_only
def test_a_file_encrypted_by_windows_is_refused(tmp_path: Path) -> None:
    """ntfs-3g writes such files raw, as a backup program would: keys and ciphertext are of no matter here."""
    path = make_ntfs(tmp_path / "ntfs", {}, tmp_path, size=24 << 20)
    with ntfs3g(path, tmp_path / "mnt", "efs_raw") as mounted:
        for name, size in (("small", 300), ("large", 100_000)):
            padding = -size % 512
            (mounted / name).write_bytes(bytes(size + padding) + padding.to_bytes(2, "little"))
            keys = (600).to_bytes(4, "little") + bytes(596)
            os.setxattr(mounted / name, "system.ntfs_efsinfo", keys)
    fs = open_filesystem(FileReader(path))
    for name in (b"/small", b"/large"):
        assert "encrypted" in fs.lookup(name).flags
        with pytest.raises(BrowseError, match="EFS"):
            fs.open(fs.lookup(name))


def test_an_encrypted_file_keeps_its_streams_to_itself(tmp_path: Path) -> None:
    path = make_ntfs(tmp_path / "ntfs", {"f": b"content", "f:s": b"stream"}, tmp_path)
    add_attribute(path, number_of(path, b"/f"), UTILITY_STREAM, bytes(32), name="$EFS")
    fs = open_filesystem(FileReader(path))
    assert [each.name for each in fs.streams(fs.lookup(b"/f"))] == [b"s"]  # type: ignore[attr-defined]
    with pytest.raises(BrowseError, match="EFS"):
        fs.open(fs.lookup(b"/f:s"))


# -- the list of bad clusters ----------------------------------------------------------------------

CLUSTER, BAD = 4096, ((2800, 2), (2950, 1))


def list_bad_clusters(path: Path) -> None:
    """Enter BAD into ``$BadClus:$Bad``, as chkdsk does, with something in each."""
    offset, record = mft_record(path, 8)
    at = struct.unpack_from("<H", record, 20)[0]
    while record[at : at + 4] != b"\x80\0\0\0" or not record[at + 8]:
        at += struct.unpack_from("<I", record, at + 4)[0]
    length, runs = struct.unpack_from("<I", record, at + 4)[0], struct.unpack_from("<H", record, at + 32)[0]
    new, after, place = b"", 0, 0
    for first, count in BAD:
        hole = struct.pack("<BH", 2, first - after)
        new += hole + struct.pack("<BHh", 0x22, count, first - place)
        after, place = first + count, first
    clusters = struct.unpack_from("<Q", record, at + 48)[0] // CLUSTER
    new += struct.pack("<BHB", 2, clusters - after, 0)
    body = record[at : at + runs] + new + bytes(-(runs + len(new)) % 8)
    body = body[:4] + struct.pack("<I", len(body)) + body[8:]
    used = struct.unpack_from("<I", record, 24)[0] + len(body) - length
    made = record[:at] + body + record[at + length :]
    write_record(path, offset, (made[:24] + struct.pack("<I", used) + made[28:])[:1024])
    with path.open("r+b") as disk:
        for first, count in BAD:
            disk.seek(first * CLUSTER)
            disk.write(b"hidden".ljust(count * CLUSTER, b"!"))


def found_in(reader: Reader, word: bytes) -> tuple[set[bytes], list[str]]:
    """Where ``word`` is, and what could not be told."""
    fs, errors = open_filesystem(reader), list[ImagefsError]()
    entries = find(fs, fs.root(), onerror=errors.append, content=Content(((word,),)))
    return {entry.path for entry in entries}, [error.message for error in errors]


def test_the_list_of_bad_clusters_is_a_hole(tmp_path: Path) -> None:
    path = make_ntfs(tmp_path / "ntfs", {}, tmp_path)
    content = open_filesystem(FileReader(path)).open_stream(  # type: ignore[attr-defined]
        open_filesystem(FileReader(path)).lookup(b"/$BadClus"), b"$Bad"
    )
    assert list(content.extents(0, content.size)) == [Extent(State.ZERO, 0, content.size)]
    assert content.size > 11 << 20
    assert content.read_at(content.size - 5000, 9999) == bytes(5000)
    assert found_in(FileReader(path), b"no such word") == (set(), [])


def test_bad_clusters_are_read_as_they_are_and_told_where_they_cannot(tmp_path: Path) -> None:
    path = make_ntfs(tmp_path / "ntfs", {}, tmp_path)
    list_bad_clusters(path)
    runs = tool_text("ntfsinfo", "-f", "-v", "-i", "8", path)
    assert all(f"0x{first:x}\t\t0x{first:x}\t\t0x{count:x}\n" in runs for first, count in BAD), runs
    fs = open_filesystem(FileReader(path))
    content = fs.open(fs.lookup(b"/$BadClus:$Bad"))
    ends = [(first * CLUSTER, (first + count) * CLUSTER) for first, count in BAD]
    stored = [each for each in content.extents(0, content.size) if each.state is State.STORED]  # type: ignore[attr-defined]
    assert [(each.offset, each.offset + each.length) for each in stored] == ends
    assert all(content.read_at(first, 6) == b"hidden" for first, _ in ends)
    assert fs.places(fs.lookup(b"/$BadClus")) == [Place(b"$Bad", first, end) for first, end in ends]
    assert found_in(FileReader(path), b"hidden!!") == ({b"/$BadClus:$Bad"}, [])
    lost = MarkedReader(FileReader(path), *zip(*ends, strict=True), State.UNREADABLE)
    paths, errors = found_in(lost, b"hidden!!")
    assert not paths
    assert errors == ["8192 bytes of '/$BadClus:$Bad' could not be read from the source"]
