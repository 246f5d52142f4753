"""What is where in an APFS container: objects, the map of virtual objects, B-trees, volumes. Bytes to values.

From Apple's "Apple File System Reference" (2020-06-22), whose names of structures are given below. Every object that
is read has a checksum, which is held against it; those of sealed volumes have none. Addresses are blocks.
"""

from __future__ import annotations

import struct
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, NamedTuple

from imagefs.block.cache import BlockCache
from imagefs.errors import BrowseError, ImagefsError, NotAFileSystem
from imagefs.interfaces import Reader

if TYPE_CHECKING:  # it needs numpy, and few volumes are encrypted
    from imagefs.block.sectorcipher import SectorCipher

_BLOCK_SIZES = tuple(1 << n for n in range(12, 17))
_CONTAINER, _BTREE, _NODE, _MAP, _VOLUME = 0x1, 0x2, 0x3, 0xB, 0xD
#: Kinds of records in the tree of a volume (j_obj_types).
SNAPSHOT, INODE, XATTR, EXTENT, NAME = 1, 3, 4, 8, 9
_ID = (1 << 60) - 1
_LENGTH = (1 << 56) - 1
#: Flags of a node, of an entry of an object map, of a container and of a volume.
_ROOT, _LEAF, _FIXED = 1, 2, 4
_DELETED, _ENCRYPTED, _HEADERLESS = 1, 4, 8
_FUSION = 0x100
_FOLDS, _NORMALIZES, _SEALED = 0x1, 0x8, 0x20
_UNENCRYPTED, _ONE_KEY = 0x1, 0x8
#: What is encrypted is numbered in these units.
SECTOR = 512
#: Bytes of nodes that are kept, those that an entry takes beside its key and value, answers of maps of objects that
#: are kept; a tree has no more levels than that.
_KEPT_NODES, _BESIDE, _KEPT_ADDRESSES, _MAX_LEVELS = 32 << 20, 160, 1 << 16, 12
#: Volumes of a container, bytes in which its checkpoints lie (macOS takes some hundred blocks), records of snapshots.
_MAX_VOLUMES, _MAX_CHECKPOINTS, _MAX_SNAPSHOTS = 100, 32 << 20, 1 << 17
_NODE_HEAD, _NODE_TAIL = 56, 40
_header = struct.Struct("<QQQII").unpack_from
_node_head = struct.Struct("<HHI4H").unpack_from
_fixed = struct.Struct("<HH")
_free = struct.Struct("<HHHH")
_M32 = 0xFFFFFFFF


class Node(NamedTuple):
    """A node of a B-tree: where it is, how far above the leaves, its entries' keys and values, and ``order``, a number
    for each by which the keys are sorted."""

    block: int
    level: int
    order: list[int]
    keys: list[bytes]
    values: list[bytes]


class Volume(NamedTuple):
    """A superblock of a volume (apfs_superblock_t), of one that is in use or of a snapshot. ``transaction`` is when it
    was written, ``block`` where; ``raw`` is all of it. ``hashed``: names in directories come after their hash.
    ``one_key``: no file of it, if it is encrypted, has a key of its own."""

    block: int
    identifier: int
    transaction: int
    name: str
    role: int
    uuid: bytes
    folds: bool
    hashed: bool
    sealed: bool
    encrypted: bool
    one_key: bool
    allocated: int
    map: int
    root: int
    extents: int
    snapshots: int
    raw: bytes


class Snapshot(NamedTuple):
    """``block`` is that of its superblock; ``made_ns`` since 1970."""

    transaction: int
    name: str
    made_ns: int
    block: int


def by_number(key: bytes) -> int:
    """The order of a key that begins with a number: that of an object map, of the extents of a sealed volume."""
    return int.from_bytes(key[:8], "little") << 64 | int.from_bytes(key[8:16], "little")


def by_record(key: bytes) -> int:
    """The order of a key of a volume (j_key_t): object, kind of record, and where extents begin; not further."""
    head = int.from_bytes(key[:8], "little")
    kind = head >> 60
    at = int.from_bytes(key[8:16], "little") if kind == EXTENT else 0
    return ((head & _ID) << 4 | kind) << 64 | at


def record(identifier: int, kind: int) -> tuple[int, int]:
    """The first and the last order of the records of one kind that an object has."""
    first = (identifier << 4 | kind) << 64
    return first, first | (1 << 64) - 1


#: Block, order of the keys, and what decrypts it.
_NodeKey = tuple[int, Callable[[bytes], int], "SectorCipher | None"]


class Disk:
    """A container, as its newest checkpoint that is whole describes it. Safe in several threads."""

    def __init__(self, reader: Reader) -> None:
        first = reader.read_at(0, 4096)
        if first[32:36] != b"NXSB":
            raise NotAFileSystem("the volume is not APFS")
        self.block_size: int = struct.unpack_from("<I", first, 36)[0]
        if self.block_size not in _BLOCK_SIZES:
            raise _no_sense()
        self.reader = reader
        self._nodes = BlockCache[_NodeKey, Node](_KEPT_NODES, self._weight)
        self._addresses = BlockCache[tuple[int, int, int], tuple[int, int]](_KEPT_ADDRESSES, lambda found: 1)
        self._raw, self._map = self._newest()
        (self.blocks,) = struct.unpack_from("<Q", self._raw, 40)
        self.uuid = self._raw[72:88]
        #: The first block of the bag with the keys of volumes (nx_keylocker), and how many.
        self.keybag: tuple[int, int] = struct.unpack_from("<QQ", self._raw, 1296)
        if struct.unpack_from("<Q", self._raw, 64)[0] & _FUSION:
            raise NotAFileSystem(
                "the APFS container lies on two disks (Fusion)",
                hint="attach both to a Mac, or restore both images",
            )

    # -- objects -----------------------------------------------------------------------------------

    def read(self, block: int) -> bytes:
        """The bytes of a block; BrowseError where there is none."""
        size = self.block_size
        if not 0 <= block <= (self.reader.size - size) // size:
            raise broken(f"block {block}", "it lies past the end of the volume")
        return self.reader.read_at(block * size, size)

    def decrypted(self, block: int, cipher: SectorCipher | None) -> bytes:
        """The bytes of a block that is encrypted where it lies."""
        raw = self.read(block)
        return raw if cipher is None else cipher.decrypt(raw, block * (self.block_size // SECTOR), SECTOR)

    def object(self, block: int, *kinds: int, cipher: SectorCipher | None = None) -> bytes:
        """The object in a block, its checksum held against it."""
        raw = self.decrypted(block, cipher)
        if _header(raw)[3] & 0xFFFF not in kinds:
            raise broken(f"block {block}", "it is not what it should be")
        if not is_whole(raw):
            raise broken(f"block {block}", "it fails its checksum")
        return raw

    def _newest(self) -> tuple[bytes, int]:
        """The newest superblock (nx_superblock_t) whose object map can be read, and the block of that map's tree."""
        found, lost = list[tuple[int, int]](), list[ImagefsError]()
        first = self.read(0)
        for block in self._checkpoints(first):
            with _kept_in(lost):
                raw = self.read(block)
                # the magic word and the size of blocks; most are no superblocks
                if _header(raw)[3] & 0xFFFF == _CONTAINER and raw[32:40] == first[32:40]:
                    found.append((_header(raw)[2], block))
        for _, block in sorted(found, reverse=True):
            with _kept_in(lost):
                raw = self.object(block, _CONTAINER)
                return raw, self.map_of(struct.unpack_from("<Q", raw, 160)[0])
        raise lost[0] if lost else _no_sense()

    def _checkpoints(self, first: bytes) -> list[int]:
        """The blocks that may have a superblock, by the one in the first block."""
        (count,), (base,) = struct.unpack_from("<I", first, 104), struct.unpack_from("<q", first, 112)
        if count >> 31 or base <= 0:  # a tree lists them, as nobody has seen it do
            return [0]
        return [0, *range(base, base + min(count, _MAX_CHECKPOINTS // self.block_size))]

    def superblocks(self) -> dict[int, bytes]:
        """The superblock that is used, by each block that it is in."""
        found = dict[int, bytes]()
        for block in self._checkpoints(self.read(0)):
            with suppress(ImagefsError):
                raw = self.object(block, _CONTAINER)
                if _header(raw)[2] == _header(self._raw)[2]:
                    found[block] = raw
        return found

    def map_of(self, block: int) -> int:
        """The root of the tree of an object map (omap_phys_t)."""
        (root,) = struct.unpack_from("<Q", self.object(block, _MAP), 48)
        self.node(root)
        return int(root)

    def resolve(self, root: int, identifier: int, transaction: int) -> tuple[int, int]:
        """(block, flags) of a virtual object as it was at a transaction, by the object map with this root."""
        key = root, identifier, transaction
        return self._addresses.get(key, lambda: self._resolved(*key))

    def _resolved(self, root: int, identifier: int, transaction: int) -> tuple[int, int]:
        wanted, node = identifier << 64 | transaction, self.node(root)
        while True:
            at = bisect_right(node.order, wanted) - 1
            if at < 0 or (not node.level and node.order[at] >> 64 != identifier):
                break
            if node.level:
                node = self.node(_number(node.values[at]), level=node.level - 1)
                continue
            flags, _, block = struct.unpack("<IIQ", _padded(node.values[at], 16))
            if flags & _DELETED:
                break
            return block, flags
        raise broken(f"object {identifier}", "the object map does not know it")

    # -- trees -------------------------------------------------------------------------------------

    def _weight(self, node: Node) -> int:
        return self.block_size + _BESIDE * len(node.order)

    def node(
        self,
        block: int,
        *,
        level: int | None = None,
        headerless: bool = False,
        order: Callable[[bytes], int] = by_number,
        cipher: SectorCipher | None = None,
    ) -> Node:
        """A node of a tree. ``level`` is where it must be, else at the top."""

        def read() -> Node:
            if headerless:
                return _decoded(self.decrypted(block, cipher), block, order)
            return _decoded(self.object(block, _BTREE, _NODE, cipher=cipher), block, order)

        found = self._nodes.get((block, order, cipher), read)
        if found.level != level if level is not None else found.level >= _MAX_LEVELS:
            raise broken(f"block {block}", "it is at another place of its tree than it says")
        return found

    def scan(
        self, root: Node, child: Callable[[bytes, int], Node], first: int, last: int
    ) -> Iterator[tuple[bytes, bytes]]:
        """The entries of a tree from order ``first`` to ``last``. ``child`` gives the node of a value and level.
        None but the root is empty, and each is at one place: so there are no more to meet than the disk has blocks."""
        nodes = [(root, _start(root, first))]
        before, met = first, set[int]()
        while nodes:
            node, at = nodes.pop()
            while at < len(node.order):
                if node.order[at] > last:
                    return
                if node.level:
                    below = child(node.values[at], node.level - 1)
                    if below.block in met or not below.order:
                        raise broken(f"block {below.block}", "it is empty, or at two places of a tree")
                    met.add(below.block)
                    nodes.append((node, at + 1))
                    nodes.append((below, _start(below, first)))
                    break
                if node.order[at] < before:
                    raise broken("a tree", "its entries are not in order")
                before = node.order[at]
                yield node.keys[at], node.values[at]
                at += 1

    # -- volumes -----------------------------------------------------------------------------------

    def volumes(self) -> list[Volume]:
        """Those that can be read. Raises the first error where none can."""
        slots = self.slots()
        found = [each for each in slots if isinstance(each, Volume)]
        if slots and not found:
            raise next(each for each in slots if isinstance(each, ImagefsError))
        return found

    def slots(self) -> list[Volume | ImagefsError]:
        """The volumes of the container, and an error in the place of each that cannot be read."""
        found = list[Volume | ImagefsError]()
        for number in range(_MAX_VOLUMES):
            (identifier,) = struct.unpack_from("<Q", self._raw, 184 + 8 * number)
            if not identifier:
                continue
            try:
                block, _ = self.resolve(self._map, identifier, _header(self._raw)[2])
                found.append(self.volume(block))
            except ImagefsError as error:
                found.append(error)
        return found

    def volume(self, block: int) -> Volume:
        """The superblock of a volume in a block."""
        raw = self.object(block, _VOLUME)
        if raw[32:36] != b"APSB":
            raise broken(f"block {block}", "it is no superblock of a volume")
        _, identifier, transaction, _, _ = _header(raw)
        (features,) = struct.unpack_from("<Q", raw, 56)
        map_block, root, _, snapshots = struct.unpack_from("<4Q", raw, 128)
        (flags,) = struct.unpack_from("<Q", raw, 264)
        return Volume(
            block,
            identifier,
            transaction,
            raw[704:960].partition(b"\0")[0].decode("utf-8", "replace"),
            struct.unpack_from("<H", raw, 964)[0],
            raw[240:256],
            folds=bool(features & _FOLDS),
            hashed=bool(features & (_FOLDS | _NORMALIZES)),
            sealed=bool(features & _SEALED),
            encrypted=not flags & _UNENCRYPTED,
            one_key=bool(flags & _ONE_KEY),
            allocated=struct.unpack_from("<Q", raw, 88)[0],
            map=map_block,
            root=root,
            extents=struct.unpack_from("<Q", raw, 1032)[0],
            snapshots=snapshots,
            raw=raw,
        )

    def snapshots(self, volume: Volume) -> list[Snapshot]:
        """Those of a volume, oldest first (j_snap_metadata_val_t). Raises BrowseError where they cannot be read."""
        if not volume.snapshots:
            return []
        found = []
        root = self.node(volume.snapshots, order=by_record)
        for count, (key, value) in enumerate(self.scan(root, self._physical(by_record), 0, 1 << 200)):
            if count >= _MAX_SNAPSHOTS:
                raise broken("the list of snapshots", "it does not end")
            head = int.from_bytes(key[:8], "little")
            if head >> 60 != SNAPSHOT:
                continue
            _, block, made, _, _, _, _, length = struct.unpack_from("<5QIIH", _padded(value, 50))
            name = value[50 : 50 + length].partition(b"\0")[0].decode("utf-8", "replace")
            found.append(Snapshot(head & _ID, name, made, block))
        return found

    def _physical(self, order: Callable[[bytes], int]) -> Callable[[bytes, int], Node]:
        return lambda value, level: self.node(_number(value), level=level, order=order)


class Tree:
    """The records of a volume (its tree of files), as they were when its superblock was written. ``number`` is that of
    the volume in its container; ``cipher`` decrypts what of it is encrypted."""

    def __init__(
        self, disk: Disk, volume: Volume, number: int = 0, cipher: SectorCipher | None = None
    ) -> None:
        self.disk = disk
        self.volume = volume
        self.number = number
        self.cipher = cipher
        self._map = disk.map_of(volume.map)

    def records(self, identifier: int, kind: int) -> Iterator[tuple[bytes, bytes]]:
        """(key, value) of the records of one kind that an object has; keys without the number that they begin with."""
        for key, value in self.disk.scan(
            self._node(self.volume.root, None), self._child, *record(identifier, kind)
        ):
            yield key[8:], value

    def extents(self, identifier: int) -> Iterator[tuple[int, int, int, int]]:
        """(first byte, length in bytes, block, which is 0 for a hole, crypto_id) of the content with this number. The
        last is the block that it was encrypted as, where the volume has one key."""
        if self.volume.sealed and self.volume.extents:
            root = self.disk.node(self.volume.extents)
            first = identifier << 64
            found = self.disk.scan(root, self.disk._physical(by_number), first, first | (1 << 64) - 1)
            records: Iterable[tuple[bytes, bytes]] = ((key[8:], value) for key, value in found)
        else:
            records = self.records(identifier, EXTENT)
        for key, value in records:
            length, block = struct.unpack_from("<QQ", _padded(value, 16))
            yield _number(key), length & _LENGTH, block, _number(value[16:])

    def _child(self, value: bytes, level: int) -> Node:
        # nodes of a sealed volume are numbered from the top on
        return self._node(_number(value) + self.volume.root * self.volume.sealed, level)

    def _node(self, identifier: int, level: int | None) -> Node:
        block, flags = self.disk.resolve(self._map, identifier, self.volume.transaction)
        cipher = self.cipher if flags & _ENCRYPTED else None
        if flags & _ENCRYPTED and cipher is None:
            raise broken(f"block {block}", "it is encrypted")
        headerless = bool(flags & _HEADERLESS)
        return self.disk.node(block, level=level, headerless=headerless, order=by_record, cipher=cipher)


def is_whole(raw: bytes) -> bool:
    """Whether an object has the checksum it says: Fletcher's with 64 bits."""
    return int.from_bytes(raw[:8], "little") == checksum(raw)


def checksum(raw: bytes) -> int:
    """That of an object, whatever it says in its first 8 bytes."""
    words = struct.unpack(f"<{len(raw) // 4 - 2}I", raw[8:])
    one, two = sum(words) % _M32, sum(accumulate(words)) % _M32
    low: int = _M32 - (one + two) % _M32
    high: int = _M32 - (one + low) % _M32
    return high << 32 | low


def broken(what: str, why: str) -> BrowseError:
    return BrowseError(
        f"{what} cannot be read: {why}",
        hint="the APFS file system is damaged there; the rest can still be read",
    )


@contextmanager
def _kept_in(lost: list[ImagefsError]) -> Iterator[None]:
    """Damage is passed over, and not kept, as it holds what was read; other errors are."""
    try:
        yield
    except BrowseError:
        pass
    except ImagefsError as error:
        lost.append(error)


def _decoded(raw: bytes, block: int, order: Callable[[bytes], int]) -> Node:
    """A node (btree_node_phys_t): a table of where keys and values are, keys behind it, values before the end."""
    flags, level, count, table, length, _, _ = _node_head(raw, 32)
    end = len(raw) - (_NODE_TAIL if flags & _ROOT else 0)
    keys_at = _NODE_HEAD + table + length
    shape = _fixed if flags & _FIXED else _free
    if keys_at > end or count * shape.size > length or bool(flags & _LEAF) != (not level):
        raise broken(f"block {block}", "its table makes no sense")
    places = list(shape.iter_unpack(raw[_NODE_HEAD + table : _NODE_HEAD + table + count * shape.size]))
    keys, values, left = list[bytes](), list[bytes](), len(raw)
    for place in places:
        if shape is _fixed:
            key, value = place
            key_length = value_length = 16
            if level:
                value_length = 8
        else:
            key, key_length, value, value_length = place
        at = end - value
        if keys_at + key + key_length > end or at < keys_at or (at + value_length > end and shape is _free):
            raise broken(f"block {block}", "an entry lies outside of it")
        left -= key_length + value_length
        if left < 0:
            raise broken(f"block {block}", "its entries lie over each other")
        keys.append(raw[keys_at + key : keys_at + key + key_length])
        values.append(raw[at : min(at + value_length, end)])
    numbers = [order(key) for key in keys]
    if any(one > other for one, other in pairwise(numbers)):
        raise broken(f"block {block}", "its entries are not in order")
    return Node(block, level, numbers, keys, values)


def _start(node: Node, first: int) -> int:
    """Where the entries from ``first`` on begin: in the child before that one, where there are children."""
    at = bisect_left(node.order, first)
    return max(0, at - 1) if node.level else at


def _number(value: bytes) -> int:
    return int.from_bytes(value[:8], "little")


def _padded(value: bytes, length: int) -> bytes:
    if len(value) < length:
        raise broken("a record", "it is cut off")
    return value


def _no_sense() -> NotAFileSystem:
    return NotAFileSystem(
        "the volume seems to be APFS, of which no superblock makes sense", hint="the file system is damaged"
    )
