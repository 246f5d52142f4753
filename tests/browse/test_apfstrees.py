"""Trees of APFS that are built by hand: what macOS makes seldom, and what only liars make."""

from __future__ import annotations

import struct
import sys
import tracemalloc

import pytest

from imagefs.block.views import BytesReader
from imagefs.browse import apfsdisk
from imagefs.browse.apfsdisk import EXTENT, NAME, SNAPSHOT, Disk, Tree
from imagefs.errors import BrowseError, NotAFileSystem
from tests.browse.apfsdisks import BLOCK, CONTAINER, disk_of, mapped, node, object_map, objects, sealed

#: Blocks that a test adds to the disk have numbers from here on.
FIRST = 1024
_SNAPSHOT_NAME = 11
_AGO = 1 << 20


def grown(*blocks: bytes) -> Disk:
    disk = disk_of("case_insensitive")
    assert len(disk) == FIRST * BLOCK
    return Disk(BytesReader(disk + b"".join(blocks)))


def tree_of(
    *nodes: bytes, at: tuple[int, ...] | None = None, flags: int = 0, sealed_by: int = 0, extents: int = 0
) -> Tree:
    """The tree of a volume in which node n is the object 1000 + n and in the block FIRST + 2 + n; or object n is the
    node ``at[n]``. The last object is the root. ``sealed_by``: the volume is sealed, and the objects have numbers
    from this on."""
    places = range(len(nodes)) if at is None else at
    number = sealed_by or 1000
    entries = [mapped(number + n, 1, FIRST + 2 + place, flags) for n, place in enumerate(places)]
    disk = grown(object_map(FIRST + 1), node(0, *entries, root=True, fixed=True), *nodes)
    (volume,) = disk.volumes()
    root = sealed_by or number + len(entries) - 1
    return Tree(
        disk, volume._replace(map=FIRST, root=root, transaction=9, sealed=bool(sealed_by), extents=extents)
    )


def name(text: bytes, folder: int = 2) -> tuple[bytes, bytes]:
    return struct.pack("<Q", NAME << 60 | folder) + text, text.upper()


def below(child: int, folder: int = 2) -> tuple[bytes, bytes]:
    """An entry of a node that is no leaf."""
    return struct.pack("<Q", NAME << 60 | folder), struct.pack("<Q", child)


def listed(tree: Tree) -> list[tuple[bytes, bytes]]:
    return list(tree.records(2, NAME))


def test_names_are_found_through_levels() -> None:
    leaves = [node(0, name(b"a", 1), name(b"b")), node(0, name(b"c"), name(b"d")), node(0, name(b"e", 3))]
    tree = tree_of(
        *leaves,
        node(1, below(1000, 1), below(1001)),
        node(1, below(1002, 3)),
        node(2, below(1003, 1), below(1004, 3), root=True),
    )
    assert listed(tree) == [(b"b", b"B"), (b"c", b"C"), (b"d", b"D")]


def test_an_empty_tree_has_no_records() -> None:
    assert listed(tree_of(node(0, root=True))) == []


# -- walks end -------------------------------------------------------------------------------------


def test_a_node_that_is_at_two_places_of_a_tree_is_refused() -> None:
    tree = tree_of(node(0, name(b"a")), node(1, below(1000), below(1000), root=True))
    with pytest.raises(BrowseError, match="at two places"):
        listed(tree)


def test_a_block_with_two_numbers_is_at_two_places() -> None:
    tree = tree_of(node(0, name(b"a")), node(1, below(1000), below(1001), root=True), at=(0, 0, 1))
    with pytest.raises(BrowseError, match="at two places"):
        listed(tree)


def test_an_empty_node_under_another_is_refused() -> None:
    tree = tree_of(node(0), node(0, name(b"a")), node(1, below(1000), below(1001), root=True))
    with pytest.raises(BrowseError, match="it is empty"):
        listed(tree)


def test_levels_of_shared_nodes_take_no_time() -> None:
    """What one node under another is 60 times, seven levels deep, would be met 60 ** 7 times."""
    levels = [node(level, *[below(999 + level)] * 60, root=level == 7) for level in range(1, 8)]
    for leaf in (node(0, name(b"a")), node(0, name(b"a", 1)), node(0)):
        with pytest.raises(BrowseError, match="at two places"):
            listed(tree_of(leaf, *levels))


def test_a_node_that_is_its_own_child_is_refused() -> None:
    with pytest.raises(BrowseError, match="another place of its tree"):
        listed(tree_of(node(1, below(1000), root=True)))


def test_a_leaf_that_is_further_up_than_it_says_is_refused() -> None:
    with pytest.raises(BrowseError, match="another place of its tree"):
        listed(tree_of(node(0, name(b"a")), node(2, below(1000), root=True)))


def test_a_tree_has_a_dozen_levels_at_most() -> None:
    disk = grown(*(node(level, below(1000), root=True) for level in (11, 12)))
    assert disk.node(FIRST).level == 11
    with pytest.raises(BrowseError, match="another place of its tree"):
        disk.node(FIRST + 1)


def test_an_object_map_inside_itself_ends() -> None:
    key = struct.pack("<QQ", 5, 0)
    disk = grown(node(1, (key, struct.pack("<Q", FIRST)), root=True, fixed=True))
    with pytest.raises(BrowseError, match="another place of its tree"):
        disk.resolve(FIRST, 5, 1)


# -- order -----------------------------------------------------------------------------------------


def test_entries_of_a_node_are_in_order() -> None:
    entries = name(b"b", 3), name(b"a", 2)
    assert len(grown(node(0, *reversed(entries))).node(FIRST, order=apfsdisk.by_record, level=0).keys) == 2
    with pytest.raises(BrowseError, match=f"block {FIRST} .*not in order"):
        grown(node(0, *entries)).node(FIRST, order=apfsdisk.by_record, level=0)


def test_the_leaves_of_a_tree_are_in_order() -> None:
    tree = tree_of(
        node(0, extent(7, 0, 1), extent(7, 2 * BLOCK, 3), fixed=True),
        node(0, extent(7, BLOCK, 2), fixed=True),
        node(1, under(7, 0, FIRST + 2), under(7, 2 * BLOCK, FIRST + 3), root=True, fixed=True),
        sealed_by=1,
        extents=FIRST + 4,
    )
    with pytest.raises(BrowseError, match="a tree cannot be read: its entries are not in order"):
        list(tree.extents(7))


# -- object maps -----------------------------------------------------------------------------------


def test_an_object_is_where_it_was_at_the_transaction_and_gone_when_it_was_deleted() -> None:
    entries = mapped(5, 2, 100), mapped(5, 4, 200), mapped(5, 6, 200, flags=1), mapped(5, 8, 300, flags=4)
    disk = grown(node(0, *entries, mapped(9, 2, 400), root=True, fixed=True))
    assert [disk.resolve(FIRST, 5, at) for at in (2, 3, 4, 5, 8)] == [
        (100, 0),
        (100, 0),
        (200, 0),
        (200, 0),
        (300, 4),
    ]
    assert disk.resolve(FIRST, 9, _AGO) == (400, 0)
    for number, at in ((5, 1), (5, 6), (5, 7), (6, 9), (9, 1)):
        with pytest.raises(BrowseError, match="the object map does not know it"):
            disk.resolve(FIRST, number, at)


def test_a_node_of_an_object_map_that_fails_its_checksum_is_refused() -> None:
    right = node(0, mapped(5, 2, 100), root=True, fixed=True)
    at = right.index(struct.pack("<Q", 100), 64)
    wrong = right[:at] + struct.pack("<Q", 101) + right[at + 8 :]
    disk = grown(right, wrong, object_map(FIRST + 1))
    assert disk.resolve(FIRST, 5, 2) == (100, 0)
    with pytest.raises(BrowseError, match=f"block {FIRST + 1} .*checksum"):
        disk.resolve(FIRST + 1, 5, 2)
    with pytest.raises(BrowseError, match=f"block {FIRST + 1} .*checksum"):
        disk.map_of(FIRST + 2)


# -- sealed volumes --------------------------------------------------------------------------------


def extent(identifier: int, first: int, blocks: int) -> tuple[bytes, bytes]:
    """A record of the tree with the extents of a sealed volume (j_fext_tree_key_t, j_fext_tree_val_t)."""
    flags = 0x5A << 56
    return struct.pack("<QQ", identifier, first), struct.pack("<QQ", flags | blocks * BLOCK, 500 + blocks)


def under(identifier: int, first: int, child: int) -> tuple[bytes, bytes]:
    return struct.pack("<QQ", identifier, first), struct.pack("<Q", child)


def test_extents_of_a_sealed_volume_have_a_tree_of_their_own() -> None:
    tree = tree_of(
        node(0, extent(6, 0, 9), extent(7, 0, 1), fixed=True),
        node(0, extent(7, BLOCK, 2), extent(8, 0, 4), fixed=True),
        node(1, under(6, 0, FIRST + 2), under(7, BLOCK, FIRST + 3), root=True, fixed=True),
        sealed_by=1,
        extents=FIRST + 4,
    )
    assert list(tree.extents(6)) == [(0, 9 * BLOCK, 509, 0)]
    assert list(tree.extents(7)) == [(0, BLOCK, 501, 0), (BLOCK, 2 * BLOCK, 502, 0)]
    assert list(tree.extents(8)) == [(0, 4 * BLOCK, 504, 0)]
    assert list(tree.extents(9)) == []


def test_extents_of_another_volume_are_among_its_records() -> None:
    """Whatever tree it says it has beside them."""
    inside = struct.pack("<QQ", EXTENT << 60 | 7, BLOCK), struct.pack("<QQQ", 3 * BLOCK, 900, 77)
    tree = tree_of(
        node(0, extent(7, 0, 1), root=True, fixed=True),
        node(0, inside, root=True),
        extents=FIRST + 2,
    )
    assert list(tree.extents(7)) == [(BLOCK, 3 * BLOCK, 900, 77)]


def test_nodes_of_a_sealed_volume_are_numbered_from_the_top_on() -> None:
    """The root is the object 70, its children are 1 and 2: that is, 71 and 72."""
    top, leaves = node(1, below(1), below(2), root=True), [node(0, name(b"a")), node(0, name(b"b"))]
    assert listed(tree_of(top, *leaves, sealed_by=70)) == [(b"a", b"A"), (b"b", b"B")]


def test_a_node_without_a_header_has_no_checksum() -> None:
    """As the object map says of it; else it would be no node."""
    bare = node(0, name(b"a"), root=True, headerless=True)
    assert listed(tree_of(bare, flags=8)) == [(b"a", b"A")]
    with pytest.raises(BrowseError, match="not what it should be"):
        listed(tree_of(bare))


# -- memory ----------------------------------------------------------------------------------------


def test_entries_that_lie_over_each_other_are_refused() -> None:
    """Each has the same key, or the same value, of most of a block."""
    for key_length, value_length in ((0, 3000), (3000, 0), (1500, 1500)):
        raw = bytearray(node(0, *[(b"", b"")] * 40, headerless=True))
        for number in range(40):
            struct.pack_into("<4H", raw, 56 + 8 * number, 0, key_length, value_length, value_length)
        raw[24] = 3
        with pytest.raises(BrowseError, match="lie over each other"):
            grown(sealed(raw)).node(FIRST, level=0)


def test_nodes_that_are_kept_weigh_what_they_take() -> None:
    numbers = range(100)
    for each in (
        node(0, *(mapped(n, 1 << 60, n) for n in numbers), fixed=True),
        node(0, (bytes(16), bytes(3000))),
    ):
        disk = grown(each)
        before = disk._nodes.bytes
        found = disk.node(FIRST, level=0)
        kept = [*found.keys, *found.values, *found.order, found.keys, found.values, found.order]
        assert sum(map(sys.getsizeof, kept)) <= disk._nodes.bytes - before <= 8 * BLOCK


class Repeated:
    """A container of blocks that are all the same superblock, which says so of them; it counts what is read."""

    def __init__(self, size: int, count: int) -> None:
        raw = bytearray(size)
        raw[24], raw[32:36] = CONTAINER, b"NXSB"
        struct.pack_into("<I", raw, 36, size)
        struct.pack_into("<I", raw, 104, count)
        struct.pack_into("<Q", raw, 112, 1)
        self.block = sealed(raw)
        self.size = 1 << 40
        self.asked = 0

    def read_at(self, offset: int, length: int) -> bytes:
        assert offset % len(self.block) == 0
        self.asked += 1
        return bytes(bytearray(self.block[:length]))  # bytes of its own

    def close(self) -> None:
        pass


def test_superblocks_are_not_kept_while_the_newest_is_looked_for() -> None:
    reader = Repeated(1 << 16, 100)
    tracemalloc.start()
    try:
        with pytest.raises(NotAFileSystem, match="no superblock makes sense"):
            Disk(reader)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert reader.asked > 100
    assert peak < 4 << 20


def test_of_an_area_of_checkpoints_that_does_not_end_some_is_looked_at() -> None:
    reader = Repeated(1 << 16, (1 << 31) - 1)
    with pytest.raises(NotAFileSystem):
        Disk(reader)
    assert reader.asked < 2500


def test_an_area_of_checkpoints_that_a_tree_lists_is_not_taken_for_one_in_a_row() -> None:
    """The first block says so; what its field would lead to, were it a block, is a newer superblock."""
    disk = disk_of("case_insensitive")
    first = bytearray(disk[:BLOCK])
    newer = bytearray(first)
    newer[72:88] = b"another container"[:16]
    struct.pack_into("<Q", newer, 16, _AGO)
    struct.pack_into("<q", first, 112, FIRST)
    for count, uuid in ((1, newer[72:88]), (1 << 31 | 1, first[72:88])):
        struct.pack_into("<I", first, 104, count)
        found = Disk(BytesReader(sealed(first) + disk[BLOCK:] + sealed(newer)))
        assert found.uuid == uuid


def test_the_list_of_snapshots_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its records are of."""
    snapshots = [
        (
            struct.pack("<Q", SNAPSHOT << 60 | n),
            struct.pack("<5QIIH", 0, n, n, 0, 0, 0, 0, 2) + b"s\0",
        )
        for n in range(1, 5)
    ]
    names = [
        (struct.pack("<Q", _SNAPSHOT_NAME << 60 | (1 << 60) - 1) + b"s%d" % n, bytes(8)) for n in range(4)
    ]
    disk = grown(node(0, *snapshots, *names, root=True), node(0, *names, root=True))
    volume = disk.volumes()[0]._replace(snapshots=FIRST)
    monkeypatch.setattr(apfsdisk, "_MAX_SNAPSHOTS", 8)
    assert [each.transaction for each in disk.snapshots(volume)] == [1, 2, 3, 4]
    monkeypatch.setattr(apfsdisk, "_MAX_SNAPSHOTS", 7)
    with pytest.raises(BrowseError, match="does not end"):
        disk.snapshots(volume)
    assert disk.snapshots(volume._replace(snapshots=FIRST + 1)) == []
    monkeypatch.setattr(apfsdisk, "_MAX_SNAPSHOTS", 3)
    with pytest.raises(BrowseError, match="does not end"):
        disk.snapshots(volume._replace(snapshots=FIRST + 1))


def test_the_newest_checkpoint_is_that_with_the_right_checksum() -> None:
    """A newer one that was torn is passed over."""
    disk = disk_of("case_insensitive")
    areas = [block for block, kind in objects(disk).items() if kind == CONTAINER]
    newest = max(areas, key=lambda block: (struct.unpack_from("<Q", disk, block * BLOCK + 16), block))
    torn = bytearray(disk)
    struct.pack_into("<Q", torn, newest * BLOCK + 16, _AGO)
    torn[newest * BLOCK + 72] ^= 1
    assert Disk(BytesReader(bytes(torn))).uuid == Disk(BytesReader(disk)).uuid
