"""Reads of a worker that it does not wait for: messages, the shared memory, folders that come next."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import mmap
import os
import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from imagefs.block.views import BytesReader
from imagefs.browse import channel as ch
from imagefs.browse import workers
from imagefs.browse.ahead import Ahead
from imagefs.browse.bigdir import Damage, ExtNames, Name, Names
from imagefs.browse.channel import Channel, ChannelClosed
from imagefs.browse.content import MappedReader, Piece, PieceCache
from imagefs.browse.soon import Soon
from imagefs.browse.tskhandle import Facts
from imagefs.browse.worker import _ChannelReader
from imagefs.errors import BrowseError, ImagefsError
from imagefs.interfaces import Entry, EntryType
from tests.support.images import noise

DISK = noise(9 << 20)


class Parent:
    """Answers reads when it is told to, as ``workers.py`` does; the newest answer is ``FAILED`` where ``fails``."""

    def __init__(self, channel: Channel, area: mmap.mmap) -> None:
        self.channel, self.area = channel, area
        self.asked: list[tuple[bytes, list[tuple[int, int]]]] = []
        self.fails = False

    def answer(self) -> None:
        letter, body = self.channel.receive()
        ranges = list(struct.iter_unpack("<QQ", body))
        self.asked.append((letter, ranges))
        if self.fails:
            self.channel.send(ch.FAILED, b"")
            return
        at = ch.MAX_READ if letter == ch.READ_MANY else 0
        data = b"".join(DISK[start : start + length] for start, length in ranges)
        self.area[at : at + len(data)] = data
        self.channel.send(ch.BYTES, ch.COUNT.pack(len(data)))

    @contextlib.contextmanager
    def answering(self, count: int) -> Iterator[None]:
        def run() -> None:
            for _ in range(count):
                self.answer()

        thread = threading.Thread(target=run)
        thread.start()
        yield
        thread.join()


@pytest.fixture
def ends() -> Iterator[tuple[Parent, _ChannelReader]]:
    ours, theirs = socket.socketpair()
    with ours, theirs, ch.new_area() as (descriptor, area):
        there = ch.map_area(os.dup(descriptor))
        reader = _ChannelReader(Channel(theirs), there, len(DISK))
        yield Parent(Channel(ours), area), reader


def test_messages_that_come_together_are_told_apart() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        one, other = Channel(ours), Channel(theirs)
        said = [(ch.READ, b"a"), (ch.CALL, b""), (ch.BYTES, noise(3000)), (ch.PORTION, noise(500_000))]

        def say() -> None:
            for each in said:
                one.send(*each)

        thread = threading.Thread(target=say)
        thread.start()
        assert [other.receive() for _ in said] == said
        thread.join()
        assert not other.waiting()
        one.send(*said[0])
        one.send(*said[1])
        assert other.receive() == said[0]
        assert other.waiting()
        assert other.receive() == said[1]
        one.send(ch.READ, b"a")
        ours.sendall(struct.pack("<cI", b"r", ch.MAX_MESSAGE + 1))
        assert other.receive() == (ch.READ, b"a")
        with pytest.raises(ChannelClosed, match="cannot be"):
            other.receive()


def test_the_shared_memory_cannot_be_taken_away() -> None:
    with ch.new_area() as (descriptor, area):
        for size in (0, 4096, ch.AREA + 1):
            with pytest.raises(OSError, match="not permitted"):
                os.ftruncate(descriptor, size)
        with pytest.raises(OSError, match="not permitted"):
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
        with pytest.raises(OSError, match="not permitted"):
            mmap.mmap(descriptor, ch.AREA)
        with pytest.raises(OSError, match="not permitted"):
            os.pwrite(descriptor, b"1", 0)
        area[ch.AREA - 1] = 7
        there = ch.map_area(os.dup(descriptor))
        assert there[ch.AREA - 1] == 7
        with pytest.raises(TypeError):
            there[0] = 1


def test_shared_memory_of_a_python_that_was_built_for_old_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create")
    with ch.new_area() as (descriptor, area):
        area[5] = 7
        assert ch.map_area(os.dup(descriptor))[5] == 7
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())
    with pytest.raises(OSError, match="memfd_create"), ch.new_area():
        pass


def without_process() -> workers.Worker:
    """A worker that is whoever writes to the other end of its channel; that and its memory are set by the caller."""
    worker = object.__new__(workers.Worker)
    worker._reader, worker._limits = BytesReader(DISK), workers.Limits()
    worker._answer, worker._left = None, 9.0
    return worker


def test_whoever_says_more_before_it_has_its_answer_is_not_understood() -> None:
    ours, theirs = socket.socketpair()
    worker = without_process()
    read = struct.pack("<cIQQ", ch.READ, 16, 0, 10)
    with ours, theirs, ch.new_area() as (_, worker._area):
        worker._channel = Channel(ours)
        theirs.sendall(struct.pack("<cIQQ", ch.READ_MANY, 16, 5, 10) + read)
        worker._step()
        worker._step()
        assert worker._area[:10] == DISK[:10]
        assert worker._area[ch.MAX_READ : ch.MAX_READ + 10] == DISK[5:15]
        theirs.sendall(read + read)
        with pytest.raises(ChannelClosed, match="cannot be"):
            worker._step()


def test_no_more_than_some_reads_are_answered_before_we_go_on() -> None:
    ours, theirs = socket.socketpair()
    worker = without_process()
    with ours, theirs, ch.new_area() as (_, worker._area):
        worker._channel = Channel(ours)
        theirs.sendall(struct.pack("<cIQQ", ch.READ_MANY, 16, 5, 10) * 100)
        assert not worker.serve()
        assert worker._channel.waiting()
        theirs.setblocking(False)
        assert len(theirs.recv(9 * 100)) == 9 * 64


def test_what_is_fetched_is_waited_for_when_it_is_read(ends: tuple[Parent, _ChannelReader]) -> None:
    parent, reader = ends
    reader.fetch([(5000, 100), (0, 50), (5100, 10), (len(DISK) - 5, 6)])
    assert not reader.is_here()
    with parent.answering(1):
        assert reader.read_at(5005, 105) == DISK[5005:5110]
    assert reader.is_here()
    assert reader.read_at(10, 40) == DISK[10:50]
    assert parent.asked == [(ch.READ_MANY, [(0, 50), (5000, 110)])]
    with parent.answering(1):
        assert reader.read_at(10, 41) == DISK[10:51]
    assert parent.asked[1:] == [(ch.READ, [(10, 41)])]


def test_another_read_meanwhile(ends: tuple[Parent, _ChannelReader]) -> None:
    parent, reader = ends
    reader.fetch([(5000, 100)])
    with parent.answering(2):
        assert reader.read_at(7, 1000) == DISK[7:1007]
    assert reader.read_at(5000, 100) == DISK[5000:5100]
    with parent.answering(1):
        assert reader.read_at(7, 1000) == DISK[7:1007], "a single read is not kept"


def test_the_next_fetch_takes_the_place_of_the_last(ends: tuple[Parent, _ChannelReader]) -> None:
    parent, reader = ends
    with parent.answering(2):
        reader.fetch([(5000, 100)])
        reader.fetch([(9000, 100), (20_000, 10)])
        assert reader.read_at(9000, 100) == DISK[9000:9100]
    with parent.answering(1):
        assert reader.read_at(5000, 100) == DISK[5000:5100]


def test_an_answer_that_is_taken_in_elsewhere(ends: tuple[Parent, _ChannelReader]) -> None:
    """As the worker's loop does, which waits for a request."""
    parent, reader = ends
    reader.fetch([(5000, 100)])
    parent.answer()
    reader.take_in(*reader._channel.receive())
    assert reader.read_at(5000, 100) == DISK[5000:5100]


def test_a_fetch_that_fails_is_read_again(ends: tuple[Parent, _ChannelReader]) -> None:
    parent, reader = ends
    parent.fails = True
    reader.fetch([(5000, 100)])
    parent.answer()
    parent.fails = False
    with parent.answering(1):
        assert reader.read_at(5000, 100) == DISK[5000:5100]


def test_no_more_is_fetched_than_there_is_room_for(ends: tuple[Parent, _ChannelReader]) -> None:
    parent, reader = ends
    reader.fetch([(0, 3 << 20), (4 << 20, 1 << 20), (6 << 20, 1)])
    parent.answer()
    assert parent.asked == [(ch.READ_MANY, [(0, 3 << 20), (4 << 20, 1 << 20)])]
    assert reader.read_at(4 << 20, 1 << 20) == DISK[4 << 20 : 5 << 20]
    reader.fetch((at, 1) for at in range(0, 4000, 2))
    parent.answer()
    assert len(parent.asked[1][1]) == ch.MAX_RANGES
    with parent.answering(3):
        assert reader.read_at(0, len(DISK)) == DISK


# -- folders that come next ------------------------------------------------------------------------


def dirent(name: str, inode: int, *, folder: bool) -> bytes:
    raw = name.encode()
    length = (8 + len(raw) + 3) // 4 * 4
    return struct.pack("<IHBB", inode, length, len(raw), 2 if folder else 1) + raw.ljust(length - 8, b"\0")


class Tree:
    """A tree of folders, each a block of 1 KiB at its number, on a reader that is slow: what was fetched is there
    after so many looks. Counts reads that would have to be waited for."""

    def __init__(self, folders: dict[int, list[int]], *, slow: int = 3) -> None:
        blocks = {
            number: b"".join(dirent(f"folder {each}", each, folder=True) for each in inside)
            + dirent("file", 100_000 + number, folder=False)
            for number, inside in folders.items()
        }
        self.folders, self.slow = folders, slow
        disk = b"".join(blocks.get(number, b"").ljust(1024, b"\0") for number in range(max(folders) + 1))
        self.size = len(disk)
        self._disk = BytesReader(disk)
        self._fetched: set[int] = set()
        self._looks = 0
        self.waits, self.singles, self.fetches = 0, 0, 0

    def fetch(self, ranges: object) -> None:
        self._fetched = {at // 1024 for at, _ in ranges}  # type: ignore[attr-defined]
        self._looks = self.slow
        self.fetches += 1

    def is_here(self) -> bool:
        self._looks -= 1
        return self._looks < 0

    def read_at(self, offset: int, length: int, /) -> bytes:
        if offset // 1024 not in self._fetched:
            self.singles += 1
        elif self._looks >= 0:
            self.waits += 1
            self._looks = -1
        return self._disk.read_at(offset, length)

    def extents(self, offset: int, length: int, /) -> Iterator[object]:
        return iter(())

    def close(self) -> None:
        pass

    def names(self, folder: Entry) -> Names | None:
        number = int(folder.inode)
        if number not in self.folders:
            raise BrowseError("no such folder")
        if number % 500 == 499:
            return None  # not small
        pieces = [Piece(0, 1024, number * 1024)]
        return ExtNames(MappedReader(self, 1024, pieces, label="folder"), 1024, pieces)  # type: ignore[arg-type]

    def facts(self) -> Facts:
        return Facts("ext4", self, 1024, 0)  # type: ignore[arg-type]


def walk_through(tree: Tree, soon: Soon) -> list[int]:
    """The folders in the order of a walk, each told of before it is listed, with those that come behind it."""
    seen, stack = [], [0]
    while stack:
        soon.expect([Entry(b"", EntryType.DIRECTORY, 0, str(number)) for number in reversed(stack[-100:])])
        number = stack.pop()
        seen.append(number)
        entry = Entry(b"", EntryType.DIRECTORY, 0, str(number))
        names = soon.take(entry)
        known = [] if names is None else [each.inode for _, block in names.blocks(Damage()) for each in block]
        inside = tree.folders.get(number, [])
        assert names is None or known == [*inside, 100_000 + number]
        assert names is not None or number % 500 == 499 or number not in tree.folders
        stack += reversed(inside)
    return seen


def heap(count: int, width: int) -> dict[int, list[int]]:
    """A tree in which folder n holds n * width + 1 and those behind it."""
    return {
        number: [each for each in range(number * width + 1, number * width + width + 1) if each < count]
        for number in range(count)
    }


@pytest.mark.parametrize(("count", "width"), [(1, 2), (3000, 2), (3000, 7), (3000, 25)])
def test_folders_are_known_before_they_are_listed(count: int, width: int) -> None:
    tree = Tree(heap(count, width))
    soon = Soon(tree.facts(), tree.names)
    assert sorted(walk_through(tree, soon)) == list(range(count))
    assert tree.waits <= min(20, tree.fetches // 3 + 1), "what comes next is asked for in time"
    assert tree.singles == 0
    assert tree.fetches <= 1 + count // 30


def test_folders_inside_themselves_and_ones_that_are_not_there() -> None:
    folders = heap(500, 3)
    folders[7] = [7, 1, 0, 400_000]
    tree = Tree(folders)
    soon = Soon(tree.facts(), tree.names)
    entries = [Entry(b"", EntryType.DIRECTORY, 0, str(number)) for number in (0, 7, 400_000)]
    for _ in range(300):
        soon.expect(entries)
    assert soon.take(entries[2]) is None
    names = soon.take(entries[1])
    assert names is not None
    assert names.named(b"folder 7") == [Name(b"folder 7", 7, None, EntryType.DIRECTORY)]


def test_a_folder_that_names_itself_often_is_seen_once() -> None:
    tree = Tree({0: [1, 1, 1], 1: [1] * 30, 2: [], 3: []})
    soon = Soon(tree.facts(), tree.names)
    soon.expect([entry_of(1)])
    known, unknown = soon._coming([entry_of(2), entry_of(1), entry_of(2), entry_of(3)])
    assert (known, unknown) == (0, [2, 3])


def test_whoever_fetches_something_else_loses_nothing() -> None:
    tree = Tree(heap(2000, 4))
    soon = Soon(tree.facts(), tree.names)
    soon.expect([Entry(b"", EntryType.DIRECTORY, 0, "0")])
    others = [each for number in range(1000, 1010) if (each := tree.names(entry_of(number))) is not None]
    soon.fetch_blocks(others)
    soon.fetch_entries([])
    assert tree.singles <= 1
    assert soon.take(entry_of(0)) is not None


def test_a_request_names_no_more_folders_than_a_message_takes() -> None:
    ahead = Ahead()
    for length in (100, 10_000):
        folders = [
            Entry(b"/%d/" % number + b"d" * length, EntryType.DIRECTORY, 0, str(number))
            for number in range(3000)
        ]
        ahead.expect(folders, 0)
        for folder in folders[:5]:
            known, named, _ = ahead.take("children", folder)
            assert known is None
        assert named == folders[5:][: min(1000, (1 << 20) // len(folders[10].path))]
        ahead = Ahead()


def entry_of(number: int) -> Entry:
    return Entry(b"", EntryType.DIRECTORY, 0, str(number))


def test_what_cannot_be_read_is_nobodys_error() -> None:
    class Broken(Tree):
        def read_at(self, offset: int, length: int, /) -> bytes:
            raise ImagefsError("unreadable")

    tree = Broken(heap(100, 4))
    soon = Soon(tree.facts(), tree.names)
    soon.expect([entry_of(0)])
    names = soon.take(entry_of(0))
    assert names is not None
    assert names.named(b"file") == []


def test_pieces_whose_place_cannot_be_read_are_nobodys_error() -> None:
    def place(number: int) -> list[tuple[int, int]]:
        raise ImagefsError("the table of inodes is unreadable")

    cache, fetched = PieceCache(bytes, 1000), list[tuple[int, int]]()
    assert list(cache.expect(range(10), place, fetched.extend)) == [None]
    assert fetched == []
    assert cache.get(3) == bytes(3)
