"""What the mount shows, as a tree of nodes; pure, and tested without FUSE.

::

    disk.raw      the whole disk; it and the volumes can be written to where their readers can be
    p1.raw  p1/   each volume: its bytes, and its files where its file system can be read
    p2.raw  p2.txt                     … or one sentence that says why it cannot
    deleted/      p1/ …: what was deleted on the volumes that tell, searched for when it is entered
    image.json    the facts handed in

Knows Readers and FileSystems; knows neither FUSE nor images.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from imagefs.block.views import BytesReader, extents_of, hole_bytes
from imagefs.browse.deletedtree import DeletedTree
from imagefs.errors import BrowseError, ImagefsError, PathNotFound
from imagefs.interfaces import (
    Entry,
    EntryType,
    HasStreams,
    HasXattrs,
    Named,
    Reader,
    State,
    Whole,
    Writable,
)
from mounter.attributes import Attributes, attributes_of, named
from mounter.deletedfolder import DELETED, DeletedFolder
from mounter.entrycache import EntryCache
from mounter.volumetree import LATER, VolumeSpec, VolumeTree

__all__ = ["MountSpec", "MountTree", "Node", "Opened", "VolumeSpec"]

_ROOT_INODE = 1
#: Raw bytes hold every file of the disk, whatever its mode: they are for the owner of the mount only.
_RAW_MODE = stat.S_IFREG | 0o400
_TEXT_MODE = stat.S_IFREG | 0o444
_ROOT_MODE = stat.S_IFDIR | 0o555
#: Deleted files lie outside the folders that may have guarded them.
_DELETED_MODE = stat.S_IFDIR | 0o500


@dataclass(frozen=True, slots=True)
class MountSpec:
    """Everything a mount needs. The mount closes the readers when it ends.

    ``facts`` is the content of ``image.json``; ``fsname`` what the mount table calls the mount;
    ``mtime_ns`` the time shown on the raw files.
    """

    disk: Reader
    volumes: tuple[VolumeSpec, ...]
    facts: bytes
    fsname: str
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Node:
    """One thing the mount shows: a file of ours (``reader``), or an entry of a volume."""

    attributes: Attributes
    reader: Reader | None = None
    volume: VolumeTree | None = None
    entry: Entry | None = None


@dataclass(frozen=True, slots=True)
class Opened:
    """A Reader to answer reads from; ``owned`` when it was opened for this and must be closed."""

    reader: Reader
    owned: bool


class MountTree:
    """Resolves raw paths to nodes, lists them and opens them. Safe to call from several threads."""

    #: Whether what lies in the root may change while it is shown.
    fleeting = False

    def __init__(
        self, spec: MountSpec, *, log: Callable[[str], None], cache: EntryCache | None = None
    ) -> None:
        self._spec = spec
        cache = cache or EntryCache()
        self._volumes = {
            volume.id.encode(): VolumeTree(volume, slot, cache=cache, log=log)
            for slot, volume in enumerate(spec.volumes)
        }
        self._root = Node(self._attributes(_ROOT_MODE, 0, _ROOT_INODE, nlink=2 + len(spec.volumes)))
        self._files = self._fixed_files()
        number = _ROOT_INODE + 1 + len(self._files) + len(spec.volumes)
        self._deleted = DeletedFolder(self._volumes, cache=cache, log=log)
        self._deleted_node = Node(self._attributes(_DELETED_MODE, 0, number, nlink=2))

    def _fixed_files(self) -> dict[bytes, Node]:
        readers: dict[bytes, tuple[Reader, int]] = {b"disk.raw": (self._spec.disk, _RAW_MODE)}
        for name, volume in self._volumes.items():
            readers[name + b".raw"] = (volume.spec.reader, _RAW_MODE)
        readers[b"image.json"] = (BytesReader(self._spec.facts), _TEXT_MODE)
        return {
            name: Node(self._file_attributes(reader, mode, _ROOT_INODE + 1 + at), reader)
            for at, (name, (reader, mode)) in enumerate(readers.items())
        }

    def _file_attributes(self, reader: Reader, mode: int, inode: int) -> Attributes:
        mode |= 0o200 if isinstance(reader, Writable) else 0
        return self._attributes(mode, reader.size, inode)._replace(allocated=_allocated(reader))

    def _attributes(self, mode: int, size: int, inode: int, *, nlink: int = 1) -> Attributes:
        time = self._spec.mtime_ns
        owner, group = os.geteuid(), os.getegid()
        return Attributes(mode, size, inode, nlink, owner, group, time, time, time)

    def listen(self, gone: Callable[[bytes], None]) -> None:
        """``gone`` would hear of folders in the root that may be forgotten; there are none."""

    @property
    def writable(self) -> bool:
        return isinstance(self._spec.disk, Writable)

    @property
    def size(self) -> int:
        """The size of the whole disk in bytes."""
        return self._spec.disk.size

    def find(self, path: bytes) -> Node:
        """The node at ``path`` (``b"/"`` is the root); PathNotFound if there is none."""
        if path == b"/":
            return self._root
        top, slash, rest = path[1:].partition(b"/")
        if top == DELETED and self._deleted.shows:
            if not slash:
                return self._deleted_node
            top, slash, rest = rest.partition(b"/")
            volume = self._deleted.volume(top)
        else:
            volume = self._volumes.get(top)
        if volume is not None:
            return self._shown(volume, volume.lookup(slash + rest if rest else b"/"))
        node = self._files.get(top) or self._reason_file(top)
        if slash or node is None:
            raise PathNotFound(f"the mount shows no {path!r}", path=path)
        return node

    def _shown(self, volume: VolumeTree, entry: Entry) -> Node:
        return Node(attributes_of(entry, volume.slot), volume=volume, entry=entry)

    def _reason_file(self, name: bytes) -> Node | None:
        """``p2.txt``, where p2 has no tree to show."""
        volume = self._volumes.get(name.removesuffix(b".txt")) if name.endswith(b".txt") else None
        reason = volume.reason() if volume else None
        if volume is None or reason is None:
            return None
        text = BytesReader(f"{volume.spec.id} shows no files: {reason}\n".encode("utf-8", "replace"))
        inode = _ROOT_INODE + 1 + len(self._files) + volume.slot
        return Node(self._attributes(_TEXT_MODE, text.size, inode), text)

    def children(self, node: Node) -> Iterator[tuple[bytes, Attributes]]:
        """Name and attributes of everything in a directory, as they come, without ``.`` and ``..``."""
        if node.volume is not None and node.entry is not None:
            slot = node.volume.slot
            for name, entry in node.volume.children(node.entry):
                yield name, named(entry, slot) if isinstance(entry, Named) else attributes_of(entry, slot)
            return
        if node is self._deleted_node:
            for name, volume in self._deleted.volumes():
                yield name, attributes_of(volume.lookup(b"/"), volume.slot)
            return
        for name, file in self._files.items():
            yield name, file.attributes
        for name, volume in self._volumes.items():
            yield self._top_child(name, volume)
        if self._deleted.shows:
            yield DELETED, self._deleted_node.attributes

    def _top_child(self, name: bytes, volume: VolumeTree) -> tuple[bytes, Attributes]:
        node = None if volume.spec.later else self._reason_file(name + b".txt")
        if node is not None:
            return name + b".txt", node.attributes
        return name, attributes_of(volume.lookup(b"/"), volume.slot)

    def open(self, node: Node) -> Opened:
        """A Reader of the node's bytes; BrowseError where it is no file or its size is not as listed."""
        if node.reader is not None:
            return Opened(node.reader, owned=False)
        if node.volume is None or node.entry is None or node.entry.type is not EntryType.FILE:
            raise BrowseError("only files can be opened")
        reader = node.volume.filesystem.open(node.entry)
        if reader.size != node.attributes.size:
            reader.close()
            raise BrowseError(
                f"{node.entry.path!r} is listed with {node.attributes.size} bytes but holds {reader.size}",
                path=node.entry.path,
            )
        return Opened(reader, owned=True)

    def states(self, node: Node) -> dict[str, int | Whole]:
        """How many bytes of a file the image holds in each state, by its word; empty for what is no file.
        Of what is deleted, ``whole`` says how much of it is left."""
        if node.entry is not None and node.volume is not None and node.entry.deleted:
            filesystem = node.volume.filesystem
            return {"whole": filesystem.wholeness(node.entry)} if isinstance(filesystem, DeletedTree) else {}
        if node.reader is None and (node.entry is None or node.entry.type is not EntryType.FILE):
            return {}
        opened = self.open(node)
        try:
            found = dict.fromkeys((State.STORED, State.ZERO, State.SKIPPED, State.UNREADABLE), 0)
            for extent in extents_of(opened.reader, 0, opened.reader.size):
                found[extent.state] += extent.length
            return {state.name.lower(): count for state, count in found.items()}
        finally:
            if opened.owned:
                opened.reader.close()

    def xattrs(self, node: Node) -> dict[bytes, bytes] | None:
        """The extended attributes that the image has of an entry; None where its file system has none of any."""
        if node.volume is None or node.entry is None or node.entry is LATER:
            return None
        if not isinstance(node.volume.filesystem, HasXattrs):
            return None
        return node.volume.filesystem.xattrs(node.entry)

    def streams(self, node: Node) -> list[bytes]:
        """The names under which the other contents of an entry are opened, behind its own and a colon."""
        if node.volume is None or node.entry is None or node.entry is LATER or "stream" in node.entry.flags:
            return []
        filesystem = node.volume.filesystem
        return [s.name for s in filesystem.streams(node.entry)] if isinstance(filesystem, HasStreams) else []

    def readlink(self, node: Node) -> bytes:
        if node.volume is None or node.entry is None or node.entry.type is not EntryType.SYMLINK:
            raise BrowseError("not a symbolic link")
        return node.volume.filesystem.readlink(node.entry)

    def close(self) -> None:
        """Close every file system, every volume and the disk."""
        for volume in self._volumes.values():
            volume.close()
        self._spec.disk.close()


def _allocated(reader: Reader) -> int:
    """How many bytes may hold data. ``cp`` and ``tar`` look for holes only in files with fewer blocks
    than bytes."""
    try:
        return reader.size - hole_bytes(reader, 0, reader.size)
    except ImagefsError:  # damage is for the read that meets it
        return reader.size
