"""What ``verify --level deep`` adds: can every file in an image be read, to its end, as the file systems tell it?

Chunks may be right and a file lost all the same: it was damaged before it was captured, or some of it was not captured
or could not be read. Every folder is listed and every file read, named streams too; what differs in nothing but that
its content is elsewhere (encrypted by Windows, kept in the cloud) is counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from itertools import islice

from imagefs.block.views import extents_of
from imagefs.browse.names import printable
from imagefs.errors import BrowseError, ImagefsError, Locked
from imagefs.interfaces import (
    Entry,
    EntryType,
    FileSystem,
    Finding,
    HasStreams,
    HasXattrs,
    NoProgress,
    Progress,
    Reader,
    State,
    Volume,
)
from imagefs.ops.diskimage import DiskImage
from imagefs.volume import probe

#: What is read at once, and how many files are looked at in a turn.
_STEP, _BATCH = 1 << 20, 512
#: File systems that can be browsed everywhere: one that cannot is damaged.
_KNOWN = frozenset(
    {"ntfs", "fat12", "fat16", "fat32", "exfat", "ext2", "ext3", "ext4", "xfs", "apfs", "iso9660"}
)
#: What is no file system: nothing to look into.
_OTHERS = frozenset({"swap", "raid", "lvm2", "luks", "bitlocker"})
#: Those whose files have named streams.
_WITH_STREAMS = frozenset({"ntfs", "hfs", "apfs"})
#: Flags of what cannot be told of.
_DAMAGED = frozenset({"damaged", "unreadable"})
#: Flags of files whose content is not on the disk in a way that anybody but their owner can read.
_ELSEWHERE = frozenset({"encrypted", "cloud"})


def look_into(disk: DiskImage, *, progress: Progress | None = None) -> Iterator[Finding]:
    """What of the file systems in an image cannot be read. Shadow copies and snapshots are left out."""
    for volume in disk.all_volumes:
        if not volume.moment:
            yield from _Volume(disk, volume, progress or NoProgress()).findings()


class _Volume:
    def __init__(self, disk: DiskImage, volume: Volume, progress: Progress) -> None:
        self._disk = disk
        self._volume = volume
        self._progress = progress
        self._elsewhere = 0

    def findings(self) -> Iterator[Finding]:
        container = self._disk.container(self._volume.id)
        if container is not None and not container.is_file_system:
            if container.state in ("locked", "refused"):
                yield self._finding("warning", "locked", container.message)
            return
        try:
            kind = probe(self._disk.volume_reader(self._volume)).kind
        except ImagefsError as error:
            yield self._finding("error", "volume", error.message)
            return
        if kind in _OTHERS:
            return
        if not kind:
            yield self._finding("note", "unknown", "no file system is known there: nothing was looked into")
            return
        try:
            fs = self._disk.filesystem(self._volume.id)
            root = fs.root()
        except Locked as error:
            yield self._finding("warning", "locked", f"{error.message}; {error.hint}")
            return
        except ImagefsError as error:
            severity = "error" if kind in _KNOWN else "warning"
            yield self._finding(severity, "filesystem", f"its {kind} cannot be opened: {error.message}")
            return
        with closing(fs):
            self._disk.let_go(fs)
            self._progress.start(f"files of {self._volume.id}", fs.used_bytes)
            yield from self._tree(fs, root)
        if self._elsewhere:
            said = (
                f"{self._elsewhere} files are encrypted or kept elsewhere: their content was not looked into"
            )
            yield self._finding("note", "elsewhere", said)

    def _tree(self, fs: FileSystem, root: Entry) -> Iterator[Finding]:
        """Contents first, then what lies beside them: a worker that is asked in turns cannot work ahead."""
        from imagefs.browse.walk import walk

        errors = list[ImagefsError]()
        found = walk(fs, root, onerror=errors.append)
        while some := list(islice(found, _BATCH)):
            for look in (self._contents, self._beside):
                for entry in some:
                    try:
                        yield from look(fs, entry)
                    except ImagefsError as error:
                        yield self._of_file(entry, error.message)
            yield from self._told(errors)
        yield from self._told(errors)

    def _told(self, errors: list[ImagefsError]) -> Iterator[Finding]:
        for error in errors:
            yield self._finding("error", "folder", error.message)
        errors.clear()

    def _contents(self, fs: FileSystem, entry: Entry) -> Iterator[Finding]:
        if not _DAMAGED.isdisjoint(entry.flags):
            yield self._of_file(entry, "what the file system says of it cannot be read")
            return
        if entry.type is not EntryType.FILE:
            return
        try:
            content = fs.open(entry)
        except BrowseError:
            if not _is_elsewhere(entry):
                raise
            self._elsewhere += 1
            return
        with closing(content):
            yield from self._content(entry, content)

    def _beside(self, fs: FileSystem, entry: Entry) -> Iterator[Finding]:
        """Targets of links, named streams, extended attributes."""
        if not _DAMAGED.isdisjoint(entry.flags):
            return
        if entry.type is EntryType.SYMLINK and not _is_elsewhere(entry):
            fs.readlink(entry)
        if fs.kind in _WITH_STREAMS and isinstance(fs, HasStreams):
            for stream in fs.streams(entry):
                with closing(fs.open_stream(entry, stream.name)) as content:
                    yield from self._content(entry, content)
        if fs.kind != "ntfs" and isinstance(fs, HasXattrs):
            fs.xattrs(entry)

    def _content(self, entry: Entry, content: Reader) -> Iterator[Finding]:
        """Read all that is stored of a content; the rest is told once."""
        lacking = dict[State, int]()
        for extent in extents_of(content, 0, content.size):
            if extent.state in (State.SKIPPED, State.UNREADABLE):
                lacking[extent.state] = lacking.get(extent.state, 0) + extent.length
            elif extent.state is State.STORED:
                end = extent.offset + extent.length
                for at in range(extent.offset, end, _STEP):
                    self._progress.advance(len(content.read_at(at, min(_STEP, end - at))))
        if State.UNREADABLE in lacking:
            yield self._of_file(
                entry, f"{lacking[State.UNREADABLE]} bytes of it could not be read when it was captured"
            )
        if State.SKIPPED in lacking:
            said = f"{lacking[State.SKIPPED]} bytes of it were not captured"
            yield self._of_file(entry, said, severity="warning")

    def _of_file(self, entry: Entry, why: str, *, severity: str = "error") -> Finding:
        path = f"/{self._volume.id}{printable(entry.path)}"
        message = why if printable(entry.path) in why else f"{path}: {why}"
        return Finding(severity, "file", message, self._disk.id, files=(path,))

    def _finding(self, severity: str, code: str, message: str) -> Finding:
        told = message if message.startswith(self._volume.id) else f"{self._volume.id}: {message}"
        return Finding(severity, code, told, self._disk.id)


def _is_elsewhere(entry: Entry) -> bool:
    return any(flag in _ELSEWHERE or flag.startswith("reparse-") for flag in entry.flags)
