"""ext and NTFS read without a worker: the same answers as The Sleuth Kit's, and none where only it knows."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from imagefs.block.views import BytesReader
from imagefs.browse import near
from imagefs.browse.content import MappedReader, Piece
from imagefs.browse.mft import Mft
from imagefs.browse.near import NearFileSystem, open_near
from imagefs.browse.ntfsrecords import NtfsRecords
from imagefs.browse.opening import open_filesystem
from imagefs.browse.records import ByRecords
from imagefs.browse.walk import walk
from imagefs.errors import BrowseError, ImagefsError
from imagefs.interfaces import Entry, EntryType, FileSystem, KeepsRecords, ListsNames, Reader
from tests.browse.disks import BreakingReader, FileReader
from tests.support.oracles import unpacked_corpus_file
from tests.support.past import Past

KINDS = ("ext4", "ext2", "ntfs")
#: Disks of others: with lists of attributes, reparse points, compressed and sparse files; damaged in many ways.
OTHERS = (
    "util-linux/tests/ts/blkid/images-fs/ntfs.img.xz",
    "e2fsprogs/tests/f_extents/image.gz",
    "e2fsprogs/tests/f_inlinedata_repair/image.gz",
    "e2fsprogs/tests/f_badsymlinks2/image.gz",
    "e2fsprogs/tests/f_dup_de_crypt/image.gz",
    "e2fsprogs/tests/f_bad_encryption/image.gz",
)


class Opened:
    """A file system near, and how often the one apart was asked for."""

    def __init__(self, reader: Reader, after: FileSystem | None = None) -> None:
        self.reader = reader
        self.asked: list[FileSystem | None] = []
        self.fs = open_near(reader, self._apart, after)

    def _apart(self, spare: FileSystem | None) -> FileSystem:
        self.asked.append(spare)
        return open_filesystem(self.reader)

    @property
    def records(self) -> KeepsRecords:
        assert isinstance(self.fs, KeepsRecords)
        return self.fs


@pytest.fixture(params=KINDS)
def volume(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(request.param)
    return path


def told(work: Callable[[], object]) -> object:
    try:
        return work()
    except ImagefsError as error:
        return type(error), error.message


def by_records(fs: FileSystem, size: int) -> list[object]:
    """All that its records tell, and each file's content."""
    assert isinstance(fs, KeepsRecords)
    numbers = [number for table in fs.tables() for number in range(table.first, table.end)][:2000]
    entries = fs.entries(numbers)
    said = [fs.kind, fs.case_insensitive, fs.tables(), told(fs.root), entries, fs.owners(numbers)]
    said += [fs.identities(numbers), fs.links(numbers), fs.listed(numbers), fs.structures()]
    said += [fs.holdings([[0, size // 2]]), fs.trace(b"/no/such/path"), fs.footprint(entries[10:11])]
    for entry in entries:
        if "unreadable" not in entry.flags:
            said += [told(partial(content, fs, entry)), told(partial(fs.places, entry))]
    return said


def content(fs: FileSystem, entry: Entry) -> bytes:
    if entry.type is EntryType.SYMLINK:
        return fs.readlink(entry)
    reader = fs.open(entry)
    return reader.read_at(0, min(reader.size, 1 << 20))


def test_records_tell_the_same(volume: Path) -> None:
    reader = FileReader(volume)
    opened = Opened(reader)
    assert by_records(opened.fs, reader.size) == by_records(open_filesystem(reader), reader.size)
    assert isinstance(opened.fs, NearFileSystem)


def test_names_tell_the_same(volume: Path) -> None:
    opened, other = Opened(FileReader(volume)).fs, open_filesystem(FileReader(volume))
    assert isinstance(opened, ListsNames)
    assert isinstance(other, ListsNames)
    walked, errors = (
        open_filesystem(FileReader(volume)),
        list[ImagefsError](),
    )  # who listed a folder keeps entries
    entries = [walked.root(), *walk(walked, walked.root(), onerror=errors.append)]
    assert not errors
    for folder in (each for each in entries if each.type is EntryType.DIRECTORY):
        assert list(opened.names(folder)) == list(other.names(folder))


def test_a_name_is_found_as_by_listing(volume: Path) -> None:
    """Each name of each folder, in no other case, and none that is only a part of one."""
    fs = open_filesystem(FileReader(volume))
    assert isinstance(fs, ByRecords)
    records = fs._records
    assert records is not None
    numbers = [number for table in fs.tables() for number in range(table.first, table.end)]
    links = {number: records.listed(number) for number in numbers}
    every = {link.name for listed in links.values() for link in listed}
    assert len(every) > 8
    for number, listed in links.items():
        for name in every if listed else ():
            for wanted in (name, name.swapcase(), name[1:], name[:-1]):
                assert records.named(number, wanted) == [each for each in listed if each.name == wanted]


@pytest.mark.parametrize("name", OTHERS)
def test_disks_of_others_tell_the_same(name: str, tmp_path: Path) -> None:
    reader = FileReader(unpacked_corpus_file(name, tmp_path))
    opened = Opened(reader)
    assert by_records(opened.fs, reader.size) == by_records(open_filesystem(reader), reader.size)
    assert opened.asked, "these have something that only The Sleuth Kit knows"


def test_nothing_is_started_for_what_is_plain(volume: Path) -> None:
    opened = Opened(FileReader(volume))
    root = opened.fs.root()
    assert isinstance(opened.fs, NearFileSystem)
    for named in list(opened.fs.names(root)):
        (*_, entry) = opened.records.trace(b"/" + named.name)
        assert opened.records.footprint([root, entry])
        if entry.type is EntryType.FILE and not named.name.startswith(b"$"):
            content(opened.fs, entry)
            opened.fs.places(entry)
    assert not opened.asked


def test_an_exception_here_is_no_answer(volume: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Damage that no decoder foresees costs the start of a worker."""
    opened, raised = Opened(FileReader(volume)), []

    def places(*_: object) -> None:
        raised.append(1)
        raise IndexError("something that nobody thought of")

    root = opened.fs.root()
    monkeypatch.setattr(near.Decoders, "places", places)
    assert opened.fs.places(root) == open_filesystem(FileReader(volume)).places(root)
    assert (len(raised), len(opened.asked)) == (1, 1)


@pytest.mark.parametrize(("limit", "value"), [("_SECONDS", -1.0), ("_MEMORY", -(1 << 40))])
def test_what_takes_too_much_is_left_to_a_worker(
    volume: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: float
) -> None:
    opened = Opened(FileReader(volume))
    monkeypatch.setattr(near, limit, value)
    assert opened.fs.root() == open_filesystem(FileReader(volume)).root()
    assert len(opened.asked) == 1
    monkeypatch.undo()
    opened.fs.places(opened.fs.root())
    assert isinstance(opened.fs, NearFileSystem)
    assert opened.fs._own is None, "once was enough"


def test_what_cannot_be_read_is_told_by_who_is_asked_then(ext4: Path) -> None:
    reader = BreakingReader(FileReader(ext4), 0, 1 << 40, broken=False)
    opened = Opened(reader)
    reader.broken = True
    with pytest.raises(ImagefsError, match="chunk 17"):
        opened.records.holdings([[0, 1 << 20]])


def test_any_other_is_apart_at_once(fat: Path) -> None:
    assert len(Opened(FileReader(fat)).asked) == 1


def test_a_boot_sector_of_before_is_left_to_the_sleuth_kit(ext4: Path, tmp_path: Path) -> None:
    path = tmp_path / "both"
    path.write_bytes(ext4.read_bytes())
    with path.open("r+b") as stream:
        os.pwrite(stream.fileno(), b"\x55\xaa", 510)
    assert len(Opened(FileReader(path)).asked) == 1


def test_a_worker_goes_from_hand_to_hand(volume: Path) -> None:
    """The one that was there before is used, given on, or closed."""
    closed: list[object] = []

    class Worker:
        def close(self) -> None:
            closed.append(self)

    spare: FileSystem = Worker()  # type: ignore[assignment]
    first = Opened(FileReader(volume), spare)
    second = Opened(FileReader(volume), first.fs)
    with pytest.raises(BrowseError, match="closed"):
        first.fs.root()
    second.fs.label  # noqa: B018
    assert second.asked == [spare]
    third = Opened(FileReader(volume), spare)
    third.fs.close()
    assert closed == [spare]
    assert not third.asked


@pytest.fixture
def long_names(tmp_path: Path) -> Path:
    """NTFS with files whose second name took the first out of their record."""
    past = Past(tmp_path, "ntfs")
    with past.mounted() as room:
        for number in range(8):
            (room / f"file {number}").write_bytes(bytes([number]) * 560)
        for number in range(0, 8, 2):
            (room / f"file {number}").rename(room / f"file {number} {'with a long name ' * 6}")
    return past.volume


def test_a_list_of_attributes_that_takes_only_names_away(long_names: Path) -> None:
    reader = FileReader(long_names)
    opened, other = Opened(reader), open_filesystem(reader)
    assert isinstance(other, KeepsRecords)
    numbers = [int(each.inode.partition("-")[0]) for each in other.children(other.root()) if each.size == 560]
    assert len(numbers) == 8
    odd = [number for number in numbers if other._facts.mft.get(number) is None]  # type: ignore[attr-defined]
    assert odd, "no record has a list"
    entries = opened.records.entries(numbers)
    assert entries == other.entries(numbers)
    assert [content(opened.fs, each) for each in entries] == [content(other, each) for each in entries]
    assert not opened.asked


def listing_record(number: int, *listed: tuple[int, int]) -> bytes:
    """Record ``number`` with a list of attributes: of which type, and in which record."""
    rows = b"".join(struct.pack("<IHBBQQH6x", kind, 32, 0, 26, 0, at | 1 << 48, 0) for kind, at in listed)
    attribute = struct.pack("<IIBBHHHIHH", 32, 24 + len(rows), 0, 0, 24, 0, 0, len(rows), 24, 0) + rows
    head = struct.pack("<4sHHQHHHHIIQHHI", b"FILE", 48, 3, 0, 1, 1, 56, 1, 0, 1024, 0, 9, 0, number)
    raw = bytearray((head.ljust(56, b"\0") + attribute + b"\xff" * 4).ljust(1024, b"\0"))
    struct.pack_into("<I", raw, 24, 56 + len(attribute) + 8)
    return bytes(raw)


@pytest.mark.parametrize(
    ("listed", "at_home"),
    [
        (((16, 30), (48, 99), (80, 98), (128, 30)), True),
        (((16, 30), (48, 30), (128, 99)), False),
        (((16, 30), (192, 99)), False),
        (((16, 99), (128, 30)), False),
    ],
)
def test_a_list_of_attributes_that_takes_more_away(
    listed: tuple[tuple[int, int], ...], at_home: bool
) -> None:
    reader = BytesReader(listing_record(30, *listed))
    table = MappedReader(
        reader, 31 * 1024, [Piece(0, 30 * 1024, None), Piece(30 * 1024, 1024, 0)], label="$MFT"
    )
    folders: Any = None
    assert NtfsRecords(reader, Mft(table, 1024), 4096, folders).is_at_home(30) is at_home
