"""Taking files and trees out of a file system into a folder of this machine.

Nothing is overwritten unless asked for, nothing is written outside the target whatever the image says
(see ``place``), and a file that cannot be read whole is not left behind under its name: it becomes a
finding, and the rest goes on. Modes and times are kept always; owners, setuid bits, devices, pipes, extended
attributes, streams and hard links only when asked for.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial

from imagefs.browse.filewriter import FileWriter, Spot, same_time
from imagefs.browse.manifest import Manifest
from imagefs.browse.names import printable
from imagefs.browse.place import Folder
from imagefs.browse.taking import ExtractOptions, ExtractReport, bytes_below, shown
from imagefs.browse.walk import OnError, Trail, fs_children
from imagefs.errors import BrowseError, ImagefsError, UsageError
from imagefs.interfaces import Entry, EntryType, FileSystem, NoProgress, Progress

#: Each level keeps a folder open.
_MAX_DEPTH = 400
#: The mode of a folder that is being filled.
_FILLING = 0o700
_IN_IMAGE = re.compile(rb"/p\d+(/.*)?", re.DOTALL)


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
    manifest: Manifest | None = None,
    report: ExtractReport | None = None,
    count_first: bool = False,
) -> ExtractReport:
    """Write each entry, with everything below it, to its path on this machine.

    The folder of each path must exist. TargetError when the target cannot take what is to be
    written; what is wrong with single files goes into the report's findings (``report``: one to go on with).
    ``count_first`` lists the trees once before, so that progress knows the whole.
    """
    options, progress = options or ExtractOptions(), progress or NoProgress()
    run = _Run(fs, options, progress, manifest, report or ExtractReport())
    progress.start("extract", _total(fs, [entry for entry, _ in jobs], count_first, progress))
    with ExitStack() as stack, closing(run):
        folders: dict[bytes, Folder] = {}
        for entry, path in jobs:
            head, name = os.path.split(path)
            if head not in folders:
                folder = Folder.open(head, windows=options.windows_names, stale=options.resume)
                folders[head] = stack.enter_context(closing(folder))
            run.tree(entry, folders[head], name)
        run.finish()
    return run.report


def _total(fs: FileSystem, entries: list[Entry], count_first: bool, progress: Progress) -> int | None:
    if count_first:
        return bytes_below(fs, entries, progress)
    return sum(entry.size for entry in entries if entry.type is EntryType.FILE) or None


@dataclass(slots=True)
class _Level:
    """A directory being filled; ``ours``: its mode and times are to be those of the image."""

    entry: Entry
    folder: Folder
    spot: Spot
    children: Iterator[Entry]
    ours: bool


class _Run:
    """One extraction: its options, and its report as it grows."""

    def __init__(
        self,
        fs: FileSystem,
        options: ExtractOptions,
        progress: Progress,
        manifest: Manifest | None,
        report: ExtractReport,
    ) -> None:
        self._fs = fs
        self._options = options
        self.report = report
        self._advance = progress.advance
        self._files = FileWriter(fs, options, self.report, progress, manifest)

    def tree(self, entry: Entry, folder: Folder, name: bytes) -> None:
        """``entry`` as ``name`` in ``folder``, and everything below it."""
        trail = Trail(_MAX_DEPTH)
        levels: list[_Level] = []
        try:
            self._one(entry, folder, name, Spot(folder), levels, trail)
            while levels:
                level = levels[-1]
                child = next(level.children, None)
                if child is not None:
                    self._one(child, level.folder, child.name, level.spot, levels, trail)
                    continue
                level = levels.pop()
                self._files.after(partial(self._finish, level), level.folder.close)
                trail.leave()
        except BaseException:
            self._files.close()  # what is still to be made needs its folders open
            raise
        finally:
            for level in reversed(levels):
                level.folder.close()

    def finish(self) -> None:
        """Wait until all is made."""
        self._files.finish()

    def close(self) -> None:
        self._files.close()

    def _one(
        self, entry: Entry, folder: Folder, name: bytes, spot: Spot, levels: list[_Level], trail: Trail
    ) -> None:
        self._advance(0)  # of what has no bytes it would hear nothing, and could not end it
        with self.report.or_left_out(entry):
            made = folder.choose(name, entry.inode, sure=self._files.finish)
            match entry.type:
                case EntryType.FILE:
                    self._files.file(entry, folder, made, spot)
                case EntryType.DIRECTORY:
                    levels.append(self._directory(entry, folder, made, spot.below(made), trail))
                    self._files.streams(entry, folder, made)
                case EntryType.SYMLINK:
                    self._symlink(entry, folder, made)
                case EntryType.DEVICE | EntryType.FIFO if self._options.owners:
                    self._node(entry, folder, made)
                case _:
                    hint = "; --owners restores it" if entry.type in ("device", "fifo") else ""
                    self.report.tell(entry, "left-out", f"'{shown(entry)}' is a {entry.type}{hint}")
                    return
            self._files.tell_renamed(entry, name, made)

    def _directory(self, entry: Entry, folder: Folder, name: bytes, spot: Spot, trail: Trail) -> _Level:
        trail.enter(entry)
        try:
            made = folder.subfolder(name)
        except BaseException:
            trail.leave()
            raise
        self.report.directories += made.fresh
        ours = made.fresh or (self._options.resume and _begun_before(entry, made))
        return _Level(entry, made, spot, fs_children(self._fs, entry, self._damaged(entry)), ours)

    def _finish(self, level: _Level) -> None:
        """Mode and times of a directory come last: filling it changes its time and needs its mode."""
        try:
            if level.ours:
                self._files.dresser.file(level.entry, level.folder.fd)
        except OSError as error:
            message = f"'{shown(level.entry)}': {error.strerror}"
            self.report.tell(level.entry, "attributes", message, "warning")
        finally:
            level.folder.close()

    def _symlink(self, entry: Entry, folder: Folder, name: bytes) -> None:
        target = self._fs.readlink(entry)
        if self._options.resume and _link_there(folder, name, target):
            folder.claim(name)
            self.report.kept += 1
        else:
            with folder.new_node(name, overwrite=self._options.overwrite) as beside:
                os.symlink(target, beside, dir_fd=folder.fd)
                self._files.dresser.node(entry, folder, beside)
        self.report.symlinks += 1

    def _node(self, entry: Entry, folder: Folder, name: bytes) -> None:
        """A device or a pipe; only with ``owners``."""
        kind, device = stat.S_IFIFO, 0
        if entry.type is EntryType.DEVICE:
            if entry.rdev is None:
                raise BrowseError("its device numbers are not known")
            if entry.rdev[0] >> 12 or entry.rdev[1] >> 20:
                raise BrowseError(f"no device of Linux has its numbers {entry.rdev[0]}, {entry.rdev[1]}")
            kind = stat.S_IFBLK if "block" in entry.flags else stat.S_IFCHR
            device = os.makedev(*entry.rdev)
        there = folder.status(name) if self._options.resume else None
        if there is not None and (stat.S_IFMT(there.st_mode), there.st_rdev) == (kind, device):
            folder.claim(name)
            self.report.kept += 1
        else:
            with folder.new_node(name, overwrite=self._options.overwrite) as beside:
                os.mknod(beside, kind | 0o600, device, dir_fd=folder.fd)
                self._files.dresser.node(entry, folder, beside, mode=entry.mode)
        self.report.nodes += 1

    def _damaged(self, entry: Entry) -> OnError:
        def note(error: ImagefsError) -> None:
            message = f"'{shown(entry)}' cannot be read wholly: {error.message}"
            self.report.tell(entry, error.code, message)

        return note


def _begun_before(entry: Entry, made: Folder) -> bool:
    """Whether a folder that is there looks like one that an earlier run made for ``entry``: still being
    filled, or as it was when that run was done with it."""
    there = os.fstat(made.fd)
    mode = stat.S_IMODE(there.st_mode)
    if mode == _FILLING:
        return True
    timed = entry.mtime_ns is not None and same_time(there.st_mtime_ns, entry.mtime_ns)
    return timed and mode & 0o777 == entry.mode & 0o777


def _link_there(folder: Folder, name: bytes, target: bytes) -> bool:
    try:
        return os.readlink(name, dir_fd=folder.fd) == target
    except OSError:
        return False
