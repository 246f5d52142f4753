"""Files and trees as one stream: a tar or a zip for a pipe. Nothing is written to this machine's file system.

A stream cannot be taken back, so a file is read whole before its first byte goes out (large ones are read twice): one
that cannot be read is left out with a finding, and the rest goes on. Names are parts of paths as the image has
them; equal ones carry ``~<inode>``, so that no file can be unpacked through a symlink of its own name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from imagefs.block.views import BytesReader
from imagefs.browse.copying import Ranges, new_hashes, pieces, plan
from imagefs.browse.manifest import Manifest
from imagefs.browse.names import printable
from imagefs.browse.place import check_name
from imagefs.browse.taking import ExtractOptions, ExtractReport, Extras, bytes_below, shown
from imagefs.browse.targetnames import same_key
from imagefs.browse.tarzip import Content, Member, TarWriter, ZipWriter
from imagefs.browse.walk import Trail, fs_children
from imagefs.errors import BrowseError, ImagefsError, TargetError
from imagefs.interfaces import Entry, EntryType, FileSystem, HasStreams, NoProgress, Progress, Reader

#: Files up to this size are held in memory between reading and writing.
_HELD = 16 << 20
_ZEROS = bytes(1 << 20)


def archive(
    fs: FileSystem,
    jobs: Sequence[tuple[Entry, bytes]],
    writer: TarWriter | ZipWriter,
    *,
    options: ExtractOptions | None = None,
    progress: Progress | None = None,
    manifest: Manifest | None = None,
    report: ExtractReport | None = None,
    count_first: bool = False,
) -> ExtractReport:
    """Write each entry, with everything below it, to ``writer`` under its name.

    TargetError when the stream cannot be written; what is wrong with single files goes into the report's
    findings (``report``: one to go on with).
    """
    progress = progress or NoProgress()
    run = _Run(fs, options or ExtractOptions(), writer, progress, manifest, report or ExtractReport())
    entries = [entry for entry, _ in jobs]
    progress.start("archive", bytes_below(fs, entries, progress) if count_first else None)
    names = _Names(writer)
    for entry, name in jobs:
        run.tree(entry, name, names)
    return run.report


class _Names:
    """The names of one folder of the archive. Two that differ in case only are told apart where one is a
    symlink: unpacked without regard to case, it would redirect the other."""

    def __init__(self, writer: TarWriter | ZipWriter) -> None:
        self._fit = writer.fit
        self._used: set[bytes] = set()
        self._links: dict[bytes, bool] = {}

    def choose(self, entry: Entry, name: bytes) -> bytes:
        check_name(name)
        made, suffix = self._fit(name), b"~" + entry.inode.encode("ascii", "replace")
        key, is_link = same_key(made), entry.type is EntryType.SYMLINK
        while made in self._used or (key in self._links and (is_link or self._links[key])):
            made += suffix
            key = same_key(made)
        self._used.add(made)
        self._links[key] = is_link or self._links.get(key, False)
        return made


@dataclass(slots=True)
class _Level:
    """A folder being gone through."""

    path: bytes
    names: _Names
    children: Iterator[Entry]


class _Run:
    """One archive of one file system."""

    def __init__(
        self,
        fs: FileSystem,
        options: ExtractOptions,
        writer: TarWriter | ZipWriter,
        progress: Progress,
        manifest: Manifest | None,
        report: ExtractReport,
    ) -> None:
        self._fs = fs
        self._writer = writer
        self._progress = progress
        self._manifest = manifest
        self._algorithms = manifest.algorithms if manifest else ()
        self.report = report
        self._extras = Extras(fs, self.report, xattrs=options.xattrs, streams=options.streams)
        self._links: dict[str, tuple[bytes, list[str]]] = {}

    def tree(self, entry: Entry, name: bytes, names: _Names) -> None:
        trail, levels = Trail(), list[_Level]()
        self._one(entry, name, b"", names, levels, trail)
        while levels:
            level = levels[-1]
            child = next(level.children, None)
            if child is not None:
                self._one(child, child.name, level.path + b"/", level.names, levels, trail)
                continue
            levels.pop()
            trail.leave()

    def _one(
        self, entry: Entry, name: bytes, lead: bytes, names: _Names, levels: list[_Level], trail: Trail
    ) -> None:
        with self.report.or_left_out(entry):
            made = names.choose(entry, name)
            member = Member(lead + made, entry, self._xattrs(entry))
            match entry.type:
                case EntryType.FILE:
                    self._file(member)
                case EntryType.DIRECTORY:
                    levels.append(self._directory(member, trail))
                case EntryType.SYMLINK:
                    self._writer.symlink(member, _target(self._fs, entry))
                    self.report.symlinks += 1
                case EntryType.DEVICE | EntryType.FIFO if self._writer.holds_nodes:
                    self._writer.node(member)
                    self.report.nodes += 1
                case _:
                    message = f"'{shown(entry)}' is a {entry.type}, which a {self._writer.kind} does not hold"
                    self.report.tell(entry, "left-out", message)
                    return
            self._tell_renamed(entry, name, made)
            self._streams(member, lead, made, names)

    def _directory(self, member: Member, trail: Trail) -> _Level:
        trail.enter(member.entry)
        self._writer.directory(member)
        self.report.directories += 1
        children = fs_children(self._fs, member.entry, partial(self._damaged, member.entry))
        return _Level(member.name, _Names(self._writer), children)

    def _damaged(self, entry: Entry, error: ImagefsError) -> None:
        self.report.tell(entry, error.code, f"'{shown(entry)}' cannot be read wholly: {error.message}")

    def _xattrs(self, entry: Entry) -> dict[bytes, bytes]:
        found = self._extras.xattrs(entry)
        for name in [name for name in found if not self._writer.holds_xattr(name)]:
            del found[name]
            message = (
                f"the attribute {printable(name)} of '{shown(entry)}' is left out: a {self._writer.kind}"
            )
            self.report.tell(entry, "xattr", f"{message} cannot hold it", "warning")
        return found

    def _tell_renamed(self, entry: Entry, wanted: bytes, made: bytes) -> None:
        if made != wanted:
            message = f"'{shown(entry)}' is called '{printable(made)}' in the archive"
            self.report.tell(entry, "renamed", message, "note")

    # -- content ----------------------------------------------------------------------------------

    def _file(self, member: Member) -> None:
        entry = member.entry
        first = self._links.get(entry.inode) if entry.nlink > 1 else None
        if first is not None:
            self._writer.link(member, first[0])
            self._count(member, entry.size, first[1])
            self._progress.advance(entry.size)
            return
        digests = self._content(member, partial(self._fs.open, entry))
        if entry.nlink > 1 and self._writer.holds_links:
            self._links[entry.inode] = (member.name, digests)

    def _streams(self, member: Member, lead: bytes, made: bytes, names: _Names) -> None:
        for stream, known in self._extras.streams(member.entry):
            fs = self._fs
            assert isinstance(fs, HasStreams)
            with self.report.or_left_out(stream):
                wanted = made + stream.name[len(member.entry.name) :]
                chosen = names.choose(stream, wanted)
                opener = partial(fs.open_stream, member.entry, known.name)
                self._content(Member(lead + chosen, stream, {}), opener)
                self._tell_renamed(stream, wanted, chosen)

    def _content(self, member: Member, opener: Callable[[], Reader]) -> list[str]:
        reader = opener()
        try:
            size, (runs, unread) = reader.size, plan(reader)
            held, digests = self._read(reader, runs)
            content = Content(size, runs, partial(self._pieces, member, held or reader))
            self._writer.file(member, content)
        finally:
            reader.close()
        self._count(member, size, digests)
        self.report.unread(member.entry, unread)
        return digests

    def _read(self, reader: Reader, runs: Ranges) -> tuple[Reader | None, list[str]]:
        """Read everything once, before anything goes out; (all of a small file, the digests)."""
        hashes = new_hashes(self._algorithms)
        if reader.size <= _HELD:
            data = reader.read_at(0, reader.size)
            for each in hashes:
                each.update(data)
            return BytesReader(data), [each.hexdigest() for each in hashes]
        done = 0
        for offset, length in [*runs, (reader.size, 0)]:
            while hashes and done < offset:
                step = min(offset - done, len(_ZEROS))
                for each in hashes:
                    each.update(memoryview(_ZEROS)[:step])
                done += step
            for data in pieces(reader, offset, length):
                for each in hashes:
                    each.update(data)
            done = offset + length
        return None, [each.hexdigest() for each in hashes]

    def _pieces(self, member: Member, reader: Reader, offset: int, length: int) -> Iterator[bytes]:
        try:
            for data in pieces(reader, offset, length):
                yield data
                self._progress.advance(len(data))
        except TargetError:
            raise
        except ImagefsError as error:  # it could be read a moment ago
            message = f"the archive ends within '{shown(member.entry)}': {error.message}"
            raise TargetError(message, hint="leave that file out") from error

    def _count(self, member: Member, size: int, digests: list[str]) -> None:
        self.report.files += 1
        self.report.bytes += size
        if self._manifest is not None:
            self._manifest.add(member.name, digests)


def _target(fs: FileSystem, entry: Entry) -> bytes:
    target = fs.readlink(entry)
    if not target or b"\0" in target:
        raise BrowseError("its target is no path")
    return target
