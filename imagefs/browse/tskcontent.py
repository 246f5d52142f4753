"""The content of files and the targets of symlinks through The Sleuth Kit. Never imports pytsk3.

Where a file's bytes lie on the disk as they are (ext, FAT, exFAT), they are read from there without
TSK. What cannot be decoded is refused when it is opened: encrypted, WOF, cloud and deduplicated files,
HFS+ compression. Zeros are never handed out for it.
"""

from __future__ import annotations

from typing import Any

from imagefs.block.views import BytesReader
from imagefs.browse import reparse, tskentry
from imagefs.browse.content import FetchReader, MappedReader, Piece, damaged
from imagefs.browse.names import printable
from imagefs.browse.tskhandle import Facts, Handle
from imagefs.errors import BrowseError
from imagefs.interfaces import METADATA, Entry, EntryType, Place, Reader

_MAX_LINK = 64 << 10


class Contents:
    """Opens the files of one file system."""

    def __init__(self, handle: Handle, facts: Facts) -> None:
        self._handle = handle
        self._facts = facts

    def open(self, entry: Entry) -> Reader:
        shown = printable(entry.path)
        if entry.type is not EntryType.FILE:
            raise BrowseError(f"'{shown}' is not a file but a {entry.type}", path=entry.path)
        if "unreadable" in entry.flags:
            raise damaged(shown, 0, "the file system does not say where its bytes lie")
        mapped = self._mapped(entry, shown)
        if mapped is not None:
            return mapped
        with self._handle.hold(f"'{shown}'") as info:
            file = info.open_meta(inode=tskentry.address(entry.inode))
            return self._content(entry, file, shown)

    def _mapped(self, entry: Entry, shown: str) -> MappedReader | None:
        """The content of an ext file without TSK; None where only TSK knows."""
        ext = self._facts.ext
        inode = ext.get(int(entry.inode)) if ext is not None else None
        if ext is None or inode is None:
            return None
        self._handle.check_open()
        _check(ext.must_refuse(inode), entry)
        pieces = ext.pieces(inode, shown)
        return None if pieces is None else MappedReader(self._facts.reader, inode.size, pieces, label=shown)

    def _content(self, entry: Entry, file: Any, shown: str) -> Reader:
        streams = tskentry.streams_of(file)
        stream = tskentry.addressed(self._facts.kind, streams, entry.inode)
        _check(self._undecodable(entry, file, streams, stream), entry)
        if stream is None:
            if entry.size or any(each.type == tskentry.NTFS_ATTRIBUTE_LIST for each in streams):
                raise damaged(shown, 0, "the file system does not say where its bytes lie")
            return BytesReader(b"")
        return self._reader(entry, file, stream, shown)

    def _reader(self, entry: Entry, file: Any, stream: tskentry.Stream, shown: str) -> Reader:
        layout = None
        if not stream.flags & (tskentry.RESIDENT | tskentry.COMPRESSED | tskentry.ENCRYPTED):
            layout = self._layout(entry, tskentry.runs_of(file, stream), stream.size, shown)
            if self._facts.ext is not None or self._facts.fat is not None:
                return layout
        fetch = tskentry.fetcher(self._handle, file, stream, f"'{shown}'")
        return FetchReader(stream.size, fetch, label=shown, layout=layout)

    def _layout(self, entry: Entry, runs: list[tskentry.Run], size: int, shown: str) -> MappedReader:
        """Where the bytes lie; what exFAT says was never written is a hole."""
        facts, valid = self._facts, size
        if facts.ext is None and any(run.filler for run in runs):
            raise damaged(shown, 0, "a part of the list of its clusters is missing")
        if facts.fat is not None:
            known = facts.fat.get(int(entry.inode)).valid_length
            valid = size if known is None else min(size, known)
        pieces: list[Piece] = tskentry.pieces_of(runs, facts.block_size, size=size, valid=valid)
        return MappedReader(facts.reader, size, pieces, label=shown)

    def _undecodable(
        self, entry: Entry, file: Any, streams: list[tskentry.Stream], stream: tskentry.Stream | None
    ) -> str:
        """Why the stream is not the content, as the rest of a sentence; empty when it is."""
        facts = self._facts
        if facts.ext is not None:
            return facts.ext.must_refuse(facts.ext.get(int(entry.inode)))
        if facts.kind == "hfs":
            packed = int(file.info.meta.flags) & tskentry.META_COMPRESSED
            packed |= stream.flags & tskentry.COMPRESSED if stream else 0
            return "compressed by macOS" if packed else ""
        if facts.kind != "ntfs":
            return ""
        if tskentry.is_encrypted(streams):
            return "encrypted by Windows (EFS)"
        point = tskentry.read_reparse(file, streams)
        return point.reason if point is not None and _is_elsewhere(point, file, stream) else ""

    def places(self, entry: Entry) -> list[Place]:
        """Where the streams of an entry lie in the volume."""
        shown, ext = printable(entry.path), self._facts.ext
        inode = ext.get(int(entry.inode)) if ext is not None else None
        if ext is not None and inode is not None:
            self._handle.check_open()
            first = ext.place(int(entry.inode))
            own = [] if first is None else [Place(METADATA, first, first + ext.size)]
            return own + _places(b"", ext.pieces(inode, shown) or [])
        with self._handle.hold(f"'{shown}'") as info:
            file, found = info.open_meta(inode=tskentry.address(entry.inode)), []
            for stream in tskentry.streams_of(file):
                if not stream.flags & tskentry.RESIDENT:
                    runs = [run for run in tskentry.runs_of(file, stream) if not run.filler]
                    pieces = tskentry.pieces_of(
                        runs, self._facts.block_size, size=stream.size, valid=stream.size
                    )
                    found += _places(stream.name, pieces)
            return found

    def readlink(self, entry: Entry) -> bytes:
        shown = printable(entry.path)
        if entry.type is not EntryType.SYMLINK:
            raise BrowseError(f"'{shown}' is not a symbolic link", path=entry.path)
        target = None
        if "encrypted" not in entry.flags and "unreadable" not in entry.flags:
            target = self._short_or_mapped(entry, shown)
            if target is None:
                with self._handle.hold(f"'{shown}'") as info:
                    target = self._target(entry, info.open_meta(inode=tskentry.address(entry.inode)))
        if not target:
            raise BrowseError(f"the target of '{shown}' cannot be decoded", path=entry.path)
        return target

    def _short_or_mapped(self, entry: Entry, shown: str) -> bytes | None:
        """The target of an ext symlink: in the inode, or in a block of its own."""
        inode = self._facts.ext.get(int(entry.inode)) if self._facts.ext is not None else None
        if inode is not None and inode.link is not None:
            return inode.link
        mapped = self._mapped(entry, shown) if entry.size <= _MAX_LINK else None
        return _whole_target(mapped.read_at(0, entry.size), entry) if mapped else None

    def _target(self, entry: Entry, file: Any) -> bytes | None:
        if self._facts.kind == "ntfs":
            point = tskentry.read_reparse(file, tskentry.streams_of(file))
            return point.target if point else None
        if self._facts.ext is None and file.info.meta.link is not None:
            return bytes(file.info.meta.link)
        if not 0 < entry.size <= _MAX_LINK:
            return None
        return _whole_target(bytes(file.read_random(0, entry.size)), entry)


def _places(stream: bytes, pieces: list[Piece]) -> list[Place]:
    return [
        Place(stream, piece.source, piece.source + piece.length)
        for piece in pieces
        if piece.source is not None
    ]


def _whole_target(data: bytes, entry: Entry) -> bytes | None:
    """A target holds no NUL, and is as long as its inode says."""
    return data if len(data) == entry.size and b"\0" not in data else None


def _check(why: str, entry: Entry) -> None:
    if why:
        raise BrowseError(
            f"'{printable(entry.path)}' is {why}, which cannot be decoded",
            hint="mount the image and open the partition's pN.raw with a system that can",
            path=entry.path,
        )


def _is_elsewhere(point: reparse.Reparse, file: Any, stream: tskentry.Stream | None) -> bool:
    """Whether the content of a file with this reparse point is not (all) in its data stream.

    A file from the cloud that is wholly on the disk keeps its tag: it is told by having no holes.
    """
    if point.tag == reparse.WOF:
        return True
    if stream is None or not stream.size or stream.flags & tskentry.RESIDENT:
        return False
    return any(run.hole for run in tskentry.runs_of(file, stream))
