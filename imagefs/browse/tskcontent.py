"""The content of files and the targets of symlinks through The Sleuth Kit. Never imports pytsk3.

Where a file's bytes lie on the disk as they are (ext, FAT, exFAT), they are read from there without
TSK. What cannot be decoded is refused when it is opened: encrypted, cloud and deduplicated files. Zeros
are never handed out for it.
"""

from __future__ import annotations

from typing import Any

from imagefs.block.views import BytesReader
from imagefs.browse import decmpfs, mft, reparse, tskentry, wof
from imagefs.browse.content import Fetch, FetchReader, MappedReader, Piece, damaged
from imagefs.browse.fwnt import unpacker
from imagefs.browse.lznt1 import UNIT_CLUSTERS, CompressedReader
from imagefs.browse.names import printable
from imagefs.browse.tskhandle import Facts, Handle
from imagefs.errors import BrowseError
from imagefs.interfaces import METADATA, Entry, EntryType, Place, Reader

_MAX_LINK = _MAX_ATTRIBUTE = 64 << 10
#: The record of $BadClus.
_BAD_CLUSTERS = 8


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
        if self._facts.kind == "hfs" and "compressed" in entry.flags:
            self._handle.check_open()
            return decmpfs.open_packed(self._facts.hfs, tskentry.address(entry.inode), shown)
        with self._handle.hold(f"'{shown}'") as info:
            file = info.open_meta(inode=tskentry.address(entry.inode))
            return self._content(entry, file, shown)

    def _mapped(self, entry: Entry, shown: str) -> Reader | None:
        """The content of an ext file without TSK; None where only TSK knows."""
        ext = self._facts.ext
        inode = ext.get(int(entry.inode)) if ext is not None else None
        if ext is None or inode is None:
            return None
        self._handle.check_open()
        _check(ext.must_refuse(inode), entry)
        if inode.is_inline and self._facts.xattrs is not None:
            return BytesReader(self._facts.xattrs.inline(int(entry.inode), inode, shown))
        pieces = ext.pieces(inode, shown)
        return None if pieces is None else MappedReader(self._facts.reader, inode.size, pieces, label=shown)

    def _content(self, entry: Entry, file: Any, shown: str) -> Reader:
        streams = tskentry.streams_of(file)
        named = self._named_stream(entry, streams)
        if named is not None:
            _check("encrypted by Windows (EFS)" if "encrypted" in entry.flags else "", entry)
            return self._reader(entry, file, named, shown)
        stream = tskentry.data_stream(self._facts.kind, streams)
        packed = self._packed(file, streams, stream, shown)
        if packed is not None:
            return packed
        _check(self._undecodable(entry, file, streams, stream), entry)
        if stream is None:
            if entry.size or any(each.type == tskentry.NTFS_ATTRIBUTE_LIST for each in streams):
                raise damaged(shown, 0, "the file system does not say where its bytes lie")
            return BytesReader(b"")
        return self._reader(entry, file, stream, shown)

    def streams(self, entry: Entry) -> list[tskentry.Stream]:
        """The named streams of an entry, that of WOF too."""
        if self._facts.kind not in ("ntfs", "hfs") or "unreadable" in entry.flags:
            return []
        number = tskentry.address(entry.inode)
        if not self._may_have_streams(number):
            return []
        with self._handle.hold(f"'{printable(entry.path)}'") as info:
            found = tskentry.streams_of(info.open_meta(inode=number))
        return tskentry.named_streams(self._facts.kind, found)

    def _may_have_streams(self, number: int) -> bool:
        """By the record of an NTFS file: most have none, and TSK takes a millisecond to say so."""
        table = self._facts.mft
        found = mft.decode_streams(table.raw(number)) if table is not None else None
        return found is None or any(each.kind == tskentry.NTFS_DATA and each.name for each in found)

    def mac_xattrs(self, entry: Entry) -> dict[bytes, bytes]:
        """The extended attributes of HFS+, named as Linux does: those of macOS begin with ``osx.``."""
        out: dict[bytes, bytes] = {}
        with self._handle.hold(f"'{printable(entry.path)}'") as info:
            file = info.open_meta(inode=tskentry.address(entry.inode))
            for each in tskentry.streams_of(file):
                if each.type == tskentry.HFS_ATTRIBUTE and 0 < each.size <= _MAX_ATTRIBUTE:
                    out[b"osx." + each.name] = bytes(file.read_random(0, each.size, each.type, each.id))
        return out

    def _named_stream(self, entry: Entry, streams: list[tskentry.Stream]) -> tskentry.Stream | None:
        """The stream that the address of an entry names, where that is not the content of a file."""
        words = entry.inode.split("-")
        if len(words) < 3:
            return None
        wanted = int(words[1]), int(words[2])
        named = tskentry.named_streams(self._facts.kind, streams)
        return next((s for s in named if (s.type, s.id) == wanted), None)

    def _packed(
        self, file: Any, streams: list[tskentry.Stream], stream: tskentry.Stream | None, shown: str
    ) -> Reader | None:
        """The content of a file that Windows compressed (WOF), None of any other."""
        if self._facts.kind != "ntfs" or tskentry.is_encrypted(streams):
            return None
        point = tskentry.read_reparse(file, streams)
        if point is None or point.packing not in wof.ALGORITHMS or stream is None:
            return None
        chunk, lzx = wof.ALGORITHMS[point.packing]
        data = next((s for s in streams if s.type == tskentry.NTFS_DATA and s.name == wof.STREAM), None)
        if data is None:
            raise damaged(shown, 0, "its compressed content is missing")
        unpack = unpacker(lzx=lzx, shown=shown)
        runs = [run for run in tskentry.runs_of(file, data) if not run.filler]
        pieces = tskentry.pieces_of(runs, self._facts.block_size, size=data.size, valid=data.size)
        layout = MappedReader(self._facts.reader, data.size, pieces, label=shown) if pieces else None
        fetch = tskentry.fetcher(self._handle, file, data, f"'{shown}'")
        fetched = FetchReader(data.size, fetch, label=shown, layout=layout)
        return wof.WofReader(fetched, stream.size, chunk=chunk, unpack=unpack, label=shown)

    def _reader(self, entry: Entry, file: Any, stream: tskentry.Stream, shown: str) -> Reader:
        layout = None
        if self._facts.kind == "ntfs" and tskentry.address(entry.inode) == _BAD_CLUSTERS:
            return self._bad_clusters(file, stream, shown)
        if not stream.flags & (tskentry.RESIDENT | tskentry.COMPRESSED | tskentry.ENCRYPTED):
            layout = self._layout(entry, tskentry.runs_of(file, stream), stream.size, shown)
            if self._facts.ext is not None or self._facts.fat is not None:
                return layout
        fetch = tskentry.fetcher(self._handle, file, stream, f"'{shown}'")
        if self._facts.kind == "ntfs" and layout is None and not stream.flags & tskentry.RESIDENT:
            return self._compressed(file, stream, fetch, shown)
        return FetchReader(stream.size, fetch, label=shown, layout=layout)

    def _bad_clusters(self, file: Any, stream: tskentry.Stream, shown: str) -> Reader:
        """$BadClus:$Bad, a hole as large as the volume but for the clusters that are bad. Those are read as they
        are: by its initialised size of 0 they would be zeros, and nobody would see what was hidden there. TSK
        leaves the hole out where it is all there is, so the record is asked."""
        cluster, volume, table = self._facts.block_size, self._facts.reader, self._facts.mft
        runs = tskentry.runs_of(file, stream)
        pieces: list[Piece] | None = tskentry.pieces_of(runs, cluster, size=stream.size, valid=stream.size)
        if not runs:
            found = table.stream(_BAD_CLUSTERS, stream.type, stream.id) if table is not None else None
            if found is not None and found.resident is not None:
                return BytesReader(found.resident)
            pieces = mft.pieces_of(found, cluster, volume.size) if found is not None else None
        if pieces is None or any(run.filler for run in runs):
            raise damaged(shown, 0, "a part of the list of its clusters is missing")
        return MappedReader(volume, stream.size, pieces, label=shown)

    def _compressed(self, file: Any, stream: tskentry.Stream, fetch: Fetch, shown: str) -> Reader:
        volume, cluster = self._facts.reader, self._facts.block_size
        runs, unit = tskentry.runs_of(file, stream), UNIT_CLUSTERS * cluster
        if any(run.filler for run in runs):
            raise damaged(shown, 0, "a part of the list of its clusters is missing")
        whole = -(-stream.size // unit) * unit
        pieces = tskentry.pieces_of(runs, cluster, size=whole, valid=whole)
        return CompressedReader(volume, stream.size, pieces, unit=unit, fetch=fetch, label=shown)

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
