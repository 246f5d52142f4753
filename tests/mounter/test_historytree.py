"""The tree of points in time, without FUSE: what is opened when, what is closed again, and what it is called."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest

from imagefs.block.views import BytesReader
from imagefs.errors import ChainError, ImagefsError, PathNotFound, StoreError
from imagefs.interfaces import Entry, Reader
from mounter.errnos import errno_of
from mounter.historytree import FRESH, IDLE, HistoryTree
from mounter.operations import MountOperations
from mounter.points import HistorySpec, OpenedPoint, PointSpec
from mounter.requests import LOOKUP, Requests
from mounter.tree import VolumeSpec
from tests.mounter.fakes import FakeFileSystem, directory, file, small_filesystem, spec_of


class OnceOpen(FakeFileSystem):
    """Opens nothing any more when it is closed."""

    def open(self, entry: Entry, /) -> Reader:
        assert not self.closed
        return super().open(entry)


@dataclass
class FakeSet:
    """Points by name; ``opened`` and ``closed`` tell what became of them."""

    names: list[bytes]
    opened: list[bytes] = field(default_factory=list)
    closed: list[bytes] = field(default_factory=list)
    broken: dict[bytes, ImagefsError] = field(default_factory=dict)
    now: float = 1000.0
    held: int = 0
    looks: int = 0
    specs: Sequence[PointSpec] = ()
    log: list[str] = field(default_factory=list)
    gone: list[bytes] = field(default_factory=list)

    def look(self) -> Sequence[PointSpec]:
        self.looks += 1
        if b"unreachable" in self.names:
            raise StoreError("the set cannot be listed")
        if [spec.name for spec in self.specs] != self.names:
            self.specs = [
                PointSpec(name, b"id " + name, 5, 100, (), "", self._opener(name)) for name in self.names
            ]
        return self.specs

    def _opener(self, name: bytes) -> Callable[[], OpenedPoint]:
        def opener() -> OpenedPoint:
            self.opened.append(name)
            if name in self.broken:
                raise self.broken[name]
            small = small_filesystem()
            system = OnceOpen(list(small.entries.values()), small.content)
            spec = spec_of(BytesReader(name * 10), VolumeSpec("p1", BytesReader(b"raw"), lambda: system))
            return OpenedPoint(spec, self.held, lambda: self.closed.append(name))

        return opener

    def tree(self, **options: int) -> HistoryTree:
        spec = HistorySpec(self.look, "set@history")
        tree = HistoryTree(spec, log=self.log.append, clock=lambda: self.now, **options)
        tree.listen(self.gone.append)
        return tree


def names_in(tree: HistoryTree, path: bytes) -> list[bytes]:
    return [name for name, _ in tree.children(tree.find(path))]


def tree_of_systems(systems: dict[bytes, FakeFileSystem]) -> HistoryTree:
    """A point for each file system, which is its ``p1``."""

    def opener(system: FakeFileSystem) -> Callable[[], OpenedPoint]:
        spec = spec_of(BytesReader(b""), VolumeSpec("p1", BytesReader(b""), lambda: system))
        return lambda: OpenedPoint(spec, 0, lambda: None)

    points = [PointSpec(name, name, 5, 1, open=opener(system)) for name, system in systems.items()]
    return HistoryTree(HistorySpec(lambda: points, "x"), log=print)


def test_the_root_is_listed_without_opening_anything() -> None:
    some = FakeSet([b"A", b"B"])
    tree = some.tree()
    assert names_in(tree, b"/") == [b"A", b"B", b"latest"]
    assert tree.find(b"/A").attributes.is_directory
    assert tree.readlink(tree.find(b"/latest")) == b"B"
    assert tree.find(b"/").attributes.nlink == 4
    assert tree.size == 100
    assert some.opened == []
    assert names_in(tree, b"/B") == [b"disk.raw", b"p1.raw", b"image.json", b"p1"]
    assert some.opened == [b"B"]
    tree.close()
    assert some.closed == [b"B"]


def test_files_of_a_point_read_as_alone() -> None:
    tree = FakeSet([b"A", b"B"]).tree()
    for path, data in ((b"/B/disk.raw", b"B" * 10), (b"/A/p1/etc/fstab", b"# nothing\n")):
        reader = tree.open(tree.find(path)).reader
        assert reader.read_at(0, 100) == data
        assert reader.size == len(data)
        reader.close()
        reader.close()
    assert tree.readlink(tree.find(b"/A/p1/etc/link")) == b"fstab"
    assert tree.states(tree.find(b"/A/disk.raw"))["stored"] == 10
    assert tree.xattrs(tree.find(b"/A/p1/etc")) is None
    assert tree.streams(tree.find(b"/A/p1/etc")) == []
    for missing in (b"/C", b"/A/p2", b"/A/p1/none", b"/latest/p1"):
        with pytest.raises(PathNotFound):
            tree.find(missing)


def test_numbers_are_distinct_between_points_and_the_same_each_time() -> None:
    some = FakeSet([b"A", b"B"])

    def numbers(tree: HistoryTree, path: bytes) -> list[int]:
        node = tree.find(path)
        found = [node.attributes.inode]
        if node.attributes.is_directory:
            for name, attributes in tree.children(node):
                below = numbers(tree, path.rstrip(b"/") + b"/" + name)
                assert below[0] == attributes.inode
                found += below
        return found

    seen = numbers(some.tree(), b"/")
    assert len(set(seen)) == len(seen) == 24
    assert all(0 < number < 2**64 for number in seen)
    assert numbers(some.tree(), b"/") == seen


def test_hard_links_share_their_number_within_a_point() -> None:
    links = FakeFileSystem([file(b"/one", 1, inode="77"), file(b"/two", 1, inode="77")])
    tree = tree_of_systems({b"A": links})
    assert tree.find(b"/A/p1/one").attributes.inode == tree.find(b"/A/p1/two").attributes.inode


def test_what_was_used_longest_ago_makes_room() -> None:
    some = FakeSet([b"A", b"B", b"C", b"D"])
    tree = some.tree(max_points=2)
    held = tree.open(tree.find(b"/A/disk.raw")).reader
    for name in (b"B", b"C", b"D"):
        some.now += 1
        tree.find(b"/" + name + b"/disk.raw")
    assert some.closed == [b"B", b"C"]  # A is in use
    assert some.gone == [b"B", b"C"]
    assert held.read_at(0, 3) == b"AAA"
    some.now += 1
    held.close()
    some.now += 1
    tree.find(b"/B/disk.raw")
    assert some.closed[2:] == [b"D"]


def test_large_points_make_room_earlier() -> None:
    some = FakeSet([b"A", b"B", b"C"], held=40 << 20)
    tree = some.tree()
    for name in some.names:
        some.now += 1
        tree.find(b"/" + name + b"/disk.raw")
    assert some.closed == [b"A", b"B"]


def test_idle_points_are_closed_and_open_again() -> None:
    some = FakeSet([b"A"])
    tree = some.tree()
    node, file = tree.find(b"/A/p1/etc"), tree.find(b"/A/p1/etc/fstab")
    listing = tree.children(node)
    next(listing)
    some.now += IDLE + 1
    tree.tidy()
    assert some.closed == []  # a listing is open
    list(listing)
    some.now += IDLE - 1
    tree.tidy()
    assert some.closed == []
    some.now += 2
    tree.tidy()
    assert some.closed == [b"A"]
    assert [name for name, _ in tree.children(node)] == [b"fstab", b"link"]  # found again, as what follows
    assert tree.open(file).reader.read_at(0, 9) == b"# nothing"
    assert some.opened == [b"A", b"A"]


def test_whoever_comes_while_a_point_is_to_be_closed_keeps_it() -> None:
    some = FakeSet([b"A"])
    tree = some.tree()
    held = tree.open(tree.find(b"/A/disk.raw")).reader
    tree._close(tree._names[b"A"])
    assert some.closed == []
    assert held.read_at(0, 1) == b"A"


def test_what_was_in_use_makes_room_later() -> None:
    some = FakeSet([b"A", b"B", b"C"])
    tree = some.tree(max_points=1)
    readers = [tree.open(tree.find(b"/" + name + b"/disk.raw")).reader for name in some.names]
    tree.tidy()
    assert some.closed == []
    for reader in readers:
        some.now += 1
        reader.close()
    tree.tidy()
    assert some.closed == [b"A", b"B"]


def test_points_come_and_go() -> None:
    some = FakeSet([b"A"])
    tree = some.tree()
    held = tree.open(tree.find(b"/A/disk.raw")).reader
    some.names = [b"B"]
    assert tree.find(b"/A").attributes.is_directory  # for a moment
    some.now += FRESH
    assert names_in(tree, b"/") == [b"B", b"latest"]
    with pytest.raises(PathNotFound):
        tree.find(b"/A/disk.raw")
    assert some.gone == [b"A"]
    assert held.read_at(0, 1) == b"A"
    held.close()
    tree.tidy()
    assert some.closed == [b"A"]
    some.names = []
    some.now += FRESH
    assert names_in(tree, b"/") == []
    with pytest.raises(PathNotFound):
        tree.find(b"/latest")


def test_a_set_out_of_reach_leaves_what_is_known() -> None:
    some = FakeSet([b"A"])
    tree = some.tree()
    some.names = [b"unreachable"]
    some.now += FRESH
    assert names_in(tree, b"/") == [b"A", b"latest"]
    assert "cannot be listed" in some.log[0]


def test_the_set_is_not_looked_at_for_every_request() -> None:
    some = FakeSet([b"A"])
    tree = some.tree()
    for _ in range(100):
        tree.find(b"/")
        with pytest.raises(PathNotFound):
            tree.find(b"/.hidden")
    assert some.looks == 1


def test_a_point_that_cannot_be_opened_says_why_and_hurts_no_other() -> None:
    some = FakeSet([b"A", b"B"])
    some.broken[b"A"] = ChainError("the parent is not in the set", hint="put it back")
    tree = some.tree()
    assert names_in(tree, b"/A") == [b"image.txt"]
    text = tree.find(b"/A/image.txt")
    said = tree.open(text).reader.read_at(0, 200)
    assert said == b"this image cannot be shown: the parent is not in the set; put it back\n"
    assert len(said) == text.attributes.size
    with pytest.raises(PathNotFound):
        tree.find(b"/A/disk.raw")
    assert names_in(tree, b"/B")[0] == b"disk.raw"
    assert some.opened == [b"A", b"B"]  # and not again for every question
    del some.broken[b"A"]
    some.names = [b"A", b"B", b"C"]
    some.now += FRESH
    tree.find(b"/")
    assert names_in(tree, b"/A")[0] == b"disk.raw"


def test_a_store_that_fails_is_asked_again() -> None:
    some = FakeSet([b"A"])
    some.broken[b"A"] = StoreError("the disk is away")
    tree = some.tree()
    with pytest.raises(StoreError) as raised:
        tree.find(b"/A/disk.raw")
    assert errno_of(raised.value) == errno.EIO
    del some.broken[b"A"]
    assert tree.find(b"/A/disk.raw").attributes.size == 10


def test_damaged_objects_are_texts() -> None:
    damaged = PointSpec(b"x.imagefs.txt", b"o", 7, reason="x.imagefs cannot be read: cut short")
    tree = HistoryTree(HistorySpec(lambda: [damaged], "x"), log=print)
    assert names_in(tree, b"/") == [b"x.imagefs.txt"]
    assert (
        tree.open(tree.find(b"/x.imagefs.txt")).reader.read_at(0, 99)
        == b"x.imagefs cannot be read: cut short\n"
    )
    assert tree.find(b"/").attributes.nlink == 2
    assert tree.size == 0


def test_what_was_said_of_points_holds_for_a_second_only() -> None:
    tree = FakeSet([b"A"]).tree()
    requests = Requests(MountOperations(tree, log=print))

    def seconds(node: int, name: bytes) -> tuple[int, int]:
        answer = requests.answer(LOOKUP, node, memoryview(name + b"\0"))
        assert answer is not None
        return int.from_bytes(answer[:8], "little"), int.from_bytes(answer[16:24], "little")

    point, kept = seconds(1, b"A")
    assert kept == 1
    assert seconds(1, b"none") == (0, 1)
    assert seconds(point, b"disk.raw")[1] == 3600
    assert seconds(point, b"p9") == (0, 1), "the point may only be broken for now"
    tree.tidy()
    assert requests.to_forget() is None


def test_the_kernel_is_asked_to_forget_a_closed_point() -> None:
    some = FakeSet([b"A", b"B"])
    tree = some.tree(max_points=1)
    requests = Requests(MountOperations(tree, log=print))
    tree.find(b"/A/disk.raw")
    tree.find(b"/B/disk.raw")  # closes A, of which the kernel knows nothing
    assert requests.to_forget() is None
    requests.answer(LOOKUP, 1, memoryview(b"B\0"))
    tree.find(b"/A/disk.raw")
    assert requests.crowded.is_set()
    asked = requests.to_forget()
    assert asked is not None
    assert asked.endswith(b"B\0")
    assert int.from_bytes(asked[:8], "little") == 1


def test_the_same_entries_are_not_mixed_up_between_points() -> None:
    systems = {
        b"A": FakeFileSystem([directory(b"/d", inode="5"), file(b"/d/x", 1, inode="6")]),
        b"B": FakeFileSystem([directory(b"/d", inode="5"), file(b"/d/x", 2, inode="6")]),
    }
    tree = tree_of_systems(systems)
    for _ in range(2):
        for name, size in ((b"A", 1), (b"B", 2)):
            assert names_in(tree, b"/" + name + b"/p1/d") == [b"x"]
            assert tree.find(b"/" + name + b"/p1/d/x").attributes.size == size


def test_many_threads_through_few_open_points() -> None:
    some = FakeSet([bytes([65 + number]) for number in range(8)])
    tree = some.tree(max_points=2)

    def read(number: int) -> bytes:
        name = some.names[number * 5 % 8]
        assert [each for each, _ in tree.children(tree.find(b"/" + name + b"/p1/etc"))] == [b"fstab", b"link"]
        reader = tree.open(tree.find(b"/" + name + b"/p1/etc/fstab")).reader
        try:
            return reader.read_at(0, 9)
        finally:
            reader.close()

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(read, range(400))) == {b"# nothing"}
    tree.tidy()
    assert len(some.opened) - len(some.closed) <= 2
    tree.close()
    assert sorted(some.opened) == sorted(some.closed)
