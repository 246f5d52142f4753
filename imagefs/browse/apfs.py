"""APFS: a FileSystem over what ``apfsdisk`` decodes.

Ours, because libfsapfs (20260921) was tried: it opens no volume with many snapshots and no container whose newest
checkpoint is damaged, holds few checksums, and decodes no LZFSE in resource forks; ARCHITECTURE.md has what was tried.
A container with one volume shows that volume's tree; with several, each is a folder of its name.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from imagefs.block.joined import SureReader
from imagefs.block.views import BytesReader
from imagefs.browse import decmpfs
from imagefs.browse.apfsdisk import INODE, NAME, SECTOR, XATTR, Disk, Tree, Volume, broken
from imagefs.browse.content import MappedReader, Piece
from imagefs.browse.listing import Listings, MacNames
from imagefs.browse.names import join, printable, repeated, safe_name, shown_name
from imagefs.errors import BrowseError, ImagefsError, Locked, NotAFileSystem, PathNotFound
from imagefs.interfaces import METADATA, Entry, EntryType, Named, Place, Reader, Stream, device_flags

if TYPE_CHECKING:
    from imagefs.block.sectorcipher import SectorCipher

_ROOT = 2
_FORK, _LINK, _RSRC = b"com.apple.ResourceFork", b"com.apple.fs.symlink", b"rsrc"
#: What is used here, or given as a stream.
_INTERNAL = frozenset({_FORK, _LINK, decmpfs.ATTRIBUTE})
_MAX_VALUE, _MAX_ATTRIBUTES, _MAX_PIECES = 16 << 20, 1 << 16, 1 << 22
#: Flags of a file (bsd_flags) and of an inode, types of extended fields, flags of an attribute.
_COMPRESSED, _DATALESS = 0x20, 0x40000000
_HAS_PLAIN_SIZE = 0x40000
_F_STREAM, _F_DEVICE = 8, 14
_APART, _EMBEDDED = 1, 2
#: Types in a directory (those of readdir).
_TYPES = {
    1: EntryType.FIFO,
    2: EntryType.DEVICE,
    4: EntryType.DIRECTORY,
    6: EntryType.DEVICE,
    8: EntryType.FILE,
    10: EntryType.SYMLINK,
    12: EntryType.SOCKET,
}
_inode = struct.Struct("<2Q4QQiIIIIIHHQ")


class Inode(NamedTuple):
    """Of a file (j_inode_val_t). ``content`` is the number of its extents, ``size`` theirs in bytes. ``times`` are
    those of creation, modification, change and access in ns since 1970."""

    number: int
    content: int
    times: tuple[int, ...]
    flags: int
    links: int
    bsd: int
    uid: int
    gid: int
    mode: int
    plain: int
    size: int
    device: int

    @property
    def is_compressed(self) -> bool:
        return bool(self.bsd & _COMPRESSED) and stat.S_ISREG(self.mode)


class Attribute(NamedTuple):
    """An extended one: its bytes, or where it has a content of its own its number and size."""

    name: bytes
    inside: bytes
    content: int
    size: int


class _At(NamedTuple):
    """A file: which tree it is in, and its number there; no tree: the list of volumes."""

    tree: Tree | None
    number: int


def open_apfs(reader: Reader, *, keys: Mapping[str, bytes] | None = None) -> ApfsFileSystem:
    """The APFS on ``reader``, which stays the caller's; NotAFileSystem says what is in the way. ``keys`` are those of
    encrypted volumes by their UUID, as bytes.hex() writes it; a volume without one cannot be entered."""
    disk = Disk(reader)
    return ApfsFileSystem(disk, disk.slots(), keys or {})


class ApfsFileSystem:
    """A FileSystem and what it has beside: names alone, attributes, and resource forks as streams called ``rsrc``."""

    kind = "apfs"

    def __init__(
        self, disk: Disk, volumes: Sequence[Volume | ImagefsError], keys: Mapping[str, bytes]
    ) -> None:
        """``volumes`` has an error in the place of one that cannot be read."""
        there = [volume for volume in volumes if isinstance(volume, Volume)]
        if not there:
            raise next(
                (volume for volume in volumes if isinstance(volume, ImagefsError)),
                NotAFileSystem("the APFS container has no volume"),
            )
        self.label = there[0].name if len(volumes) == 1 else ""
        self.case_insensitive = all(volume.folds for volume in there)
        self._disk: Disk | None = disk
        self._volumes = volumes
        self._keys = dict(keys)
        self._trees: dict[int, Tree] = {}
        self._listings = Listings(
            self._scan, case_insensitive=self.case_insensitive, readlink=self.readlink, other=self._other
        )
        self._mac_names = MacNames(self.children)

    @property
    def used_bytes(self) -> int | None:
        disk = self._opened()
        used = sum(volume.allocated for volume in self._volumes if isinstance(volume, Volume))
        return used * disk.block_size if used <= disk.blocks else None

    def root(self) -> Entry:
        if len(self._volumes) > 1:
            return Entry(b"/", EntryType.DIRECTORY, 0, "0", mode=0o755)
        return self._top(0, b"/")

    def lookup(self, path: bytes, /) -> Entry:
        return self._listings.lookup(self.root(), path)

    def children(self, entry: Entry, /) -> Iterator[Entry]:
        return self._listings.children(entry)

    def names(self, entry: Entry, /) -> Iterator[Entry | Named]:
        kept = self._listings.kept(entry)
        if kept is not None or self._at(entry).tree is None:
            return self.children(entry)
        return self._names(entry)

    def open(self, entry: Entry, /) -> Reader:
        shown = printable(entry.path)
        if entry.type is not EntryType.FILE:
            raise BrowseError(f"'{shown}' is not a file but a {entry.type}", path=entry.path)
        tree, inode = self._of(entry)
        if inode.bsd & _DATALESS:
            said = f"'{shown}' cannot be read: it is kept in the cloud, and its content is not on this disk"
            raise BrowseError(said, hint="take it from an older image, or from the cloud", path=entry.path)
        if inode.is_compressed:
            attributes = _attributes(tree, inode)
            packed, fork = attributes.get(decmpfs.ATTRIBUTE), attributes.get(_FORK)
            return decmpfs.open_content(
                None if packed is None else _value(tree, packed, entry),
                lambda: None if fork is None else _content(tree, fork.content, fork.size, entry),
                shown,
            )
        return _content(tree, inode.content, inode.size, entry)

    def readlink(self, entry: Entry, /) -> bytes:
        if entry.type is not EntryType.SYMLINK:
            raise BrowseError(f"'{printable(entry.path)}' is not a symbolic link", path=entry.path)
        tree, inode = self._of(entry)
        found = _attributes(tree, inode).get(_LINK)
        target = b"" if found is None else _value(tree, found, entry).partition(b"\0")[0]
        if not target:
            raise broken(f"'{printable(entry.path)}'", "it has no target")
        return target

    def places(self, entry: Entry, /) -> list[Place]:
        if self._at(entry).tree is None:
            return []
        tree, inode = self._of(entry)
        contents = [(b"", inode.content, inode.size)] if entry.type is EntryType.FILE else []
        for name, each in _attributes(tree, inode).items():
            stream = _RSRC if name == _FORK else METADATA
            if inode.is_compressed and name in (_FORK, decmpfs.ATTRIBUTE):
                stream = b""
            contents += [(stream, each.content, each.size)] if each.content else []
        return [
            Place(stream, piece.source, piece.source + piece.length)
            for stream, number, size in contents
            for piece in _pieces(tree, number, size, entry)
            if piece.source is not None
        ]

    def xattrs(self, entry: Entry, /) -> dict[bytes, bytes]:
        """macOS knows no name spaces; on Linux all of them are the user's."""
        if self._at(entry).tree is None:
            return {}
        tree, inode = self._of(entry)
        return {
            b"user." + name: _value(tree, each, entry)
            for name, each in _attributes(tree, inode).items()
            if name not in _INTERNAL
        }

    def streams(self, entry: Entry, /) -> list[Stream]:
        if self._at(entry).tree is None:
            return []
        return [Stream(_RSRC, each.size) for each in self._forks(*self._of(entry))]

    def open_stream(self, entry: Entry, name: bytes, /) -> Reader:
        if name == _RSRC and self._at(entry).tree is not None:
            tree, inode = self._of(entry)
            for each in self._forks(tree, inode):
                if each.content:
                    return _content(tree, each.content, each.size, entry)
                return BytesReader(each.inside)
        raise PathNotFound(f"there is no '{printable(entry.path + b':' + name)}'", path=entry.path)

    def close(self) -> None:
        self._disk = None
        self._trees.clear()
        self._listings.clear()
        self._mac_names.clear()

    def _opened(self) -> Disk:
        disk = self._disk
        if disk is None:
            raise BrowseError("the file system is closed")
        return disk

    # -- files by number ---------------------------------------------------------------------------

    def _tree(self, number: int) -> Tree:
        """The records of a volume; Locked where it is encrypted, the error of one that cannot be read."""
        disk, volume = self._opened(), self._volumes[number]
        if isinstance(volume, ImagefsError):
            raise volume
        found = self._trees.get(number)
        if found is None:
            cipher = _cipher(volume, self._keys) if volume.encrypted else None
            found = self._trees[number] = Tree(disk, volume, number, cipher)
        return found

    def _at(self, entry: Entry) -> _At:
        self._opened()
        volume, _, number = entry.inode.rpartition(":")
        try:
            several = len(self._volumes) > 1
            if several and not volume and number == "0":
                return _At(None, 0)
            if several is bool(volume) and 0 <= int(volume or 0) < len(self._volumes) and int(number) >= 0:
                return _At(self._tree(int(volume or 0)), int(number))
        except ValueError:
            pass
        raise PathNotFound(f"there is no file {entry.inode}", path=entry.path)

    def _of(self, entry: Entry) -> tuple[Tree, Inode]:
        tree, number = self._at(entry)
        if tree is None:
            raise PathNotFound(f"there is no file {entry.inode}", path=entry.path)
        return tree, _read_inode(tree, number, f"'{printable(entry.path)}'")

    @staticmethod
    def _forks(tree: Tree, inode: Inode) -> list[Attribute]:
        """The resource fork, where it is not the content itself, compressed."""
        found = None if inode.is_compressed else _attributes(tree, inode).get(_FORK)
        return [] if found is None else [found]

    # -- directories -------------------------------------------------------------------------------

    def _top(self, number: int, path: bytes) -> Entry:
        return self._entry(path, self._tree(number), _ROOT)

    def _tops(self) -> Iterator[Entry]:
        """The volumes; one that cannot be entered is there, and says why when it is."""
        names = [_shown_volume(number, volume) for number, volume in enumerate(self._volumes)]
        twice, taken = repeated(names), frozenset(names)
        for number, name in enumerate(names):
            path = b"/" + shown_name(name, str(number), twice=twice, taken=taken)
            try:
                yield self._top(number, path)
            except ImagefsError as error:
                flags = ("encrypted",) if isinstance(error, Locked) else ("damaged",)
                yield Entry(path, EntryType.DIRECTORY, 0, f"{number}:{_ROOT}", flags=flags)

    def _scan(self, directory: Entry) -> Iterator[Entry]:
        tree = self._at(directory).tree
        if tree is None:
            yield from self._tops()
            return
        errors: list[BrowseError] = []
        for path, number, kind in self._shown(directory, errors):
            yield self._made(tree, path, number, kind)
        if errors:
            raise errors[0]

    def _names(self, directory: Entry) -> Iterator[Entry | Named]:
        tree = self._at(directory).tree
        errors: list[BrowseError] = []
        for path, number, kind in self._shown(directory, errors):
            if kind in (EntryType.DIRECTORY, EntryType.OTHER) and tree is not None:
                yield self._made(tree, path, number, kind)
            else:
                yield Named(path.rpartition(b"/")[2], kind, self._inode(tree, number))
        if errors:
            raise errors[0]

    def _shown(self, directory: Entry, errors: list[BrowseError]) -> Iterator[tuple[bytes, int, EntryType]]:
        """(path, number, type) of all in a directory; of equal names all carry their number."""
        tree, inode = self._of(directory)
        if not stat.S_ISDIR(inode.mode):
            raise broken(f"'{printable(directory.path)}'", "its inode is none of a directory")
        found: list[tuple[bytes, int, EntryType]] = []
        try:
            for key, value in tree.records(inode.number, NAME):
                number, kind = _target(value)
                found.append((safe_name(_name(key, tree.volume.hashed)), number, kind))
        except BrowseError as error:
            errors.append(error)
        twice = repeated(name for name, _, _ in found)
        taken = frozenset(name for name, _, _ in found) if twice else frozenset[bytes]()
        for name, number, kind in found:
            shown = shown_name(name, str(number), twice=twice, taken=taken)
            yield join(directory.path, shown), number, kind

    def _other(self, directory: Entry, name: bytes) -> Entry | None:
        """The child that macOS finds by ``name``: for it, é in one character or two is the same."""
        tree = self._at(directory).tree
        if tree is None or not tree.volume.hashed:
            return None
        return self._mac_names.find(directory, name, folds=tree.volume.folds)

    def _inode(self, tree: Tree | None, number: int) -> str:
        if len(self._volumes) == 1 or tree is None:
            return str(number)
        return f"{tree.number}:{number}"

    def _made(self, tree: Tree, path: bytes, number: int, kind: EntryType) -> Entry:
        """The entry of a name; one whose inode is damaged is still there, of the type its directory tells."""
        try:
            return self._entry(path, tree, number)
        except BrowseError:
            return Entry(path, kind, 0, self._inode(tree, number), flags=("damaged",))

    def _entry(self, path: bytes, tree: Tree, number: int) -> Entry:
        inode = _read_inode(tree, number, f"'{printable(path)}'")
        kind = EntryType.of_mode(inode.mode)
        flags, size, device = device_flags(inode.mode), 0, None
        if kind is EntryType.FILE:
            size = inode.size
            if inode.is_compressed:
                flags, size = ("compressed",), _plain_size(tree, inode)
        elif kind is EntryType.SYMLINK:
            found = _attributes(tree, inode).get(_LINK)
            size = len(found.inside.partition(b"\0")[0]) if found is not None else 0
        elif kind is EntryType.DEVICE:
            device = inode.device >> 24, inode.device & 0xFFFFFF
        if inode.bsd & _DATALESS:
            flags = (*flags, "cloud")
            size = inode.plain if kind is EntryType.FILE and inode.flags & _HAS_PLAIN_SIZE else size
        created, modified, changed, accessed = inode.times
        return Entry(
            path,
            kind,
            size,
            self._inode(tree, number),
            mode=stat.S_IMODE(inode.mode),
            uid=inode.uid,
            gid=inode.gid,
            nlink=1 if kind is EntryType.DIRECTORY else max(1, inode.links),
            mtime_ns=modified,
            atime_ns=accessed,
            ctime_ns=changed,
            crtime_ns=created,
            rdev=device,
            flags=flags,
        )


def _shown_volume(number: int, volume: Volume | ImagefsError) -> bytes:
    """The name of a volume; of one that cannot be read nobody knows it."""
    if isinstance(volume, ImagefsError):
        return b"volume %d" % number
    return safe_name(volume.name.encode("utf-8", "replace"))


def _read_inode(tree: Tree, number: int, what: str) -> Inode:
    for _, value in tree.records(number, INODE):
        if len(value) < _inode.size:
            break
        _, content, *times, flags, links, _, _, bsd, uid, gid, mode, _, plain = _inode.unpack_from(value)
        size = device = 0
        for kind, field in _fields(value[_inode.size :]):
            if kind == _F_STREAM and len(field) >= 8:
                size = int.from_bytes(field[:8], "little")
            elif kind == _F_DEVICE and len(field) >= 4:
                device = int.from_bytes(field[:4], "little")
        if size >> 63 or plain >> 63:
            raise broken(what, "its size makes no sense")
        signed = tuple(time - (1 << 64) if time >> 63 else time for time in times)
        return Inode(number, content, signed, flags, links, bsd, uid, gid, mode, plain, size, device)
    raise broken(what, f"there is no inode {number}")


def _fields(raw: bytes) -> Iterator[tuple[int, bytes]]:
    """(type, bytes) of extended fields (xf_blob_t)."""
    if len(raw) < 4:
        return
    (count,) = struct.unpack_from("<H", raw)
    at = 4 + 4 * count
    for number in range(min(count, (len(raw) - 4) // 4)):
        kind, _, size = struct.unpack_from("<BBH", raw, 4 + 4 * number)
        yield kind, raw[at : at + size]
        at += size + 7 & ~7


def _name(key: bytes, hashed: bool) -> bytes:
    """The name in a key of a directory (j_drec_key_t, j_drec_hashed_key_t), without the number before it."""
    if hashed:
        length, at = int.from_bytes(key[:4], "little") & 0x3FF, 4
    else:
        length, at = int.from_bytes(key[:2], "little"), 2
    return key[at : at + length].partition(b"\0")[0]


def _target(value: bytes) -> tuple[int, EntryType]:
    """Number and type that a record of a directory tells (j_drec_val_t)."""
    if len(value) < 18:
        raise broken("a directory", "an entry is cut off")
    number, _, flags = struct.unpack_from("<QQH", value)
    return number, _TYPES.get(flags & 15, EntryType.OTHER)


def _attributes(tree: Tree, inode: Inode) -> dict[bytes, Attribute]:
    """The extended attributes of a file by name (j_xattr_key_t, j_xattr_val_t)."""
    found: dict[bytes, Attribute] = {}
    for key, value in tree.records(inode.number, XATTR):
        if len(value) < 4 or len(found) > _MAX_ATTRIBUTES:
            raise broken(f"inode {inode.number}", "its attributes make no sense")
        name = key[2 : 2 + int.from_bytes(key[:2], "little")].partition(b"\0")[0]
        flags, length = struct.unpack_from("<HH", value)
        inside = value[4 : 4 + length]
        if flags & _APART and len(inside) >= 16:
            found[name] = Attribute(name, b"", *struct.unpack_from("<QQ", inside))
        elif flags & _EMBEDDED and len(inside) == length:
            found[name] = Attribute(name, inside, 0, length)
        else:
            raise broken(f"inode {inode.number}", "one of its attributes makes no sense")
    return found


def _value(tree: Tree, attribute: Attribute, entry: Entry) -> bytes:
    if not attribute.content:
        return attribute.inside
    if attribute.size > _MAX_VALUE:
        name = printable(attribute.name)
        raise broken(f"'{printable(entry.path)}'", f"its attribute {name} has {attribute.size} bytes")
    content = _content(tree, attribute.content, attribute.size, entry)
    what = f"of the attribute {printable(attribute.name)} are lacking"
    return SureReader(content, what).read_at(0, attribute.size)


def _plain_size(tree: Tree, inode: Inode) -> int:
    """How long a compressed file is: what cannot be told is heard of by who opens it."""
    if inode.flags & _HAS_PLAIN_SIZE:
        return inode.plain
    try:
        found = _attributes(tree, inode).get(decmpfs.ATTRIBUTE)
        head = decmpfs.read_head(found.inside) if found is not None else None
    except BrowseError:
        head = None
    return head.size if head is not None else inode.size


def _content(tree: Tree, number: int, size: int, entry: Entry) -> MappedReader:
    pieces, shown = _pieces(tree, number, size, entry), printable(entry.path)
    if tree.cipher is None:
        return MappedReader(tree.disk.reader, size, pieces, label=shown)
    from imagefs.browse.deciphered import DecipheredReader

    if int.from_bytes(tree.volume.raw[976:984], "little"):  # er_state_oid
        why = "the volume was being encrypted or decrypted"
        raise BrowseError(f"'{shown}' cannot be decrypted: {why}", path=entry.path)
    if tree.volume.sealed or not tree.volume.one_key:
        why = (
            "the volume is encrypted and sealed"
            if tree.volume.one_key
            else "its files have keys of their own"
        )
        raise BrowseError(f"'{shown}' cannot be decrypted: {why}", path=entry.path)
    return DecipheredReader(tree.disk.reader, size, pieces, tree.cipher, label=shown)


def _pieces(tree: Tree, number: int, size: int, entry: Entry) -> list[Piece]:
    """Where the content with this number lies; a part of which nothing is said is left out."""
    pieces, block_size, end = list[Piece](), tree.disk.block_size, 0
    for start, length, block, code in tree.extents(number) if size else ():
        if (
            start < end
            or length % block_size
            or not length
            or block + length // block_size > tree.disk.blocks
        ):
            raise broken(f"'{printable(entry.path)}'", "the list of its parts makes no sense")
        end = start + length
        if start < size:
            source, length = block * block_size if block else None, min(length, size - start)
            coded = tree.cipher is not None
            pieces.append(
                _coded(tree, start, length, source, code) if coded else Piece(start, length, source)
            )
        if len(pieces) > _MAX_PIECES:
            raise broken(f"'{printable(entry.path)}'", "it has too many parts")
    return pieces


def _coded(tree: Tree, start: int, length: int, source: int | None, code: int) -> Piece:
    from imagefs.browse.deciphered import CodedPiece

    if source is not None and code >> 48:
        raise broken(f"block {source // tree.disk.block_size}", "what it was encrypted as makes no sense")
    return CodedPiece(start, length, source, code * (tree.disk.block_size // SECTOR))


def _cipher(volume: Volume, keys: Mapping[str, bytes]) -> SectorCipher:
    """What decrypts a volume. BrowseError where there is no key for it."""
    key = keys.get(volume.uuid.hex())
    if key is None:
        raise _locked(volume)
    from imagefs.block.sectorcipher import SectorCipher

    return SectorCipher("aes-xts-plain64", key)


def _locked(volume: Volume) -> Locked:
    return Locked(
        f"the APFS volume '{printable(volume.name.encode('utf-8', 'replace'))}' is encrypted",
        hint="`imagefs ls IMAGE` says what opens it, for --unlock",
    )
