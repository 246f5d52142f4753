"""ext2/3/4 through TSK, held against the folder it was made from, fls, icat and debugfs."""

from __future__ import annotations

import calendar
import os
import stat
from pathlib import Path

import pytest

from imagefs.browse.opening import open_filesystem
from imagefs.browse.tsk import open_tsk
from imagefs.browse.walk import walk
from imagefs.errors import BrowseError, PathNotFound
from imagefs.interfaces import Entry, EntryType, FileSystem, State
from tests.browse.disks import (
    MIB,
    STAMP_NS,
    FileReader,
    debugfs,
    fls,
    icat,
    make_ext,
    pattern,
    sparse_file,
)
from tests.support.oracles import need_tool, run_tool
from tests.support.reader_contract import check_reader


@pytest.fixture(params=["ext4", "ext2"])
def volume(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(request.param)
    return path


@pytest.fixture
def fs(volume: Path) -> FileSystem:
    return open_filesystem(FileReader(volume))


def everything(fs: FileSystem) -> dict[bytes, Entry]:
    def fail(error: Exception) -> None:
        raise error

    return {entry.path: entry for entry in walk(fs, fs.root(), onerror=fail)}


def test_facts(fs: FileSystem, volume: Path) -> None:
    assert fs.kind == volume.name
    assert fs.label == "extlabel"
    assert not fs.case_insensitive
    assert fs.used_bytes is not None
    assert 300_000 < fs.used_bytes < 16 * MIB


def test_used_bytes_are_those_of_debugfs(fs: FileSystem, volume: Path) -> None:
    lines = debugfs(volume, "stats -h").splitlines()
    facts = dict(line.split(":", 1) for line in lines if ":" in line)
    assert fs.used_bytes == (int(facts["Block count"]) - int(facts["Free blocks"])) * 1024


def test_the_listing_is_that_of_fls(fs: FileSystem, volume: Path) -> None:
    # fls writes control characters as ^
    ours = {path.replace(b"\n", b"^"): entry.inode for path, entry in everything(fs).items()}
    theirs = {path.replace(b"\n", b"^"): inode for path, inode in fls(volume).items()}
    assert ours == theirs


def test_entries_are_those_of_the_folder(fs: FileSystem, staged: Path) -> None:
    found = everything(fs)
    kinds = {
        stat.S_IFREG: EntryType.FILE,
        stat.S_IFDIR: EntryType.DIRECTORY,
        stat.S_IFLNK: EntryType.SYMLINK,
        stat.S_IFIFO: EntryType.FIFO,
    }
    count = 0
    for folder, folders, files in os.walk(os.fsencode(staged)):
        for name in folders + files:
            path = os.path.join(folder, name)
            info, entry = os.lstat(path), found[path[len(os.fsencode(staged)) :]]
            assert entry.type is kinds[stat.S_IFMT(info.st_mode)]
            assert (entry.mode, entry.uid, entry.gid) == (info.st_mode & 0o7777, info.st_uid, info.st_gid)
            if entry.type is EntryType.FILE:
                assert (entry.size, entry.nlink) == (info.st_size, info.st_nlink)
            count += 1
    assert count > 310


def test_content_is_that_of_the_folder_and_of_icat(fs: FileSystem, volume: Path, staged: Path) -> None:
    for name in ("rnd", "sparse", "empty", "a.txt", "d/e/deep", "new\nline"):
        entry = fs.lookup(b"/" + name.encode())
        expected = (staged / name).read_bytes()
        assert fs.open(entry).read_at(0, entry.size + 1) == expected
        assert icat(volume, entry.inode) == expected


def test_a_file_keeps_the_reader_contract(fs: FileSystem, staged: Path) -> None:
    for name in (b"/rnd", b"/sparse"):
        check_reader(fs.open(fs.lookup(name)), Path(os.fsdecode(os.fsencode(staged) + name)).read_bytes())


def test_holes_are_known(fs: FileSystem) -> None:
    reader = fs.open(fs.lookup(b"/sparse"))
    stored = [e for e in reader.extents(0, reader.size) if e.state is State.STORED]  # type: ignore[attr-defined]
    assert stored, "the middle of the file is data"
    assert stored[0].offset >= 2 * MIB - 65536
    assert sum(extent.length for extent in stored) < 200_000


def test_symlinks(fs: FileSystem) -> None:
    assert fs.readlink(fs.lookup(b"/d/link")) == b"../a.txt"
    assert fs.readlink(fs.lookup(b"/longlink")) == b"x" * 200
    assert fs.readlink(fs.lookup(b"/oddlink")) == b"odd\ntarget^", "TSK would clean this"
    with pytest.raises(BrowseError, match="not a symbolic link"):
        fs.readlink(fs.lookup(b"/rnd"))


def test_inodes_without_room_for_it_have_no_nanoseconds(ext2: Path, ext4: Path) -> None:
    for path in (ext2, ext4):
        entry = open_filesystem(FileReader(path)).lookup(b"/a.txt")
        assert entry.mtime_ns is not None
        assert entry.mtime_ns // 10**9 == STAMP_NS // 10**9
    old = open_filesystem(FileReader(ext2)).lookup(b"/rnd")
    assert old.mtime_ns is not None
    assert old.mtime_ns % 10**9 == 0
    assert old.crtime_ns is None


def test_times_past_2038_and_before_1970(ext4: Path) -> None:
    fs = open_filesystem(FileReader(ext4))
    late, early = fs.lookup(b"/rnd"), fs.lookup(b"/empty")
    seconds = calendar.timegm((2040, 1, 2, 3, 4, 5))
    assert late.mtime_ns == seconds * 10**9 + (0x1DCD6501 >> 2)
    assert early.mtime_ns == -86_400 * 10**9


def test_devices_have_their_numbers(ext4: Path) -> None:
    fs = open_filesystem(FileReader(ext4))
    block, char = fs.lookup(b"/block"), fs.lookup(b"/char")
    assert (block.type, block.rdev, block.flags) == (EntryType.DEVICE, (8, 17), ("block",))
    assert (char.type, char.rdev, char.flags, char.mode) == (EntryType.DEVICE, (5, 1), ("char",), 0o620)
    with pytest.raises(BrowseError, match="not a file but a device"):
        fs.open(block)


def test_paths_that_are_not_there(fs: FileSystem) -> None:
    for path in (b"/nope", b"/A.TXT", b"/d/nope/x", b"/a.txt/x", b"/d/..", b"/$OrphanFiles"):
        with pytest.raises(PathNotFound):
            fs.lookup(path)
    assert fs.lookup(b"//d/./e/").path == b"/d/e"
    assert fs.lookup(b"/").path == b"/"


def test_a_path_through_a_symlink_says_where_it_leads(fs: FileSystem) -> None:
    with pytest.raises(PathNotFound, match=r"symbolic link to \.\./a\.txt"):
        fs.lookup(b"/d/link/x")


def test_a_backslash_gets_a_hint(fs: FileSystem) -> None:
    with pytest.raises(PathNotFound) as caught:
        fs.lookup(b"/d\\e")
    assert "/" in caught.value.hint


def test_only_directories_have_children(fs: FileSystem) -> None:
    with pytest.raises(BrowseError, match="not a directory"):
        fs.children(fs.lookup(b"/a.txt"))
    with pytest.raises(BrowseError, match="not a file"):
        fs.open(fs.lookup(b"/d"))


def test_a_closed_file_system_says_so(volume: Path) -> None:
    fs = open_filesystem(FileReader(volume))
    root = fs.root()
    reader = fs.open(fs.lookup(b"/rnd"))
    children = fs.children(fs.lookup(b"/many"))
    fs.close()
    fs.close()
    for call in (fs.root, lambda: next(fs.children(root)), lambda: fs.lookup(b"/"), lambda: next(children)):
        with pytest.raises(BrowseError, match="closed"):
            call()
    assert len(reader.read_at(0, 10)) == 10, "an open file lives as long as the volume's reader"
    reader.close()


def test_fragmented_and_preallocated_files(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "f").write_bytes(pattern(50_000))
    (root / "pre").write_bytes(b"start")
    path = make_ext(tmp_path / "ext4", root)
    debugfs(path, "punch f 10 12", "fallocate pre 1 99", "set_inode_field pre size 102400")
    fs = open_filesystem(FileReader(path))
    data = bytearray(pattern(50_000))
    data[10 * 1024 : 13 * 1024] = bytes(3 * 1024)
    assert fs.open(fs.lookup(b"/f")).read_at(0, 60_000) == bytes(data)
    assert fs.open(fs.lookup(b"/pre")).read_at(0, 200_000) == b"start" + bytes(102_395)


def test_inline_data(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "dir").mkdir(parents=True)
    (root / "small").write_bytes(b"in the inode")
    (root / "medium").write_bytes(b"m" * 120)
    (root / "dir" / "x").write_bytes(b"y")
    os.symlink("t" * 100, root / "link")
    path = make_ext(tmp_path / "ext4", root, "-O", "inline_data", "-I", "256")
    fs = open_filesystem(FileReader(path))
    assert fs.open(fs.lookup(b"/small")).read_at(0, 99) == b"in the inode"
    assert fs.open(fs.lookup(b"/dir/x")).read_at(0, 99) == b"y"
    medium = fs.open(fs.lookup(b"/medium"))
    assert medium.read_at(0, 999) == b"m" * 120
    assert fs.readlink(fs.lookup(b"/link")) == b"t" * 100


def test_encrypted_files_are_refused_the_others_read(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "secret").write_bytes(b"ciphertext")
    (root / "open").write_bytes(b"plain")
    path = make_ext(tmp_path / "ext4", root, "-O", "encrypt")
    debugfs(path, "set_inode_field secret flags 0x80800")
    fs = open_filesystem(FileReader(path))
    assert fs.lookup(b"/secret").flags == ("encrypted",)
    with pytest.raises(BrowseError, match="encrypted"):
        fs.open(fs.lookup(b"/secret"))
    assert fs.open(fs.lookup(b"/open")).read_at(0, 9) == b"plain"


def test_names_that_would_escape_and_names_that_are_equal(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    for name in ("equal1", "equal2", "etcXpasswd", "YY"):
        (root / name).write_text(name)
    path = make_ext(tmp_path / "ext4", root, "-O", "^metadata_csum,^dir_index")
    raw = path.read_bytes()
    for old, new in ((b"equal2", b"equal1"), (b"etcXpasswd", b"etc/passwd"), (b"\x02\x01YY", b"\x02\x01..")):
        assert raw.count(old) >= 1
        raw = raw.replace(old, new)
    path.write_bytes(raw)
    fs = open_filesystem(FileReader(path))
    entries = {entry.name: entry for entry in fs.children(fs.root())}
    equal = sorted(name for name in entries if name.startswith(b"equal1"))
    assert [name.split(b"~")[0] for name in equal] == [b"equal1", b"equal1"]
    assert {name.split(b"~")[1].decode() for name in equal} == {entries[name].inode for name in equal}
    assert len({entries[name].inode for name in equal}) == 2
    assert b"etc%2Fpasswd" in entries
    assert b"%2E%2E" in entries
    assert fs.open(fs.lookup(b"/%2E%2E")).read_at(0, 9) == b"YY"
    with pytest.raises(PathNotFound):
        fs.lookup(b"/..")


def test_a_hostile_size_allocates_nothing(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "huge").write_bytes(b"small")
    (root / "link").symlink_to("y" * 100)
    path = make_ext(tmp_path / "ext4", root)
    debugfs(path, "set_inode_field huge size 0x3fffffffffff", "set_inode_field link size 0x7fffffff")
    fs = open_filesystem(FileReader(path))
    reader = fs.open(fs.lookup(b"/huge"))
    assert reader.size == 0x3FFFFFFFFFFF
    assert reader.read_at(0, 5) == b"small"
    assert reader.read_at(1 << 40, 10) == bytes(10)
    with pytest.raises(BrowseError, match="cannot be decoded"):
        fs.readlink(fs.lookup(b"/link"))


def test_a_file_system_larger_than_its_volume(ext4: Path) -> None:
    """Cut off, as in a partition that is too small: what lies past the end is an error."""
    first = int(debugfs(ext4, "blocks rnd").split("blocks rnd")[1].split()[0])
    fs = open_tsk(FileReader(ext4, 0, (first + 100) * 1024))
    names = {entry.name for entry in fs.children(fs.root())}
    assert b"rnd" in names
    reader = fs.open(fs.lookup(b"/rnd"))
    assert reader.read_at(0, 100 * 1024) == pattern(300_000)[: 100 * 1024]
    with pytest.raises(BrowseError, match="past the end"):
        reader.read_at(0, 300_000)


def test_a_second_file_system_in_the_same_place_does_not_hide_the_newer(tmp_path: Path, staged: Path) -> None:
    """mke2fs leaves the first KiB alone, so the FAT that was there before still seems to be there."""
    need_tool("mkfs.fat")
    path = sparse_file(tmp_path / "both", 16 * MIB)
    run_tool(["mkfs.fat", "-F16", path])
    boot = path.read_bytes()[:512]
    make_ext(path, staged)
    with path.open("r+b") as stream:
        stream.write(boot)
    assert open_filesystem(FileReader(path)).kind == "ext4"


def test_a_full_directory_is_listed_and_searched(tmp_path: Path) -> None:
    """Above 256 KiB the names are read without TSK: they must be the same."""
    root = tmp_path / "root"
    (root / "d").mkdir(parents=True)
    for number in range(1_300):
        (root / "d" / f"{number:06d} {'long ' * 40}").touch()
    path = make_ext(tmp_path / "ext4", root, "-N", "2000", size=8 * MIB)
    run_tool(["e2fsck", "-fyD", path], ok=(0, 1))  # as a hash tree
    fs = open_filesystem(FileReader(path))
    entry = fs.lookup(b"/d")
    assert entry.size > 256 * 1024
    ours = {each.path: each.inode for each in fs.children(entry)}
    assert ours.keys() == {b"/d/" + name for name in os.listdir(os.fsencode(root / "d"))}
    assert ours.items() <= fls(path).items(), "fls takes the hash tree for a name or two more"
    assert fs.lookup(b"/d/001299 " + b"long " * 40).type is EntryType.FILE


def test_a_sparse_file_behind_a_triple_indirect_block(tmp_path: Path) -> None:
    """TSK walks every block there could be between two that are: minutes for a gigabyte."""
    root = tmp_path / "root"
    root.mkdir()
    parts = {0: b"start", 3 << 30: pattern(40_000), (5 << 30) - 7: b"the end"}
    with (root / "sparse").open("wb") as file:
        for at, data in parts.items():
            file.seek(at)
            file.write(data)
    volume = make_ext(tmp_path / "ext2", root, kind="ext2")
    fs = open_filesystem(FileReader(volume))
    reader = fs.open(fs.lookup(b"/sparse"))
    assert reader.size == 5 << 30
    for at, data in parts.items():
        assert reader.read_at(at, len(data)) == data
        assert reader.read_at(at + len(data), 100) == bytes(min(100, reader.size - at - len(data)))
