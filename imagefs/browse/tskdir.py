"""Directories through The Sleuth Kit: the live entries, without what TSK makes up.

Hidden are ``.`` and ``..``, deleted names, and names that do not stand on the disk: $OrphanFiles, $MBR,
$FAT1, volume labels, the nameless system files of HFS+ and exFAT. NTFS's own ($MFT) are shown, as
``fls`` does. Never imports pytsk3.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from imagefs.block.cache import BlockCache
from imagefs.block.views import BytesReader
from imagefs.browse import tskentry
from imagefs.browse.bigdir import Damage, ExtNames, InlineNames, KnownNames, Name, Names, NtfsNames
from imagefs.browse.content import FetchReader, MappedReader
from imagefs.browse.mft import pieces_of
from imagefs.browse.nameindex import NameIndex
from imagefs.browse.names import FOLDED_KINDS, fold, join, printable, repeated, safe_name, shown_name
from imagefs.browse.soon import Soon
from imagefs.browse.tskhandle import TSK_ERRORS, Facts, Handle
from imagefs.browse.usage import EXFAT_SYSTEM
from imagefs.errors import BrowseError, ImagefsError
from imagefs.interfaces import Entry, EntryType, Link, Named

#: Entries made under one hold of the lock.
_BATCH = 128
#: Directories from this size on are not held in memory but indexed, up to that one; the indexes of so
#: many names are kept, at 12 bytes each. Names after so many are not told apart from those before.
_BIG, _MAX_INDEXED = 1 << 20, 96 << 20
_KEPT_NAMES, _MAX_SEEN = 4_000_000, 1 << 20
#: From this size on TSK's quadratic listing is worse than our own.
_QUADRATIC = 256 << 10
#: Types that a directory tells for sure and whose entries need no look of their own.
_PLAIN = frozenset({EntryType.FILE, EntryType.SYMLINK, EntryType.FIFO, EntryType.SOCKET})
_VIRTUAL = (10, 11)
_NAME_DIRECTORY, _NAME_UNALLOCATED = 3, 2
_INDEX_ROOT, _INDEX_ALLOCATION, _BITMAP = 144, 160, 176
_MAX_BITMAP = 8 << 20


class Directories:
    """Scans directories of one file system; keeps the indexes of a few large ones."""

    def __init__(self, handle: Handle, facts: Facts, maker: tskentry.EntryMaker) -> None:
        self._handle = handle
        self._facts = facts
        self._maker = maker
        self._key = fold if facts.kind in FOLDED_KINDS else bytes
        self._soon = Soon(facts, self._find_names)
        self._indexes = BlockCache[str, NameIndex](_KEPT_NAMES, len)

    def scan(self, directory: Entry) -> Iterator[Entry]:
        """The entries of a directory, read in portions. What cannot be read of it is raised after
        everything that can."""
        errors: list[BaseException] = []
        names = self._names_of(directory)
        if names is None:
            opened, taken = self._open(directory)
            yield from _distinct(directory, taken, self._from_tsk(opened, directory, errors))
        else:
            damage = Damage()
            if names.size < _BIG:
                if not isinstance(names, KnownNames):
                    self._soon.fetch_blocks([names])
                inside = [each for _, block in names.blocks(damage) for each in block]
                if not isinstance(names, KnownNames):
                    self._soon.fetch_entries(inside)
                yield from self._small(directory, inside, errors)
            else:
                for block in self._apart(directory, names, damage):
                    self._soon.fetch_entries(block)
                    yield from self._entries(directory, block, errors)
            if damage.blocks:
                errors.insert(0, damage.error or _damage(directory, damage))
        if errors:
            raise errors[0]

    def names(self, directory: Entry) -> Iterator[Entry | Named]:
        """The same, but only directories are looked at where the directory tells enough of the rest."""
        names, damage = self._names_of(directory), Damage()
        if names is None:
            yield from self.scan(directory)
            return
        if names.size < _BIG:
            blocks: Iterable[list[Name]] = [_safe_names(block) for _, block in names.blocks(damage)]
            found = [each.name for block in blocks for each in block]
            if damage.blocks or len(set(found)) != len(found):
                yield from self.scan(directory)
                return
        else:
            blocks = self._apart(directory, names, damage)
        errors: list[BaseException] = []
        for block in blocks:
            for each in block:
                if each.type in _PLAIN:
                    yield Named(each.name, each.type, str(each.inode))
                else:
                    yield from self._entries(directory, [each], errors)
        if damage.blocks or errors:
            raise errors[0] if errors else damage.error or _damage(directory, damage)

    def find(self, directory: Entry, name: bytes) -> list[Entry] | None:
        """The entries of a large directory that are called ``name``, or so but for case; None for a
        directory that is better scanned."""
        names = self._names_of(directory)
        if names is None or not _BIG <= names.size <= _MAX_INDEXED:
            return None
        index = self._indexes.get(directory.inode, lambda: NameIndex.of(names, self._key))
        found = list(index.find(name))
        base, mark, number = name.rpartition(b"~")
        if not found and mark and number.isdigit():
            found = [each._replace(name=name) for each in index.find(base) if each.inode == int(number)][:1]
        if not found and index.damage.blocks:
            return None
        errors: list[BaseException] = []
        entries = self._entries(directory, found, errors)
        if errors:
            raise errors[0]
        return entries

    def _apart(self, directory: Entry, names: Names, damage: Damage) -> Iterator[list[Name]]:
        """The blocks of a large directory, with names as they are shown: one that was there before gets
        its inode, so that the first can be shown at once. A complete pass leaves an index behind."""
        index, seen = NameIndex(names, self._key), set[int]()
        for start, block in names.blocks(damage):
            shown = [safe_name(each.name) for each in block]
            if names.size <= _MAX_INDEXED:
                index.add(start, shown)
            for at, name in enumerate(shown):
                key = hash(name)
                if key in seen:
                    shown[at] = name + b"~%d" % block[at].inode
                elif len(seen) < _MAX_SEEN:
                    seen.add(key)
            yield _renamed(block, shown)
        index.damage = damage
        if names.size <= _MAX_INDEXED:
            self._indexes.get(directory.inode, index.seal)

    def _small(self, directory: Entry, names: list[Name], errors: list[BaseException]) -> Iterator[Entry]:
        entries = self._entries(directory, names, errors)
        if len({entry.path for entry in entries}) == len(entries):
            return iter(entries)
        shown = [entry.name for entry in entries]
        return _distinct(directory, shown, zip(shown, entries, strict=True))

    def _open(self, directory: Entry) -> tuple[Any, list[bytes]]:
        """TSK's directory, set to its start, and the names in it."""
        with self._handle.hold(_quoted(directory)) as info:
            opened = info.open_dir(inode=tskentry.address(directory.inode))
        names: list[bytes] = []
        with suppress(ImagefsError), self._handle.hold(_quoted(directory)):
            # what cannot be read of an entry is heard of when it is made
            names.extend(_safe(file) for file in opened if not self._hidden(file, directory))
        iter(opened)
        return opened, names

    def _from_tsk(
        self, opened: Any, directory: Entry, errors: list[BaseException]
    ) -> Iterator[tuple[bytes, Entry]]:
        taken = _BATCH
        while taken == _BATCH:
            taken, batch = 0, []
            try:
                with self._handle.hold(_quoted(directory)):
                    # not islice: `iter` would set the directory back to its start
                    while taken < _BATCH and (file := next(opened, None)) is not None:
                        taken += 1
                        if not self._hidden(file, directory):
                            batch.append(self._named(file, directory, errors))
            except ImagefsError as error:
                errors.append(error)
            yield from batch

    def _entries(self, directory: Entry, names: list[Name], errors: list[BaseException]) -> list[Entry]:
        """An entry for each name, read from the disk; TSK is asked only for what is left."""
        above, make = directory.path.rstrip(b"/") + b"/", self._maker.from_disk
        found: list[Entry | None] = []
        for each in names:
            try:
                found.append(make(above + safe_name(each.name), each))
            except ImagefsError as error:
                errors.append(error)
                found.append(tskentry.unreadable(above + safe_name(each.name), each.inode, each.type))
        known = [entry for entry in found if entry is not None]
        return known if len(known) == len(found) else self._completed(directory, names, found, errors)

    def _completed(
        self,
        directory: Entry,
        names: list[Name],
        found: list[Entry | None],
        errors: list[BaseException],
    ) -> list[Entry]:
        """The same with what is None filled in, in portions: the lock is held for moments only."""
        left = [at for at, entry in enumerate(found) if entry is None]
        for first in range(0, len(left), _BATCH):
            try:
                with self._handle.hold(_quoted(directory)) as info:
                    for at in left[first : first + _BATCH]:
                        path = join(directory.path, safe_name(names[at].name))
                        found[at] = self._numbered(info, path, names[at], errors)
            except ImagefsError as error:
                errors.append(error)
        return [
            entry or tskentry.unreadable(join(directory.path, safe_name(each.name)), each.inode, each.type)
            for each, entry in zip(names, found, strict=True)
        ]

    def _named(self, file: Any, directory: Entry, errors: list[BaseException]) -> tuple[bytes, Entry]:
        name = _safe(file)
        path = join(directory.path, name)
        entry = self._entry(path, file, errors) if file.info.meta is not None else None
        number = int(file.info.name.meta_addr)
        return name, entry or tskentry.unreadable(path, number, tskentry.name_type(file))

    def _numbered(self, info: Any, path: bytes, found: Name, errors: list[BaseException]) -> Entry | None:
        with suppress(*TSK_ERRORS):  # no such inode: the name is there all the same
            file = info.open_meta(inode=found.inode)
            if found.sequence in (None, int(file.info.meta.seq)):
                return self._entry(path, file, errors)
        return None

    def _entry(self, path: bytes, file: Any, errors: list[BaseException]) -> Entry | None:
        with suppress(*TSK_ERRORS):  # one damaged file; if a read failed below, the image keeps why
            try:
                return self._maker.make(path, file)
            except ImagefsError as error:
                errors.append(error)
        return None

    def _hidden(self, file: Any, directory: Entry) -> bool:
        name, meta = file.info.name, file.info.meta
        if name is None or int(name.flags) & _NAME_UNALLOCATED:
            return True
        raw = bytes(name.name or b"")
        if raw in (b".", b".."):
            return int(name.type) == _NAME_DIRECTORY or meta is None
        if int(name.type) in _VIRTUAL or (meta is not None and int(meta.type) in _VIRTUAL):
            return True
        return directory.path == b"/" and self._invented(raw, int(name.meta_addr), meta)

    def _invented(self, name: bytes, inode: int, meta: Any) -> bool:
        """Whether TSK made up this name in the root: volume labels, system files without a name."""
        kind = self._facts.kind
        if kind == "hfs":
            return inode < 16 and name.startswith(b"$")
        if self._facts.fat is None or meta is None:
            return False
        if name.endswith(b" (Volume Label Entry)"):
            return int(meta.size) == 0
        return kind == "exfat" and name in EXFAT_SYSTEM and not int(meta.mtime)

    def soon(self, folders: Sequence[Entry]) -> None:
        """These will be listed next: have what that takes read at once, where the reader has ``fetch``."""
        self._soon.expect(folders)

    def _names_of(self, directory: Entry) -> Names | None:
        """The names of a directory of ext or NTFS; None where TSK has to list it."""
        return self._soon.take(directory) or self._find_names(directory)

    def _find_names(self, directory: Entry) -> Names | None:
        if self._facts.ext is not None:
            return self._ext_names(directory)
        return self._ntfs_names(directory) if self._facts.kind == "ntfs" else None

    def _ext_names(self, directory: Entry) -> Names | None:
        facts, label = self._facts, printable(directory.path)
        inode = facts.ext.get(int(directory.inode)) if facts.ext is not None else None
        if facts.ext is None or inode is None:
            return None
        self._handle.check_open()
        if inode.is_inline and facts.xattrs is not None:
            return InlineNames(facts.xattrs.inline(int(directory.inode), inode, label))
        pieces = facts.ext.pieces(inode, label)
        if pieces is None:
            return None
        content = MappedReader(facts.reader, inode.size, pieces, label=label)
        return ExtNames(content, facts.block_size, pieces)

    def short(self, directory: Entry, name: bytes) -> int | None:
        """The record of the file that has ``name`` as its short one in an NTFS directory."""
        names, key = self._ntfs_names(directory, short=True), fold(name)
        for _, block in names.blocks(Damage()) if names is not None else ():
            for each in block:
                if fold(each.name) == key:
                    return each.inode
        return None

    def links(self, number: int) -> list[Link]:
        """All names in the directory with record ``number``; what cannot be read of them is left out."""
        found: list[Link] = []
        directory = Entry(b"/", EntryType.DIRECTORY, 0, str(number))
        with suppress(ImagefsError):
            names = self._names_of(directory)
            if names is None:
                return [
                    Link(tskentry.address(each.inode), number, each.name) for each in self.scan(directory)
                ]
            for _, block in names.blocks(Damage()):
                found += [Link(each.inode, number, each.name) for each in block]
        return found

    def named(self, number: int, name: bytes) -> list[Link]:
        """Those that are ``name`` in the directory with record ``number``, as far as its blocks tell."""
        with suppress(ImagefsError):
            names = self._names_of(Entry(b"/", EntryType.DIRECTORY, 0, str(number)))
            return [Link(each.inode, number, name) for each in names.named(name)] if names is not None else []
        return []

    def _ntfs_names(self, directory: Entry, *, short: bool = False) -> Names | None:
        number, shown = tskentry.address(directory.inode), _quoted(directory)
        record = self._facts.mft.get(number) if self._facts.mft is not None else None
        if record is None or record.root is None or record.root.resident is None:
            return self._large_ntfs_names(number, shown, short=short)
        self._handle.check_open()
        root, tree, bitmap = record.root.resident, record.allocation, record.bitmap
        if tree is None:
            return NtfsNames(root, BytesReader(b""), b"", short=short)
        if bitmap is None or bitmap.resident is None or tree.resident is not None:
            return self._large_ntfs_names(number, shown, short=short)
        pieces = pieces_of(tree, self._facts.block_size, self._facts.reader.size)
        if pieces is None:
            return self._large_ntfs_names(number, shown, short=short)
        content = MappedReader(self._facts.reader, tree.size, pieces, label=shown)
        return NtfsNames(root, content, bitmap.resident, short=short)

    def _large_ntfs_names(self, number: int, shown: str, *, short: bool) -> Names | None:
        """Through TSK, where a record does not tell it all; None for a small directory."""
        with self._handle.hold(shown) as info:
            file = info.open_meta(inode=number)
            found = {s.type: s for s in tskentry.streams_of(file) if s.name == b"$I30"}
            if not {_INDEX_ROOT, _INDEX_ALLOCATION, _BITMAP} <= found.keys():
                return None
            tree = found[_INDEX_ALLOCATION]
            if (
                (tree.size < _QUADRATIC and not short)
                or found[_BITMAP].size > _MAX_BITMAP
                or found[_INDEX_ROOT].size > _BIG
            ):
                return None
            root, used = (_whole(file, found[kind]) for kind in (_INDEX_ROOT, _BITMAP))
        content = FetchReader(tree.size, tskentry.fetcher(self._handle, file, tree, shown), label=shown)
        return NtfsNames(root, content, used, short=short)


def _safe_names(block: list[Name]) -> list[Name]:
    return _renamed(block, [safe_name(each.name) for each in block])


def _renamed(block: list[Name], shown: list[bytes]) -> list[Name]:
    pairs = zip(block, shown, strict=True)
    return [each if name == each.name else each._replace(name=name) for each, name in pairs]


def _distinct(
    directory: Entry, names: Iterable[bytes], found: Iterator[tuple[bytes, Entry]]
) -> Iterator[Entry]:
    """Entries whose names differ: those that are equal get their inode behind them."""
    twice = repeated(names)
    taken = frozenset(names) if twice else frozenset()
    done: set[bytes] = set()
    for name, entry in found:
        if name not in twice:
            yield entry
            continue
        unique = shown_name(name, entry.inode, twice=twice, taken=taken)
        if unique not in done:  # the very same name and inode again: one entry, read twice
            done.add(unique)
            yield tskentry.renamed(entry, join(directory.path, unique))


def _whole(file: Any, stream: tskentry.Stream) -> bytes:
    return bytes(file.read_random(0, stream.size, stream.type, stream.id)) if stream.size else b""


def _safe(file: Any) -> bytes:
    return safe_name(bytes(file.info.name.name or b""))


def _quoted(directory: Entry) -> str:
    return f"'{printable(directory.path)}'"


def _damage(directory: Entry, damage: Damage) -> BrowseError:
    return BrowseError(
        f"{damage.blocks} blocks of the directory {_quoted(directory)} are damaged",
        hint="names in them are missing",
        path=directory.path,
        offset=damage.first,
    )
