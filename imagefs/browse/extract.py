"""Taking files and trees out of a file system into a folder of this machine.

Nothing is overwritten unless asked for, nothing is written outside the target whatever the image says
(see ``place``), and a file that cannot be read whole is not left behind under its name: it becomes a
finding, and the rest goes on. Modes and times are kept always; owners, setuid bits, devices and pipes
only when asked for. Hard links become files of their own.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from imagefs.block.views import extents_of
from imagefs.browse.names import printable
from imagefs.browse.place import Folder, Refused
from imagefs.browse.walk import OnError, Trail, fs_children
from imagefs.errors import BrowseError, ImagefsError, TargetError, UsageError
from imagefs.interfaces import (
    Entry,
    EntryType,
    FileSystem,
    Finding,
    NoProgress,
    Progress,
    Reader,
    State,
)

#: Bytes read at once, and the grain in which zeros become holes.
_PIECE, _GRAIN = 1 << 20, 64 << 10
_ZEROS = bytes(_GRAIN)
#: Each level keeps a folder open.
_MAX_DEPTH = 400
_IN_IMAGE = re.compile(rb"/p\d+(/.*)?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class ExtractOptions:
    """``owners`` restores owners, setuid, setgid and sticky bits, devices and pipes; it needs root."""

    overwrite: bool = False
    owners: bool = False


@dataclass(slots=True)
class ExtractReport:
    """What was made, and a finding for each thing that was not."""

    files: int = 0
    directories: int = 0
    symlinks: int = 0
    nodes: int = 0
    bytes: int = 0
    findings: list[Finding] = field(default_factory=list)


def plan_targets(paths: Sequence[bytes], dest: bytes, *, is_dir: bool) -> list[bytes]:
    """Where each of ``paths`` goes, by the rules of ``cp``: into ``dest`` where that is a folder
    (``is_dir``), else to ``dest`` itself, which takes one path only. UsageError otherwise."""
    shown = printable(dest)
    if not is_dir:
        if _IN_IMAGE.fullmatch(dest):
            raise UsageError(
                f"DEST is missing: '{shown}' is a path in the image",
                hint="name the folder to write to last, such as .",
            )
        if len(paths) > 1:
            raise UsageError(
                f"several PATHs need an existing folder as DEST, and '{shown}' is none",
                hint=f"make it first: mkdir {shown}",
            )
        if not dest or dest.endswith(b"/"):
            raise UsageError(f"the folder '{shown}' does not exist", hint="make it first")
        return [dest]
    targets = [os.path.join(dest, _last_part(path)) for path in paths]
    for first, path in enumerate(targets):
        if path in targets[:first]:
            raise UsageError(
                f"two PATHs would both become '{printable(path)}'", hint="extract them one at a time"
            )
    return targets


def _last_part(path: bytes) -> bytes:
    parts = [part for part in path.split(b"/") if part not in (b"", b".")]
    if not parts or parts[-1] == b"..":
        raise UsageError(f"'{printable(path)}' names no file", hint="name a path in a volume, such as /p1")
    return parts[-1]


def extract(
    fs: FileSystem,
    jobs: Sequence[tuple[Entry, bytes]],
    *,
    options: ExtractOptions | None = None,
    progress: Progress | None = None,
) -> ExtractReport:
    """Write each entry, with everything below it, to its path on this machine.

    The folder of each path must exist. TargetError when the target cannot take what is to be
    written; what is wrong with single files goes into the report's findings.
    """
    run = _Run(fs, options or ExtractOptions(), progress or NoProgress())
    run.progress.start(
        "extract", sum(entry.size for entry, _ in jobs if entry.type is EntryType.FILE) or None
    )
    for entry, path in jobs:
        head, name = os.path.split(path)
        folder = Folder.open(head)
        try:
            run.tree(entry, folder, name)
        finally:
            folder.close()
    return run.report


@dataclass(slots=True)
class _Level:
    """A directory being filled."""

    entry: Entry
    folder: Folder
    children: Iterator[Entry]
    fresh: bool


class _Run:
    """One extraction: its options, and its report as it grows."""

    def __init__(self, fs: FileSystem, options: ExtractOptions, progress: Progress) -> None:
        self._fs = fs
        self._options = options
        self.progress = progress
        self.report = ExtractReport()

    def tree(self, entry: Entry, folder: Folder, name: bytes) -> None:
        """``entry`` as ``name`` in ``folder``, and everything below it."""
        trail = Trail(_MAX_DEPTH)
        levels: list[_Level] = []
        try:
            self._one(entry, folder, name, levels, trail)
            while levels:
                level = levels[-1]
                child = next(level.children, None)
                if child is not None:
                    self._one(child, level.folder, child.name, levels, trail)
                    continue
                self._finish(levels.pop())
                trail.leave()
        finally:
            for level in reversed(levels):
                level.folder.close()

    def _one(self, entry: Entry, folder: Folder, name: bytes, levels: list[_Level], trail: Trail) -> None:
        try:
            match entry.type:
                case EntryType.DIRECTORY:
                    levels.append(self._directory(entry, folder, name, trail))
                case EntryType.FILE:
                    self._file(entry, folder, name)
                case EntryType.SYMLINK:
                    self._symlink(entry, folder, name)
                case EntryType.DEVICE | EntryType.FIFO if self._options.owners:
                    self._node(entry, folder, name)
                case _:
                    hint = "; --owners restores it" if entry.type in ("device", "fifo") else ""
                    self._left_out(entry, "left-out", f"'{_shown(entry)}' is a {entry.type}{hint}")
        except TargetError:
            raise
        except Refused as refused:
            self._left_out(entry, refused.code, f"'{_shown(entry)}' is left out: {refused.message}")
        except ImagefsError as error:
            self._left_out(entry, error.code, f"'{_shown(entry)}' is left out: {error.message}")

    def _directory(self, entry: Entry, folder: Folder, name: bytes, trail: Trail) -> _Level:
        trail.enter(entry)
        try:
            made, fresh = folder.subfolder(name)
        except BaseException:
            trail.leave()
            raise
        self.report.directories += fresh
        return _Level(entry, made, fs_children(self._fs, entry, self._damaged(entry)), fresh)

    def _finish(self, level: _Level) -> None:
        """Mode and times of a directory come last: filling it changes its time and needs its mode."""
        try:
            if level.fresh:
                self._dress(level.entry, level.folder.fd)
        except OSError as error:
            self._left_out(level.entry, "attributes", f"'{_shown(level.entry)}': {error.strerror}", "warning")
        finally:
            level.folder.close()

    def _file(self, entry: Entry, folder: Folder, name: bytes) -> None:
        folder.check_free(name, overwrite=self._options.overwrite)
        reader = self._fs.open(entry)
        try:
            runs, unread = _plan(reader)
            _check_room(entry, reader, folder, sum(length for _, length in runs))
            with folder.new_file(name, overwrite=self._options.overwrite) as fd:
                for offset, length in runs:
                    self._copy(reader, fd, offset, length)
                os.ftruncate(fd, reader.size)
                self._dress(entry, fd)
        finally:
            reader.close()
        self.report.files += 1
        self.report.bytes += reader.size
        for offset, length in unread:
            message = f"{length} bytes of '{_shown(entry)}' from byte {offset} were not read from the source"
            self._left_out(entry, "unreadable", f"{message} and are zeros", "warning", offset, length)

    def _copy(self, reader: Reader, fd: int, offset: int, length: int) -> None:
        end = offset + length
        while offset < end:
            data = memoryview(reader.read_at(offset, min(_PIECE, end - offset)))
            for at in range(0, len(data), _GRAIN):
                grain = data[at : at + _GRAIN]
                if grain != _ZEROS[: len(grain)]:
                    _write_all(fd, grain, offset + at)
            offset += len(data)
            self.progress.advance(len(data))

    def _symlink(self, entry: Entry, folder: Folder, name: bytes) -> None:
        target = self._fs.readlink(entry)
        with folder.new_node(name, overwrite=self._options.overwrite) as beside:
            os.symlink(target, beside, dir_fd=folder.fd)
            if self._options.owners:
                os.chown(beside, entry.uid, entry.gid, dir_fd=folder.fd, follow_symlinks=False)
            if entry.mtime_ns is not None:
                os.utime(beside, ns=_times(entry), dir_fd=folder.fd, follow_symlinks=False)
        self.report.symlinks += 1

    def _node(self, entry: Entry, folder: Folder, name: bytes) -> None:
        """A device or a pipe; only with ``owners``."""
        kind, device = stat.S_IFIFO, 0
        if entry.type is EntryType.DEVICE:
            if entry.rdev is None:
                raise BrowseError("its device numbers are not known")
            kind = stat.S_IFBLK if "block" in entry.flags else stat.S_IFCHR
            device = os.makedev(*entry.rdev)
        with folder.new_node(name, overwrite=self._options.overwrite) as beside:
            os.mknod(beside, kind | 0o600, device, dir_fd=folder.fd)
            os.chown(beside, entry.uid, entry.gid, dir_fd=folder.fd, follow_symlinks=False)
            os.chmod(beside, entry.mode, dir_fd=folder.fd)
            if entry.mtime_ns is not None:
                os.utime(beside, ns=_times(entry), dir_fd=folder.fd, follow_symlinks=False)
        self.report.nodes += 1

    def _dress(self, entry: Entry, fd: int) -> None:
        """Owner, mode and times, in this order: changing the owner clears setuid. A setuid bit is
        never given to a file whose owner could not be restored."""
        bits = 0o7777 if self._options.owners and self._own(entry, fd) else 0o777
        os.fchmod(fd, entry.mode & bits)
        if entry.mtime_ns is not None:
            os.utime(fd, ns=_times(entry))

    def _own(self, entry: Entry, fd: int) -> bool:
        try:
            os.fchown(fd, entry.uid, entry.gid)
        except OSError as error:
            message = f"the owner of '{_shown(entry)}' cannot be restored: {error.strerror}"
            self._left_out(entry, "owner", message, "warning")
            return False
        return True

    def _damaged(self, entry: Entry) -> OnError:
        def note(error: ImagefsError) -> None:
            self._left_out(entry, error.code, f"'{_shown(entry)}' cannot be read wholly: {error.message}")

        return note

    def _left_out(
        self,
        entry: Entry,
        code: str,
        message: str,
        severity: str = "error",
        offset: int | None = None,
        length: int | None = None,
    ) -> None:
        files = (_shown(entry),)
        self.report.findings.append(
            Finding(severity, code, message, offset=offset, length=length, files=files)
        )


def _plan(reader: Reader) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """The ranges (offset, length) to copy, and those that the image does not have."""
    stored, unread = [], []
    for extent in extents_of(reader, 0, reader.size):
        if extent.state is State.STORED:
            stored.append((extent.offset, extent.length))
        elif extent.state in (State.UNREADABLE, State.SKIPPED):
            unread.append((extent.offset, extent.length))
    return stored, unread


def _check_room(entry: Entry, reader: Reader, folder: Folder, needed: int) -> None:
    """TargetError when a file does not fit. A damaged size is the file's fault, not the target's: the
    last byte of a real file can be read."""
    free = folder.free_bytes()
    if needed <= free:
        return
    reader.read_at(reader.size - 1, 1)
    raise TargetError(
        f"'{_shown(entry)}' needs {needed} bytes, and '{folder.shown}' has {free} free",
        hint="make room there, or choose another folder",
        needed=needed,
        free=free,
    )


def _write_all(fd: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(fd, data, offset)
        data, offset = data[written:], offset + written


def _times(entry: Entry) -> tuple[int, int]:
    """Access and modification time; only for an entry whose ``mtime_ns`` is known."""
    modified = entry.mtime_ns or 0
    return (modified if entry.atime_ns is None else entry.atime_ns), modified


def _shown(entry: Entry) -> str:
    return printable(entry.path)
