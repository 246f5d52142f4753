"""Files that macOS compressed, as zlib and Apple's own encoders pack them, held against TSK and libfshfs."""

from __future__ import annotations

import os
import random
import struct
import zlib
from contextlib import suppress
from pathlib import Path

import pyfshfs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagefs.block.views import BytesReader
from imagefs.browse import decmpfs, lzvn
from imagefs.browse.decmpfs import DecmpfsReader, Head
from imagefs.browse.hfsplus import open_trees
from imagefs.browse.lzfse import unpack_lzfse, unpack_lzvn
from imagefs.browse.opening import open_filesystem
from imagefs.browse.walk import walk
from imagefs.errors import BrowseError, ImagefsError
from tests.browse import mac
from tests.browse.disks import FileReader, icat, pattern
from tests.browse.mac import FILES, head, in_attribute, in_fork, make_mac
from tests.support.oracles import corpus_file
from tests.support.reader_contract import check_reader

PROGRAM = Path(os.path.realpath("/bin/bash")).read_bytes()
#: Chunks that can be packed and one that cannot, a short last one.
LARGE = PROGRAM[:150_000] + random.Random(5).randbytes(70_000) + b"end"
SMALL = PROGRAM[2000:3500]
KINDS = (3, 4, 7), (8, 9, 10), (11, 12, 1)
#: Those that others know too. TSK has no zlib in some of its builds, but icat has.
KNOWN_TO_TSK, KNOWN_TO_FSHFS = (3, 4, 7, 8), (3, 4, 7, 8)


def content(kind: int) -> bytes:
    return SMALL if kind % 2 else LARGE


def made(kind: int, data: bytes) -> tuple[bytes, bytes]:
    return in_attribute(kind, data) if kind % 2 else in_fork(kind, data)


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[Path, int]]:
    """By the kind of compression: a disk, and the number of a file on it."""
    room, found = tmp_path_factory.mktemp("mac"), dict[int, tuple[Path, int]]()
    for kinds in KINDS:
        files = {number: made(kind, content(kind)) for number, kind in zip(FILES, kinds, strict=True)}
        disk = make_mac(room / f"mac{kinds[0]}", files, scattered=4 not in kinds)
        found |= {kind: (disk, number) for number, kind in zip(FILES, kinds, strict=True)}
    return found


@pytest.mark.parametrize("kind", sorted(sum(KINDS, ())))
def test_every_kind_is_decoded(disks: dict[int, tuple[Path, int]], kind: int) -> None:
    disk, number = disks[kind]
    fs, path, expected = open_filesystem(FileReader(disk)), FILES[number], content(kind)
    entry = fs.lookup(path)
    assert (entry.size, entry.flags) == (len(expected), ("compressed",))
    check_reader(fs.open(entry), expected, rounds=20)
    assert fs.streams(entry) == []  # type: ignore[attr-defined]
    assert set(fs.xattrs(entry)) <= {b"osx.myxattr"}  # type: ignore[attr-defined]
    if kind in KNOWN_TO_TSK:
        assert icat(disk, str(number)) == expected
    if kind in KNOWN_TO_FSHFS:
        volume = pyfshfs.volume()
        volume.open(str(disk))
        theirs = volume.get_file_entry_by_path(path.decode())
        assert theirs.read_buffer(theirs.size) == expected


def test_trees_say_what_the_sleuth_kit_says(disks: dict[int, tuple[Path, int]]) -> None:
    """Resource forks that are scattered over the disk, and one that macOS itself wrote."""
    for kind in (4, 8):
        disk, number = disks[kind]
        trees = open_trees(FileReader(disk))
        assert trees is not None
        fork = trees.resource_fork(number, "it")
        assert fork is not None
        assert fork.read_at(0, fork.size) == icat(disk, f"{number}-4353-1") == in_fork(kind, LARGE)[1]
        assert len(fork.pieces) > 8 or kind == 4
    path = corpus_file("dfvfs/test_data/hfsplus.raw")
    trees = open_trees(FileReader(path))
    assert trees is not None
    fork = trees.resource_fork(25, "it")
    assert fork is not None
    assert fork.read_at(0, fork.size) == icat(path, "25-4353-1")
    assert trees.attribute(19, b"myxattr") == icat(path, "19-4354-2")
    assert (
        trees.attribute(19, b"myxatt")
        is trees.attribute(18, b"myxattr")
        is trees.resource_fork(19, "")
        is None
    )
    assert trees.resource_fork(9999, "") is None


# -- what does not add up ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attribute", "fork", "why"),
    [
        (head(5, 100), b"", "type 5"),
        (head(14, 100), b"x" * 100, "type 14"),
        (head(3, 1 << 62) + b"x", b"", "an attribute cannot hold so much"),
        (b"cmpf" + head(3, 5)[4:], b"", "nothing says"),
        (b"fpmc", b"", "nothing says"),
        (head(4, 100), b"", "resource fork with its compressed content is missing"),
        (head(3, 100), b"", "table"),
        (head(3, 100) + b"\xffshort", b"", "5 bytes instead of 100"),
        (head(9, 3) + b"\xccabc?", b"", "4 bytes instead of 3"),
        (head(9, 3) + b"\xffabc", b"", "stored"),
        (head(1, 3) + b"abcd", b"", "4 bytes instead of 3"),
        (head(4, len(LARGE)), in_fork(4, LARGE)[1][:270], "table"),
        (head(4, len(LARGE) + 65536), in_fork(4, LARGE[:131072])[1], "table"),
        (head(8, len(LARGE) + 65536), in_fork(8, LARGE[:131072])[1], "table"),
        (head(8, len(LARGE) + 1), in_fork(8, LARGE)[1], "instead of"),
        (head(4, len(LARGE) - 1), in_fork(4, LARGE)[1], "instead of"),
        (head(8, 10), struct.pack("<III", 12, 0xFFFFFFFF, 0) + bytes(100), "table"),
        (head(8, 10), struct.pack("<III", 12, 5, 0) + bytes(100), "table"),
        (head(12, 10), struct.pack("<II", 8, 24) + b"bvxn\xff\xff\xff\xff" + bytes(8), "no blocks"),
    ],
)
def test_what_cannot_be_decoded_is_refused(tmp_path: Path, attribute: bytes, fork: bytes, why: str) -> None:
    fs = open_filesystem(FileReader(make_mac(tmp_path / "mac", {20: (attribute, fork)})))
    entry = fs.lookup(b"/passwords.txt")
    with pytest.raises(BrowseError, match=why) as caught:
        reader = fs.open(entry)
        for at in range(0, reader.size, 65536):
            reader.read_at(at, 65536)
    assert caught.value.hint


def test_a_damaged_zlib_chunk_is_told_and_the_others_are_read() -> None:
    attribute, fork = in_fork(4, LARGE)
    bad = bytearray(fork)
    bad[40_000] ^= 0x40
    reader = DecmpfsReader(Head(4, len(LARGE)), BytesReader(bytes(bad)), label="it")
    told = []
    for at in range(0, len(LARGE), decmpfs.CHUNK):
        try:
            assert reader.read_at(at, decmpfs.CHUNK) == LARGE[at : at + decmpfs.CHUNK]
        except BrowseError:
            told.append(at)
    assert len(told) == 1
    assert decmpfs.read_head(attribute) == Head(4, len(LARGE))


def test_a_wrong_checksum_behind_more_than_there_should_be_is_told() -> None:
    """Found by fuzzing: zlib looks at it when it is asked whether there is more."""
    packed = bytearray(zlib.compress(b"some content"))
    packed[-1] ^= 1
    attribute = struct.pack("<4sIQ", b"fpmc", 3, 11) + bytes(packed)
    with pytest.raises(BrowseError, match="cannot be decompressed"):
        DecmpfsReader(Head(3, 11), BytesReader(attribute), label="it").read_at(0, 11)


@pytest.mark.parametrize("kind", [4, 8, 10, 12])
def test_any_flipped_byte_is_survived(kind: int) -> None:
    _, fork = in_fork(kind, LARGE[:100_000])
    chance = random.Random(kind)
    for _ in range(60):
        bad = bytearray(fork)
        bad[chance.randrange(min(len(bad), 400) if chance.random() < 0.5 else len(bad))] = chance.randrange(
            256
        )
        reader = DecmpfsReader(Head(kind, 100_000), BytesReader(bytes(bad)), label="it")
        for at in (0, 65536):
            with suppress(BrowseError):
                assert len(reader.read_at(at, 65536)) == min(65536, 100_000 - at)


def test_trees_with_any_flipped_bytes_are_survived(disks: dict[int, tuple[Path, int]]) -> None:
    """Every node that is in use; searches end, and nothing but our errors comes out."""
    disk, _ = disks[8]
    data, chance, errors = disk.read_bytes(), random.Random(1), 0
    block = struct.unpack_from(">I", data, 1064)[0]
    trees = [struct.unpack_from(">I", data, 1024 + fork + 16)[0] * block for fork in (192, 272, 352)]
    used = [at for start in trees for at in range(start, start + 5 * 8192) if data[at]]
    for _ in range(300):
        bad = bytearray(data)
        for _ in range(3):
            bad[chance.choice(used)] = chance.choice((0, 1, 255, chance.randrange(256)))
        opened = open_trees(BytesReader(bytes(bad)))
        assert opened is not None
        for number in FILES:
            try:
                opened.attribute(number, b"com.apple.decmpfs")
                fork = opened.resource_fork(number, "it")
                if fork is not None:
                    fork.read_at(0, 300_000)
            except ImagefsError:
                errors += 1
    assert errors > 5


def test_a_damaged_tree_does_not_hide_its_neighbours(
    disks: dict[int, tuple[Path, int]], tmp_path: Path
) -> None:
    disk, _ = disks[8]
    data = bytearray(disk.read_bytes())
    block = struct.unpack_from(">I", data, 1064)[0]
    at = struct.unpack_from(">I", data, 1024 + 352 + 16)[0] * block
    data[at + 16 : at + 20] = b"\xff\xff\xff\xff"
    (tmp_path / "bad").write_bytes(data)
    fs = open_filesystem(FileReader(tmp_path / "bad"))
    names = {entry.path for entry in walk(fs, fs.root(), onerror=lambda error: None)}
    assert set(FILES.values()) <= names
    with pytest.raises(BrowseError, match="tree makes no sense"):
        fs.open(fs.lookup(b"/passwords.txt"))


# -- LZVN -------------------------------------------------------------------------------------------

_words = st.lists(
    st.sampled_from([b"the", b" ", b"\0" * 40, b"a" * 300, b"quick brown", b"\xff\xfe"]), max_size=60
)


@settings(max_examples=150)
@given(st.one_of(_words.map(b"".join), st.binary(max_size=400)), st.binary(max_size=12))
def test_lzvn_is_what_apple_packed(data: bytes, behind: bytes) -> None:
    """Whatever lies behind the end of a block: there may be something on real disks."""
    packed = mac.lzvn(data)
    if not packed or not data:
        return
    assert lzvn.decompress(packed + behind, len(data)) == data
    assert unpack_lzvn(packed + behind, len(data)) == data
    for wrong in (len(data) - 1, len(data) + 1):
        with pytest.raises(ValueError):
            lzvn.decompress(packed, wrong)
    for cut in range(len(packed) - 8):
        with pytest.raises(ValueError):
            lzvn.decompress(packed[:cut], len(data))


def test_lzvn_of_programs() -> None:
    """Far and long matches."""
    for at in range(0, 1_000_000, 65536):
        data = PROGRAM[at : at + 65536]
        assert lzvn.decompress(mac.lzvn(data), 65536) == data
    data = pattern(30_000) + bytes(35_000)
    assert lzvn.decompress(mac.lzvn(data), len(data)) == data


@given(st.binary(max_size=300), st.integers(1, 1000))
def test_any_bytes_are_survived(data: bytes, size: int) -> None:
    for unpack in (
        lzvn.decompress,
        unpack_lzvn,
        unpack_lzfse,
        lambda data, size: unpack_lzfse(b"bvxn" + data, size),
    ):
        with suppress(ValueError):
            assert len(unpack(data, size)) == size
