"""APFS by our own reader: disks that macOS made, with published answers and libfsapfs as a second opinion; mkapfs';
damage, and disks that lie."""

from __future__ import annotations

import hashlib
import random
import struct
from pathlib import Path
from typing import Any

import pyfsapfs
import pytest

from imagefs.block.joined import SureReader
from imagefs.block.views import BytesReader, LibraryFile, MarkedReader
from imagefs.browse.apfs import open_apfs
from imagefs.browse.apfsdisk import Disk
from imagefs.browse.opening import open_filesystem
from imagefs.browse.walk import walk
from imagefs.errors import BrowseError, ImagefsError, IntegrityError, NotAFileSystem, PathNotFound
from imagefs.interfaces import METADATA, Entry, EntryType, HasStreams, HasXattrs, Reader, State, Stream
from tests.browse.apfsdisks import BLOCK, CONTAINER, VOLUME, changed, disk_of, objects, sealed
from tests.browse.disks import BreakingReader, FileReader
from tests.support.kernelview import fails
from tests.support.oracles import need_tool, run_tool, unpacked_corpus_file
from tests.support.reader_contract import check_reader

_BETA = ("case_insensitive_beta", "case_sensitive_beta")
_DISKS = ("case_insensitive", "case_sensitive", "jhfs_converted", *_BETA)
_LABELS = (
    "Case Insensitive",
    "Case Sensitive",
    "JHFS+ Converted",
    "Case Insensitive (beta)",
    "Case Sensitive (beta)",
)
#: What dissect.apfs publishes of them (its tests/test_apfs.py).
_PACKED = b"Compressed data in xattr " + b"a" * 90 + b"\n"
_FORK_SUM = "5f46d97f947137dcf974fc19914c547acd18fcdb25124c846c1100f8b3fbca5f"
_LARGE_SUM = "a11c957142c3fd8ebf2bee1ed0cf184a246033a3874d060acd28c319b323466e"
_CHARACTER_DEVICES = 17


def tree(disk: bytes) -> dict[str, Entry]:
    fs = open_filesystem(BytesReader(disk))
    return {entry.path.decode(): entry for entry in walk(fs, fs.root(), onerror=fails)}


def content(fs: Any, path: str) -> bytes:
    reader = fs.open(fs.lookup(path.encode()))
    found: bytes = reader.read_at(0, reader.size)
    return found


@pytest.mark.parametrize(("name", "label"), list(zip(_DISKS, _LABELS, strict=True)))
def test_disks_of_macos_are_what_is_published_of_them(name: str, label: str) -> None:
    disk = disk_of(name)
    fs = open_filesystem(BytesReader(disk))
    assert isinstance(fs, HasXattrs)
    assert isinstance(fs, HasStreams)
    assert (fs.kind, fs.label) == ("apfs", label)
    found = tree(disk)
    assert content(fs, "/dir/file") == content(fs, "/hardlink") == "\uf8ff File System\n".encode()
    assert found["/dir/file"].inode == found["/hardlink"].inode
    assert found["/dir/file"].nlink == 2
    assert content(fs, "/empty") == b""
    assert fs.readlink(found["/symlink-file"]) == b"dir/file"
    assert fs.readlink(found["/symlink-dir"]) == b"dir"
    assert {"/nfd_te\u0301stfile\u0300", "/nfkd_3\u20444", "/case_folding_\u00b5"} <= found.keys()
    assert found["/dir/fifo"].type is EntryType.FIFO
    methods = ["zlib"] if name in _BETA else ["zlib", "lzvn", "lzfse"]
    for method in methods:
        inside, apart = f"/dir/compressed-{method}-xattr", f"/dir/compressed-{method}-fork"
        assert (content(fs, inside), found[inside].size) == (_PACKED, len(_PACKED))
        assert hashlib.sha256(content(fs, apart)).hexdigest() == _FORK_SUM
        assert (found[apart].size, found[apart].flags, fs.streams(found[apart])) == (
            7873,
            ("compressed",),
            [],
        )
    fork = found["/dir/resourcefork"]
    assert (fs.streams(fork), fs.xattrs(fork)) == ([Stream(b"rsrc", 19)], {})
    check_reader(fs.open_stream(fork, b"rsrc"), b"Resource fork data\n")
    assert fs.xattrs(found["/dir/xattr-small"]) == {b"user.xattr-small": b"Small xattr data"}
    assert fs.xattrs(found["/dir/xattr-dir"]) == {b"user.xattr-dir": b"xattr data on directory"}
    large = fs.xattrs(found["/dir/xattr-large"])[b"user.xattr-large"]
    if name not in _BETA:
        assert hashlib.sha256(large).hexdigest() == _LARGE_SUM
    if name in ("case_insensitive", "case_sensitive"):
        devices = [entry for entry in found.values() if entry.type is EntryType.DEVICE]
        assert sorted(entry.flags for entry in devices) == [("block",)] + [("char",)] * _CHARACTER_DEVICES
        assert (found["/dir/blockdev"].rdev, found["/dir/chardev"].rdev) == ((24, 57), (13, 68))
    fs.close()
    with pytest.raises(BrowseError, match="closed"):
        fs.root()


@pytest.mark.parametrize("name", _DISKS)
def test_names_are_found_as_macos_finds_them(name: str) -> None:
    fs = open_filesystem(BytesReader(disk_of(name)))
    assert fs.case_insensitive is (name not in ("case_sensitive", "case_sensitive_beta"))
    if fs.case_insensitive:
        assert fs.lookup(b"/EMPTY").path == b"/empty"
        assert fs.lookup(b"/DIR/FILE").path == b"/dir/file"
    else:
        with pytest.raises(PathNotFound):
            fs.lookup(b"/EMPTY")
    composed = "/nfd_t\u00e9stfil\u00e8"
    if name == "case_sensitive_beta":  # which compared bytes
        with pytest.raises(PathNotFound):
            fs.lookup(composed.encode())
    else:
        assert fs.lookup(composed.encode()).path.decode() == "/nfd_te\u0301stfile\u0300"
    with pytest.raises(PathNotFound):
        fs.lookup(b"/dir/none")


@pytest.mark.parametrize("name", _DISKS)
def test_libfsapfs_says_the_same(name: str) -> None:
    """But for LZFSE in a fork, which it cannot decode, device numbers, and two times that it takes for each other."""
    disk = disk_of(name)
    fs = open_apfs(BytesReader(disk))
    container = pyfsapfs.container()
    container.open_file_object(LibraryFile(BytesReader(disk)))
    volume = container.get_volume(0)
    assert volume.name == fs.label
    seen = 0
    for entry in walk(fs, fs.root(), onerror=fails):
        theirs = volume.get_file_entry_by_identifier(int(entry.inode))
        seen += 1
        assert entry.mode == theirs.file_mode & 0o7777
        assert entry.type is EntryType.of_mode(theirs.file_mode)
        assert (entry.uid, entry.gid) == (theirs.owner_identifier, theirs.group_identifier)
        assert (entry.crtime_ns, entry.mtime_ns, entry.ctime_ns, entry.atime_ns) == (
            theirs.get_modification_time_as_integer(),
            theirs.get_creation_time_as_integer(),
            theirs.get_inode_change_time_as_integer(),
            theirs.get_access_time_as_integer(),
        )
        if entry.type is EntryType.SYMLINK:
            assert fs.readlink(entry).decode() == theirs.symbolic_link_target
        if entry.type is EntryType.FILE and not entry.path.endswith(b"lzfse-fork"):
            assert entry.size == theirs.size
            assert content(fs, entry.path.decode()) == (
                theirs.read_buffer_at_offset(entry.size, 0) if entry.size else b""
            )
        theirs_values = {
            b"user." + each.name.encode(): _value(each)
            for each in theirs.extended_attributes
            if each.name not in ("com.apple.ResourceFork", "com.apple.decmpfs", "com.apple.fs.symlink")
        }
        assert fs.xattrs(entry) == theirs_values
    assert seen > 20


def _value(theirs: Any) -> bytes:
    return bytes(theirs.read_buffer_at_offset(theirs.size, 0)) if theirs.size else b""


def test_times_are_those_of_the_record_on_the_disk() -> None:
    """j_inode_val: parent, private id, then creation, modification, change, access in ns since 1970."""
    disk = disk_of("case_insensitive")
    fs = open_apfs(BytesReader(disk))
    file, folder = fs.lookup(b"/dir/resourcefork"), fs.lookup(b"/dir")
    record = struct.pack("<4Q", *map(int, (file.crtime_ns, file.mtime_ns, file.ctime_ns, file.atime_ns)))  # type: ignore[arg-type]
    assert struct.pack("<2Q", int(folder.inode), int(file.inode)) + record in disk


def test_places_are_where_the_bytes_lie() -> None:
    disk = disk_of("case_insensitive")
    fs = open_apfs(BytesReader(disk))
    (place,) = fs.places(fs.lookup(b"/dir/file"))
    assert disk[place.first :].startswith("\uf8ff File System\n".encode())
    assert (place.stream, place.end - place.first) == (b"", 16)
    (fork,) = fs.places(fs.lookup(b"/dir/compressed-zlib-fork"))
    assert (fork.stream, fork.end - fork.first) == (b"", 4209)
    assert fs.places(fs.lookup(b"/dir")) == []
    assert fs.used_bytes is not None
    assert 0 < fs.used_bytes < len(disk)


def test_the_newest_checkpoint_that_is_whole_is_taken() -> None:
    """dissect.apfs publishes that the two newest of this disk are damaged; libfsapfs opens it not at all."""
    fs = open_apfs(BytesReader(disk_of("corrupt")))
    assert hashlib.sha256(content(fs, "/FEVER")).hexdigest() == _FORK_SUM
    with pytest.raises(OSError):
        pyfsapfs.container().open_file_object(LibraryFile(BytesReader(disk_of("corrupt"))))


def test_an_encrypted_volume_says_so() -> None:
    fs = open_apfs(BytesReader(disk_of("encrypted")))
    assert fs.label == "Encrypted"
    with pytest.raises(BrowseError, match="'Encrypted' is encrypted"):
        fs.root()


def test_several_volumes_are_folders_and_an_encrypted_one_says_so() -> None:
    def twice(raw: bytearray) -> None:
        raw[192:200] = raw[184:192]

    disk = changed(disk_of("case_insensitive"), twice, CONTAINER)
    fs = open_apfs(BytesReader(disk))
    assert fs.label == ""
    assert [entry.path for entry in fs.children(fs.root())] == [
        b"/Case Insensitive~0",
        b"/Case Insensitive~1",
    ]
    assert content(fs, "/Case Insensitive~1/dir/file") == "\uf8ff File System\n".encode()
    assert fs.lookup(b"/Case Insensitive~1/dir/file").inode == "1:20"
    assert (
        sum(1 for _ in walk(fs, fs.root(), onerror=fails)) == 2 * len(tree(disk_of("case_insensitive"))) + 2
    )
    assert fs.xattrs(fs.root()) == {}
    with pytest.raises(PathNotFound):
        fs.open(fs.lookup(b"/Case Insensitive~1/dir/file")._replace(inode="20"))
    disk = changed(disk_of("encrypted"), twice, CONTAINER)
    fs = open_apfs(BytesReader(disk))
    for entry in fs.children(fs.root()):
        assert entry.flags == ("encrypted",)
        with pytest.raises(BrowseError, match="is encrypted"):
            list(fs.children(entry))


def test_a_volume_that_cannot_be_read_keeps_its_place() -> None:
    def one_more(raw: bytearray) -> None:
        raw[192:200] = raw[184:192]
        raw[184:192] = (12345).to_bytes(8, "little")

    fs = open_apfs(BytesReader(changed(disk_of("case_insensitive"), one_more, CONTAINER)))
    lost, there = fs.children(fs.root())
    assert (lost.path, lost.flags, there.path) == (b"/volume 0", ("damaged",), b"/Case Insensitive")
    assert fs.lookup(b"/Case Insensitive/dir/file").inode == "1:20"
    with pytest.raises(BrowseError, match="object 12345"):
        list(fs.children(lost))


def _without(name: str, start: int, length: int, state: State) -> Reader:
    """A disk, a part of which an image has not."""
    return MarkedReader(BytesReader(disk_of(name)), [start], [start + length], state)


@pytest.mark.parametrize("state", [State.SKIPPED, State.UNREADABLE])
def test_zeros_that_stand_for_what_is_lacking_are_no_data(state: State) -> None:
    whole = open_apfs(BytesReader(disk_of("case_insensitive")))
    (fork,) = whole.places(whole.lookup(b"/dir/compressed-zlib-fork"))
    fs = open_apfs(_without("case_insensitive", fork.first, 512, state))
    with pytest.raises(BrowseError, match="compressed are lacking"):
        content(fs, "/dir/compressed-zlib-fork")
    assert content(fs, "/dir/compressed-lzvn-fork") == content(whole, "/dir/compressed-lzvn-fork")
    value = next(iter(whole.places(whole.lookup(b"/dir/xattr-large"))))
    assert value.stream == METADATA
    fs = open_apfs(_without("case_insensitive", value.first, 512, state))
    with pytest.raises(BrowseError, match="attribute xattr-large are lacking"):
        fs.xattrs(fs.lookup(b"/dir/xattr-large"))


def test_what_is_free_is_not_asked_for() -> None:
    """As in an image of mode used: TSK would look for other file systems all over the volume."""
    disk = disk_of("case_insensitive")
    free = [at for at in range(0, len(disk), BLOCK) if not any(disk[at : at + BLOCK])]
    marked = MarkedReader(BytesReader(disk), free, [at + BLOCK for at in free], State.SKIPPED)
    fs = open_filesystem(SureReader(marked, "are not here"))
    assert sum(1 for _ in walk(fs, fs.root(), onerror=fails)) == len(tree(disk))


def _inodes(disk: bytes, value: bytes, at: int, new: bytes) -> bytes:
    """``disk``, where the record of an inode begins with ``value``: the bytes ``at`` of it are ``new``."""

    def change(raw: bytearray) -> None:
        found = raw.find(value)
        if found >= 0:
            raw[found + at : found + at + len(new)] = new

    return changed(disk, change, 2, 3)


def test_a_file_that_is_kept_in_the_cloud_is_refused() -> None:
    disk = disk_of("case_insensitive")
    dataless = _inodes(disk, struct.pack("<2Q", 19, 20), 68, struct.pack("<I", 0x40000000))
    fs = open_apfs(BytesReader(dataless))
    file = fs.lookup(b"/dir/file")
    assert file.flags == ("cloud",)
    with pytest.raises(BrowseError, match="kept in the cloud"):
        fs.open(file)


def test_what_is_not_told_is_never_zeros() -> None:
    """The size of a file says more than its extents do."""
    disk = disk_of("case_insensitive")
    fs = open_apfs(BytesReader(disk))
    (place,) = fs.places(fs.lookup(b"/dir/file"))

    def longer(raw: bytearray) -> None:  # in the stream's field of the inode: 16 bytes, a block allocated
        at = raw.find(struct.pack("<QQ", 16, BLOCK))
        while at >= 0:
            raw[at : at + 8] = (3 * BLOCK).to_bytes(8, "little")
            at = raw.find(struct.pack("<QQ", 16, BLOCK))

    fs = open_apfs(BytesReader(changed(disk, longer, 2, 3)))
    reader = fs.open(fs.lookup(b"/dir/file"))
    assert reader.size == 3 * BLOCK
    assert reader.read_at(0, BLOCK) == disk[place.first : place.first + BLOCK]
    with pytest.raises(BrowseError, match="does not say where they lie"):
        reader.read_at(BLOCK, 1)


def test_a_container_without_a_volume() -> None:
    def none(raw: bytearray) -> None:
        raw[184:984] = bytes(800)

    with pytest.raises(NotAFileSystem, match="has no volume"):
        open_filesystem(BytesReader(changed(disk_of("case_insensitive"), none, CONTAINER)))


def test_a_container_on_two_disks_is_refused() -> None:
    def fusion(raw: bytearray) -> None:
        raw[65] |= 1

    with pytest.raises(NotAFileSystem, match="two disks"):
        open_apfs(BytesReader(changed(disk_of("case_insensitive"), fusion, CONTAINER)))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty volume of 1 GiB, of which little is there."""
    need_tool("mkapfs")
    path = tmp_path_factory.mktemp("apfs") / "made"
    with open(path, "wb") as file:
        file.truncate(1 << 30)
    run_tool(["mkapfs", "-L", "Größe", path])
    return path


def test_a_volume_made_by_mkapfs(made: Path) -> None:
    fs = open_filesystem(FileReader(made))
    assert (fs.kind, fs.label) == ("apfs", "Größe")
    assert list(walk(fs, fs.root(), onerror=fails)) == []


def test_the_volume_of_util_linux(tmp_path: Path) -> None:
    path = unpacked_corpus_file("util-linux/tests/ts/blkid/images-fs/apfs.img.xz", tmp_path)
    assert open_filesystem(FileReader(path)).label == "testapfs"


def test_what_the_image_says_of_bad_bytes_is_what_comes_out() -> None:
    disk = disk_of("case_insensitive")
    reader = BreakingReader(BytesReader(disk), 0, len(disk), broken=False)
    fs = open_apfs(reader)
    file = fs.lookup(b"/dir/file")
    opened = fs.open(file)
    reader.broken = True
    with pytest.raises(IntegrityError, match="chunk 17"):
        opened.read_at(0, 10)
    with pytest.raises(IntegrityError, match="chunk 17"):
        open_apfs(reader)
    reader.broken = False
    assert len(opened.read_at(0, 10)) == 10


# -- damage ----------------------------------------------------------------------------------------


def walked(disk: bytes) -> tuple[dict[bytes, bytes], int]:
    """(contents by path, how many errors were told): whatever is wrong ends in an error of ours."""
    found, errors = dict[bytes, bytes](), list[ImagefsError]()
    try:
        fs = open_apfs(BytesReader(disk))
        for entry in walk(fs, fs.root(), onerror=errors.append):
            try:
                if entry.type is EntryType.FILE:
                    reader = fs.open(entry)
                    found[entry.path] = reader.read_at(0, reader.size)
                fs.xattrs(entry)
                fs.places(entry)
            except ImagefsError as error:
                errors.append(error)
    except ImagefsError as error:
        errors.append(error)
    return found, len(errors)


def test_a_damaged_block_is_told_and_nothing_wrong_is_given() -> None:
    """A byte is changed in each object: its checksum fails, and an older checkpoint or nothing is shown."""
    disk = disk_of("case_insensitive")
    right, none = walked(disk)
    assert none == 0
    told = 0
    dice = random.Random(1)
    for block in objects(disk):
        hurt = bytearray(disk)
        hurt[block * BLOCK + dice.randrange(8, BLOCK)] ^= 1 << dice.randrange(8)
        found, errors = walked(bytes(hurt))
        told += bool(errors)
        assert all(right.get(path, value) == value for path, value in found.items()), block
    assert told > 5


def test_lies_with_the_right_checksum_end_in_errors_of_ours() -> None:
    """Bytes of objects are changed at random, and the checksum made right."""
    disk = disk_of("case_insensitive")
    kinds = objects(disk)
    dice = random.Random(2)
    told = 0
    for _ in range(150):
        block = dice.choice([each for each, kind in kinds.items() if kind in (1, 2, 3, 0xB, 0xD)])
        raw = bytearray(disk[block * BLOCK : (block + 1) * BLOCK])
        for _ in range(dice.randrange(1, 5)):
            at = dice.choice((dice.randrange(24, 64), dice.randrange(32, 256), dice.randrange(BLOCK)))
            raw[at] = dice.choice((0, 1, 0x7F, 0x80, 0xFF, dice.randrange(256)))
        told += bool(walked(disk[: block * BLOCK] + sealed(raw) + disk[(block + 1) * BLOCK :])[1])
    assert told > 8


def test_a_tree_that_is_inside_itself_ends() -> None:
    """Every entry of an object map leads to the same block."""
    disk = disk_of("case_insensitive")
    raw, root = Disk(BytesReader(disk)).volumes()[0], 0

    def loop(node: bytearray) -> None:
        if struct.unpack_from("<H", node, 34)[0] == 0 and struct.unpack_from("<I", node, 36)[0] > 2:
            for at in range(BLOCK - 40 - 16, 2048, -16):  # values are stored before the end
                if struct.unpack_from("<I", node, at + 4)[0] == BLOCK:
                    node[at + 8 : at + 16] = (raw.block + root).to_bytes(8, "little")

    assert walked(changed(disk, loop, 2, 3))[1] > 0


def test_a_volume_without_its_map_is_an_error() -> None:
    def without(raw: bytearray) -> None:
        raw[128:136] = bytes(8)

    found, errors = walked(changed(disk_of("case_insensitive"), without, VOLUME))
    assert (found, errors) == ({}, 1)
