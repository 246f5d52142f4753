"""Deleted files: found as ``fls -rd`` finds them, read as ``icat`` does, and the word on how whole each is."""

from __future__ import annotations

import contextlib
import hashlib
import random
import re
import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagefs.block.views import MarkedReader
from imagefs.browse import worker, workers
from imagefs.browse.apart import open_apart
from imagefs.browse.deletedtree import DeletedTree
from imagefs.browse.extdeleted import _block_names
from imagefs.browse.ntfsdeleted import _left_over, parse
from imagefs.browse.opening import open_filesystem
from imagefs.browse.remains import ORPHANS, REALLOCATED
from imagefs.browse.tsk import TskFileSystem, open_tsk
from imagefs.browse.walk import walk
from imagefs.errors import BrowseError, ImagefsError, PathNotFound
from imagefs.interfaces import Entry, EntryType, KeepsDeleted, Reader, State, Whole
from tests.browse.disks import (
    FakeFs,
    FileReader,
    debugfs,
    dirent,
    file,
    folder,
    icat,
    make_ext,
    make_fat,
    pattern,
    sparse_file,
)
from tests.support.oracles import corpus_file, need_tool, root_only, run_tool, unpacked_corpus_file

MIB = 1 << 20


def opened(path: Path) -> TskFileSystem:
    return open_tsk(FileReader(path))


def deleted(fs: KeepsDeleted) -> dict[bytes, Entry]:
    found = list(fs.deleted())
    assert all(entry.deleted for entry in found)
    return {entry.path: entry for entry in found}


def words(fs: KeepsDeleted) -> dict[bytes, str]:
    return {path: str(fs.wholeness(entry)) for path, entry in deleted(fs).items()}


def fls_deleted(path: Path) -> Counter[tuple[bytes, str]]:
    """(path, address) of what ``fls`` lists as deleted."""
    need_tool("fls")
    found: Counter[tuple[bytes, str]] = Counter()
    for line in run_tool(["fls", "-rd", "-p", path]).stdout.split(b"\n"):
        head, tab, name = line.partition(b":\t")
        if tab:
            found[b"/" + name, head.split(b"* ")[1].decode().removesuffix("(realloc)")] += 1
    return found


def content(fs: TskFileSystem, entry: Entry) -> bytes:
    return fs.open(entry).read_at(0, entry.size)


# -- disks that nobody here made ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def dftt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    room = tmp_path_factory.mktemp("dftt")
    return unpacked_corpus_file(
        "sleuthkit_test_data/from_brian/7-undel-ntfs.zip", room, member="7-ntfs-undel.dd"
    )


def published(disk: Path) -> list[tuple[str, str, int, str]]:
    """(address or number, path, size, MD5) of the table that came with the disk."""
    page = (disk.parent / "index.html").read_text("latin-1")
    rows = re.findall(r"<tr.*?</tr>", page, re.DOTALL | re.IGNORECASE)
    cells = [
        [re.sub(r"<[^>]+>|&nbsp;", "", c).strip() for c in re.split(r"<t[dh][^>]*>", r)[1:]] for r in rows
    ]
    return [(c[1], c[2].replace("\\", "/"), int(c[3]), c[4]) for c in cells if len(c) >= 5 and c[3].isdigit()]


def test_every_published_deleted_file_of_dftt_7_is_found_whole(dftt: Path) -> None:
    fs, expected = opened(dftt), published(dftt)
    assert len(expected) == 11
    found = deleted(fs)
    by_number = {entry.inode: entry for entry in found.values()}
    by_number |= {entry.inode.split("-")[0]: entry for entry in found.values() if b":" not in entry.path}
    for address, path, size, md5 in expected:
        entry = by_number[address]
        if md5 == "N/A":
            assert entry.type is EntryType.DIRECTORY
        else:
            assert entry.size == size
            assert hashlib.md5(content(fs, entry)).hexdigest() == md5
        assert fs.wholeness(entry) is Whole.INTACT
        shown = entry.path.decode()
        assert shown == path.rstrip("/") or (shown, path) == ("/$OrphanFiles/sing2.dat", "/dir3/sing2.dat")
    assert len(found) == len(expected), "and nothing more"


def test_addresses_of_dftt_7(dftt: Path) -> None:
    fs = opened(dftt)
    assert fs.at("37-128-1").path == b"/res1.dat"
    assert fs.at("31").inode == "31-128-3"
    stream = fs.at("32-128-6")
    assert (stream.path, stream.size, stream.deleted) == (b"/mult1.dat:ADS", 1234, True)
    live = fs.at("28-128-4")
    assert (live.path, live.deleted) == (b"/System Volume Information/tracking.log", False)
    assert fs.open(live).read_at(0, 1 << 20) == icat(dftt, "28-128-4")
    for wrong in ("9999", "31-128-77", "x", "", "-1", "31-", "99999999999999999999"):
        with pytest.raises(PathNotFound):
            fs.at(wrong)


CORPUS = [
    "dfir_ntfs/test_data/fat_deleted_dir.raw.gz",
    "dfir_ntfs/test_data/fat16_moved.raw.gz",
    "dfir_ntfs/test_data/fat32_loop.raw.gz",
    "dfir_ntfs/test_data/fat_dir.raw.gz",
    "go-exfat/test/assets/test.exfat",
    "go-ext4/assets/hierarchy_64.ext4",
    "dfvfs/test_data/hfsplus.raw",
    "dfvfs/test_data/iso9660.raw",
    "e2fsprogs/tests/f_badorphan/image.gz",
    "e2fsprogs/tests/f_dup_de/image.gz",
    "e2fsprogs/tests/f_journal/image.gz",
    "e2fsprogs/tests/f_verity/image.gz",
]


@pytest.mark.parametrize("name", CORPUS)
def test_the_corpus_as_fls_and_icat_see_it(name: str, tmp_path: Path) -> None:
    source = corpus_file(name)
    path = unpacked_corpus_file(name, tmp_path) if source.suffix == ".gz" else source
    fs = opened(path)
    found = list(fs.deleted())
    ours = Counter((entry.path, entry.inode) for entry in found)
    assert ours == fls_deleted(path)
    files = [entry for entry in found if entry.type is EntryType.FILE and entry.size][:12]
    for entry in files:
        if fs.wholeness(entry) in (Whole.INTACT, Whole.GUESS):
            assert content(fs, entry) == icat(path, entry.inode)


def test_names_moved_within_a_hashed_directory_are_not_deleted(tmp_path: Path) -> None:
    """fls calls a pair of names in each hash tree deleted; they are the tree's own numbers."""
    path = unpacked_corpus_file("e2fsprogs/tests/f_h_badroot/image.gz", tmp_path)
    assert list(opened(path).deleted()) == []


# -- ext ----------------------------------------------------------------------------------------------


@pytest.fixture
def ext(tmp_path: Path) -> Path:
    room = tmp_path / "room"
    (room / "d").mkdir(parents=True)
    (room / "a").write_bytes(pattern(9_000))
    (room / "b").write_bytes(pattern(3 * MIB))
    (room / "d" / "x").write_bytes(pattern(20_000))
    (room / "link").symlink_to("target")
    return make_ext(tmp_path / "ext", room)


def test_what_debugfs_removed_is_intact_until_others_take_its_blocks(ext: Path, tmp_path: Path) -> None:
    kept = {name: icat(ext, opened(ext).lookup(name).inode) for name in (b"/a", b"/b", b"/d/x")}
    debugfs(ext, "rm a", "rm b", "rm link", "rm d/x", "rmdir d")
    fs = opened(ext)
    found = deleted(fs)
    assert Counter((entry.path, entry.inode) for entry in found.values()) == fls_deleted(ext)
    assert words(fs) == dict.fromkeys([b"/a", b"/b", b"/link", b"/d", b"/d/x"], "intact")
    assert {name: content(fs, found[name]) for name in kept} == kept
    assert fs.readlink(found[b"/link"]) == b"target"
    assert not found[b"/a"].path.startswith(ORPHANS)
    (tmp_path / "new").write_bytes(pattern(4_000))
    debugfs(ext, f"write {tmp_path}/new other", f"write {tmp_path}/new another")
    assert Counter(words(opened(ext)).values())["intact"] < 5, "their inodes are in use again"


def test_blocks_in_use_are_counted(ext: Path) -> None:
    first = opened(ext).lookup(b"/a")
    blocks = [place.first // 1024 for place in opened(ext).places(first) if not place.stream]
    debugfs(ext, "rm a")
    assert words(opened(ext)) == {b"/a": "intact"}
    debugfs(ext, f"setb {blocks[0]}")
    assert words(opened(ext)) == {b"/a": "partly-overwritten"}
    debugfs(ext, f"setb {blocks[0]} 9")
    assert words(opened(ext)) == {b"/a": "overwritten"}


def test_a_name_whose_inode_is_in_use_again_gives_nothing_of_the_other_file(ext: Path) -> None:
    inode = opened(ext).lookup(b"/a").inode
    debugfs(ext, "ln a z", "unlink a")
    entry = deleted(opened(ext))[b"/a"]
    assert (entry.inode, entry.flags, entry.size) == (inode, (REALLOCATED,), 0)
    assert opened(ext).wholeness(entry) is Whole.UNKNOWN
    with pytest.raises(BrowseError, match="nothing says"):
        opened(ext).open(entry)
    assert opened(ext).at(inode).path == b"/z"


@root_only
def test_what_linux_removed_has_lost_its_blocks(ext: Path, tmp_path: Path) -> None:
    number = opened(ext).lookup(b"/a").inode
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    run_tool(["mount", "-o", "loop", ext, mounted])
    try:
        (mounted / "a").unlink()
    finally:
        run_tool(["umount", mounted])
    fs = opened(ext)
    assert Counter((entry.path, entry.inode) for entry in fs.deleted()) == fls_deleted(ext)
    entry = fs.at(number)
    assert entry.deleted
    assert fs.wholeness(entry) is Whole.UNKNOWN
    with pytest.raises(BrowseError, match="nothing says where its bytes were"):
        fs.open(entry)


def test_orphans_and_what_is_below_them(tmp_path: Path) -> None:
    room = tmp_path / "room"
    (room / "orphaned folder").mkdir(parents=True)
    (room / "orphaned folder" / "inside.bin").write_bytes(pattern(9_000))
    path = make_ext(tmp_path / "ext", room)
    number = opened(path).lookup(b"/orphaned folder").inode.encode()
    debugfs(path, 'rm "/orphaned folder/inside.bin"', 'rmdir "/orphaned folder"')
    assert set(deleted(opened(path))) == {b"/orphaned folder", b"/orphaned folder/inside.bin"}
    path.write_bytes(re.sub(rb".{8}orphaned folder", bytes(23), path.read_bytes(), flags=re.DOTALL))
    fs = opened(path)
    found = deleted(fs)
    above = ORPHANS + b"/OrphanFile-" + number
    assert set(found) == {above, above + b"/inside.bin"}
    assert found[above].type is EntryType.DIRECTORY
    assert content(fs, found[above + b"/inside.bin"]) == pattern(9_000)
    assert (above + b"/inside.bin", found[above + b"/inside.bin"].inode) in fls_deleted(path)


# -- the file systems' own maps ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ext4", "ext2", "ntfs"])
def test_maps_add_up_to_what_is_used(name: str, request: pytest.FixtureRequest) -> None:
    check_map(opened(request.getfixturevalue(name)))


def test_the_tables_of_fat_add_up_too(fat: Path) -> None:
    check_map(opened(fat))


def check_map(fs: TskFileSystem) -> None:
    """All units at once, one by one, and the file system's own count say the same."""
    allocated = fs._deleted._allocated
    assert allocated is not None
    first, unit = getattr(allocated, "base", 0), fs._facts.block_size
    unit = getattr(allocated, "unit", unit)
    whole = fs._facts.reader.size
    last = first + (whole - first) // unit * unit
    used, units = allocated.used(first, last)
    assert units == (last - first) // unit
    outside = 1024 if fs.kind.startswith("ext") else 0  # blocks of 1 KiB begin behind the boot block
    assert fs.used_bytes is not None
    assert used * unit + outside == fs.used_bytes
    pieces = [allocated.used(at, at + unit)[0] for at in range(first, last, unit)]
    assert sum(pieces) == used
    assert set(pieces) == {0, 1}


# -- what the image holds -------------------------------------------------------------------------------


def marked(path: Path, ranges: list[tuple[int, int]]) -> Reader:
    first, end = [first for first, _ in ranges], [end for _, end in ranges]
    return MarkedReader(FileReader(path), first, end, State.SKIPPED)


def test_blocks_that_were_not_captured(ext: Path) -> None:
    fs = opened(ext)
    places = [place for place in fs.places(fs.lookup(b"/a")) if not place.stream]
    debugfs(ext, "rm a")
    whole = [(place.first, place.end) for place in places]
    fs = open_tsk(marked(ext, whole))
    entry = deleted(fs)[b"/a"]
    assert fs.wholeness(entry) is Whole.ABSENT
    with pytest.raises(BrowseError, match="not in this image"):
        fs.open(entry)
    fs = open_tsk(marked(ext, [(whole[0][0], whole[0][0] + 1024)]))
    assert fs.wholeness(entry) is Whole.PARTLY
    assert fs.open(entry).size == 9_000


# -- NTFS -----------------------------------------------------------------------------------------------


def make_empty_ntfs(path: Path) -> Path:
    need_tool("mkntfs")
    sparse_file(path, 24 * MIB)
    run_tool(["mkntfs", "-q", "-F", "-Q", "-s", "512", "-p", "0", "-H", "16", "-S", "63", path])
    return path


@contextlib.contextmanager
def ntfs_3g(path: Path, mounted: Path) -> Iterator[Path]:
    """``path`` mounted; closed when all of it is on the disk."""
    need_tool("ntfs-3g")
    mounted.mkdir(exist_ok=True)
    run_tool(["ntfs-3g", path, mounted])
    try:
        yield mounted
    finally:
        run_tool(["umount", mounted])


@root_only
def test_ntfs_as_ntfs_3g_leaves_it(tmp_path: Path) -> None:
    path = make_empty_ntfs(tmp_path / "ntfs")
    with ntfs_3g(path, tmp_path / "mounted") as mounted:
        (mounted / "kept" / "gone").mkdir(parents=True)
        for number in range(400):
            (mounted / "kept" / f"file number {number}.txt").write_bytes(pattern(number * 7))
        (mounted / "kept" / "gone" / "inside.bin").write_bytes(pattern(70_000))
        for number in range(0, 400, 2):
            (mounted / "kept" / f"file number {number}.txt").unlink()
        (mounted / "kept" / "gone" / "inside.bin").unlink()
        (mounted / "kept" / "gone").rmdir()
    fs = opened(path)
    found = [entry for entry in fs.deleted() if REALLOCATED not in entry.flags]
    never_used = {(b"/$OrphanFiles/OrphanFile-%d" % n, str(n)) for n in range(16, 24)}
    expected = {key: count for key, count in fls_deleted(path).items() if key not in never_used}
    assert Counter((entry.path, entry.inode) for entry in found) == expected
    by_path = {entry.path: entry for entry in found}
    inside = by_path[b"/kept/gone/inside.bin"]
    assert content(fs, inside) == icat(path, inside.inode) == pattern(70_000)
    assert fs.wholeness(inside) is Whole.INTACT
    small = by_path[b"/kept/file number 8.txt"]
    assert content(fs, small) == pattern(56)


@root_only
def test_a_folder_whose_record_is_another_folder_now_is_not_the_path(tmp_path: Path) -> None:
    path = make_empty_ntfs(tmp_path / "ntfs")
    with ntfs_3g(path, tmp_path / "mounted") as mounted:
        (mounted / "old").mkdir()
        (mounted / "old" / "in").write_bytes(pattern(9_000))
        number = (mounted / "old").stat().st_ino
        (mounted / "old" / "in").unlink()
        (mounted / "old").rmdir()
    assert set(deleted(opened(path))) == {b"/old", b"/old/in"}
    with ntfs_3g(path, tmp_path / "mounted") as mounted:
        (mounted / "new").mkdir()
        assert (mounted / "new").stat().st_ino == number
    fs = opened(path)
    found = deleted(fs)
    assert set(found) == {ORPHANS + b"/in"}
    assert content(fs, found[ORPHANS + b"/in"]) == pattern(9_000)


# -- FAT ------------------------------------------------------------------------------------------------


def test_fat_guesses_say_so(fat: Path, plain_stage: Path, tmp_path: Path) -> None:
    path = tmp_path / "fat"
    path.write_bytes(fat.read_bytes())
    need_tool("mdel", "mdeltree", "mcopy")
    run_tool(["mdel", "-i", path, "::a.txt"])
    run_tool(["mdeltree", "-i", path, "::Dir"])
    fs = opened(path)
    found = deleted(fs)
    assert Counter((entry.path, entry.inode) for entry in found.values()) == fls_deleted(path)
    by_size = {entry.size: entry for entry in found.values() if entry.type is EntryType.FILE}
    large, small = by_size[300_000], by_size[6]
    assert content(fs, large) == pattern(300_000), "it was contiguous indeed"
    assert fs.wholeness(large) is Whole.GUESS
    first_lost = fs.kind == "fat32"  # more than 65,536 clusters: Windows may have cleared the upper half
    assert fs.wholeness(small) is (Whole.GUESS if first_lost else Whole.INTACT)
    empty = by_size[0]
    assert fs.wholeness(empty) is Whole.INTACT


def test_fat_clusters_that_others_took(tmp_path: Path) -> None:
    room = tmp_path / "room"
    room.mkdir()
    (room / "old.bin").write_bytes(pattern(40_000))
    path = make_fat(tmp_path / "fat", room, "-F16", "-s1")
    (tmp_path / "new.bin").write_bytes(b"n" * 10_000)
    run_tool(["mdel", "-i", path, "::old.bin"])
    run_tool(["mcopy", "-i", path, tmp_path / "new.bin", "::new.bin"])
    # mtools puts new.bin over the name too: a second one keeps it
    found = deleted(opened(path))
    assert found == {}
    (room / "name").write_bytes(b"")
    path = make_fat(tmp_path / "fat2", room, "-F16", "-s1")
    run_tool(["mdel", "-i", path, "::name", "::old.bin"])
    run_tool(["mcopy", "-i", path, tmp_path / "new.bin", "::new.bin"])
    fs = opened(path)
    (entry,) = (entry for entry in fs.deleted() if entry.size == 40_000)
    assert fs.wholeness(entry) is Whole.PARTLY
    with pytest.raises(BrowseError, match="first cluster belongs to another file"):
        fs.open(entry)


def test_fat_directories_that_nothing_leads_to(tmp_path: Path) -> None:
    """A folder whose own entry was overwritten: its files are told by their looks alone."""
    room = tmp_path / "room"
    (room / "DIR").mkdir(parents=True)
    (room / "DIR" / "LOST.TXT").write_bytes(b"lost and found")
    path = make_fat(tmp_path / "fat", room, "-F16", "-s1")
    run_tool(["mdeltree", "-i", path, "::DIR"])
    raw = bytearray(path.read_bytes())
    at = raw.index(b"\xe5IR        ")
    raw[at : at + 32] = b"\xe5" + bytes(31)
    path.write_bytes(raw)
    fs = opened(path)
    found = deleted(fs)
    assert (ORPHANS + b"/_OST.TXT") in found
    assert content(fs, found[ORPHANS + b"/_OST.TXT"]) == b"lost and found"
    assert (ORPHANS + b"/_OST.TXT", found[ORPHANS + b"/_OST.TXT"].inode) in fls_deleted(path)


# -- hostile --------------------------------------------------------------------------------------------


@given(st.binary(max_size=2048))
def test_any_directory_block_ends(block: bytes) -> None:
    found = list(_block_names(block, 1 << 32))
    assert len(found) <= len(block) // 12
    assert all(name.name and b"/" not in name.name for name, _ in found)


@given(st.binary(min_size=900, max_size=1100), st.binary(max_size=500))
def test_any_record_is_parsed_or_refused(noise: bytes, node: bytes) -> None:
    head = struct.pack("<4sHHQHHHHII", b"FILE", 48, 3, 0, 1, 1, 56, 0, 1000, 1024)
    record = bytearray((head + noise).ljust(1024, b"\0")[:1024])
    record[32:40] = bytes(8)
    for sector in (1, 2):
        record[sector * 512 - 2 : sector * 512] = record[48:50]
    remains = parse(bytes(record))
    assert remains is None or len(remains.names) < 20
    assert parse(noise) is None
    assert len(list(_left_over(node, 0, 5))) <= len(node) // 66 + 1


def test_directories_that_share_blocks_end_the_search(tmp_path: Path) -> None:
    """Hundreds of folders over the same blocks, each larger than the volume has room for."""
    room = tmp_path / "room"
    room.mkdir()
    path = make_ext(tmp_path / "ext", room, "-N", "600", "-O", "^metadata_csum", kind="ext2", size=3 * MIB)
    debugfs(path, "mkdir big")
    number = int(opened(path).lookup(b"/big").inode)
    inode = debugfs(path, f"stat <{number}>")
    assert "directory" in inode
    fs = opened(path)
    ext = fs._facts.ext
    assert ext is not None
    place = ext.place(number)
    assert place is not None
    raw = bytearray(path.read_bytes())
    good = raw[place : place + ext.size]
    good[40:100] = struct.pack("<15I", *([2900] * 12), 0, 0, 0)
    good[4:8] = struct.pack("<I", 12 * 1024)
    block = b"".join(dirent(n, b"%05d" % n, kind=2) for n in range(20, 24))
    raw[2900 * 1024 : 2901 * 1024] = (block + dirent(0, b"", 1024 - len(block)))[:1024]
    for each in range(number, 580):
        spot = ext.place(each)
        assert spot is not None
        raw[spot : spot + ext.size] = good
    path.write_bytes(raw)
    fs = opened(path)
    with pytest.raises(BrowseError):
        for _ in fs.deleted():
            pass


# -- as a tree ------------------------------------------------------------------------------------------


class Forgetful(FakeFs):
    """A file system with these deleted entries."""

    gone: list[Entry]

    def deleted(self) -> Iterator[Entry]:
        yield from self.gone

    def at(self, inode: str, /) -> Entry:
        raise PathNotFound(inode)

    def wholeness(self, entry: Entry, /) -> Whole:
        return Whole.INTACT


def gone(path: bytes, inode: str, *, is_folder: bool = False) -> Entry:
    return (folder if is_folder else file)(path, inode, deleted=True)


def test_equal_names_carry_their_address_and_folders_keep_theirs() -> None:
    fs = Forgetful({})
    fs.gone = [
        gone(b"/a", "5-128-1"),
        gone(b"/a", "6-128-1"),
        gone(b"/x", "7", is_folder=True),
        gone(b"/x", "8"),
        gone(b"/x/in", "9"),
        gone(b"/live/deep/y", "10"),
    ]
    tree = DeletedTree(fs)

    def fail(error: ImagefsError) -> None:
        raise error

    found = {entry.path: entry for entry in walk(tree, tree.root(), onerror=fail)}
    assert set(found) == {
        b"/a~5-128-1",
        b"/a~6-128-1",
        b"/x",
        b"/x~8",
        b"/x/in",
        b"/live",
        b"/live/deep",
        b"/live/deep/y",
    }
    assert found[b"/x"].type is EntryType.DIRECTORY
    assert not found[b"/live"].deleted
    assert tree.lookup(b"/a~6-128-1").inode == "6-128-1"
    with pytest.raises(PathNotFound):
        tree.lookup(b"/a")


def test_damage_is_told_after_what_can_be_found() -> None:
    class Breaking(Forgetful):
        def deleted(self) -> Iterator[Entry]:
            yield gone(b"/a", "5")
            raise BrowseError("the rest is damaged")

    heard: list[str] = []
    tree = DeletedTree(Breaking({}), onerror=lambda error: heard.append(error.message))
    assert [entry.path for entry in tree.children(tree.root())] == [b"/a"]
    assert heard == ["the rest is damaged"]


def test_a_file_system_that_tells_nothing_is_refused_by_name() -> None:
    with pytest.raises(BrowseError, match="fake"):
        DeletedTree(FakeFs({}))


def test_volumes_that_pyfatfs_opens_say_so(tmp_path: Path) -> None:
    path = unpacked_corpus_file("dfir_ntfs/test_data/fat32_small.raw.gz", tmp_path)
    with pytest.raises(BrowseError, match="deleted files cannot be found"):
        DeletedTree(open_filesystem(FileReader(path)))


def test_a_tree_holds_so_many_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imagefs.browse.deletedtree.MAX_KEPT", 3)
    fs, heard = Forgetful({}), []
    fs.gone = [gone(b"/%d" % number, str(number)) for number in range(5)]
    tree = DeletedTree(fs, onerror=lambda error: heard.append(error.message))
    assert len(list(tree.children(tree.root()))) == 3
    assert heard == ["more than 3 deleted entries: the rest is left out"]


# -- large volumes ------------------------------------------------------------------------------------


class Noisy:
    """A volume of which nothing is a hole: half of one, then bytes that must be looked at twice."""

    def __init__(self, path: Path) -> None:
        self._disk = FileReader(path)
        self._start, self.size = path.stat().st_size // 2, path.stat().st_size
        self._noise = bytes(byte & 7 for byte in random.Random(1).randbytes(1 << 20)) * 9

    def read_at(self, offset: int, length: int, /) -> bytes:
        count = max(0, min(length, self.size - offset))
        if offset < self._start:
            return self._disk.read_at(offset, count)
        first = offset % (1 << 20)
        return self._noise[first : first + count]

    def close(self) -> None:
        pass


def test_a_long_search_is_many_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each may take a minute of CPU, and the unused clusters of a large volume take longer."""
    (tmp_path / "room" / "d").mkdir(parents=True)
    for number in range(40):
        (tmp_path / "room" / "d" / f"{number}").write_bytes(pattern(5_000))
    path = make_fat(tmp_path / "fat", tmp_path / "room", "-F32", "-s8", size=512 << 20)
    run_tool(["mdeltree", "-i", path, "::/d"])
    calls, call = list[bytes](), workers.Worker.call
    monkeypatch.setattr(workers.Worker, "call", lambda self, body: (calls.append(body), call(self, body))[1])
    fs = open_apart(Noisy(path))
    found = [entry.path for entry in fs.deleted()]  # type: ignore[attr-defined]
    assert len([path for path in found if not path.startswith(ORPHANS)]) == 41
    fs.close()
    assert len(calls) > 4


def test_who_lost_its_place_finds_it_again_in_steps() -> None:
    given = [None, file(b"/a"), None, file(b"/b"), file(b"/c"), None]
    left = list(worker._behind(iter(given), 2))
    assert left == [None, None, None, None, file(b"/c"), None]
    assert list(worker._behind(iter([file(b"/a")]), 5)) == [None]
