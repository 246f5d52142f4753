"""Regular files into folders of this machine: copied, linked or kept, with their streams and digests."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from imagefs.browse.copying import Ranges, digests_of, from_the_medium, plan, same_content
from imagefs.browse.dress import Dresser
from imagefs.browse.making import Maker
from imagefs.browse.manifest import Manifest
from imagefs.browse.names import printable
from imagefs.browse.place import Folder
from imagefs.browse.scribe import PATH, SMALL, Given, Outcome, Scribe
from imagefs.browse.taking import ExtractOptions, ExtractReport, Extras, shown
from imagefs.errors import BrowseError, TargetError
from imagefs.interfaces import Entry, FileSystem, HasStreams, Progress, Reader

#: Grains in which targets keep times, in ns: NTFS, microseconds, exFAT, seconds, FAT.
_TIME_GRAINS = (1, 100, 1_000, 10_000_000, 1_000_000_000, 2_000_000_000)
#: So many small files are worth a process that makes them.
_ENOUGH = 100
Opener = Callable[[], Reader]


@dataclass(frozen=True, slots=True)
class Spot:
    """A folder by its way from a folder that stays open, so that it can be found again."""

    root: Folder
    parts: tuple[bytes, ...] = ()

    def below(self, name: bytes) -> Spot:
        return Spot(self.root, (*self.parts, name))


@dataclass(frozen=True, slots=True)
class _Linked:
    """The first name a file of several names was made under."""

    spot: Spot
    name: bytes
    identity: tuple[int, ...]
    digests: list[str]


class FileWriter:
    """Writes the files of one file system."""

    def __init__(
        self,
        fs: FileSystem,
        options: ExtractOptions,
        report: ExtractReport,
        progress: Progress,
        manifest: Manifest | None,
    ) -> None:
        self._fs = fs
        self._options = options
        self._report = report
        self._advance = progress.advance
        self._manifest = manifest
        self._algorithms = manifest.algorithms if manifest else ("sha256",) if options.verify else ()
        self.extras = Extras(fs, report, xattrs=options.xattrs, streams=options.streams)
        self.dresser = Dresser(report, self.extras.xattrs, owners=options.owners)
        self._maker = Maker(self.dresser, self._algorithms, self._advance, verify=options.verify)
        self._scribe: Scribe | None = None
        self._alone = options.xattrs or options.streams or len(os.sched_getaffinity(0)) < 2
        self._small = 0
        self._links: dict[str, _Linked] = {}
        self._room = 0

    def file(self, entry: Entry, folder: Folder, name: bytes, spot: Spot) -> None:
        """``entry`` as ``name``, which ``Folder.choose`` gave; perhaps only when ``finish`` is called."""
        linked = self._options.hard_links and entry.nlink > 1
        now = linked or self._alone or name != entry.name  # a name that is changed is told after it is made
        first = self._links.get(entry.inode) if linked else None
        if first is not None and self._link(entry, first, folder, name):
            return
        digests = self._content(entry, partial(self._fs.open, entry), folder, name, now=now)
        if linked:
            self._links[entry.inode] = _Linked(spot, name, _identity(folder, name), digests)
        self.streams(entry, folder, name)

    def streams(self, entry: Entry, folder: Folder, name: bytes) -> None:
        """The streams of a file or folder that was made as ``name``, each a file beside it."""
        for stream, known in self.extras.streams(entry):
            fs = self._fs
            assert isinstance(fs, HasStreams)
            with self._report.or_left_out(stream):
                wanted = name + stream.name[len(entry.name) :]
                made = folder.choose(wanted, entry.inode, sure=self.finish)
                self._content(stream, partial(fs.open_stream, entry, known.name), folder, made, now=True)
                self.tell_renamed(stream, wanted, made)

    def finish(self) -> None:
        """Wait for files that are being made."""
        if self._scribe is not None:
            self._scribe.finish()

    def after(self, call: Callable[[], None], otherwise: Callable[[], None]) -> None:
        """Do ``call`` when the files before it are made; ``otherwise`` where that will not be known."""
        if self._scribe is None:
            call()
        else:
            self._scribe.after(call, otherwise)

    def close(self) -> None:
        if self._scribe is not None:
            self._scribe.close()

    def tell_renamed(self, entry: Entry, wanted: bytes, made: bytes) -> None:
        if made != wanted:
            message = f"'{shown(entry)}' is written as '{printable(made)}', which the target can hold"
            self._report.tell(entry, "renamed", message, "note")

    def _content(self, entry: Entry, opener: Opener, folder: Folder, name: bytes, *, now: bool) -> list[str]:
        """Make ``name`` with the content, or find it there already; its digests. Not ``now``: perhaps later, and none
        are known yet."""
        kept, replace = None, self._options.overwrite
        if self._options.resume:
            kept, ours = self._look(entry, opener, folder, name)
            replace = replace or ours
        if kept is not None:
            folder.claim(name)
            self._report.kept += 1
            self._advance(entry.size)
            self._count(entry.size, folder, name, kept)
            return kept
        folder.check_free(name, overwrite=replace)
        reader = opener()
        try:
            runs, unread = plan(reader)
            self._check_room(entry, reader, folder, sum(length for _, length in runs))
            file = Given(entry, folder, name, reader.size)
            there = replace and folder.exists(name)
            if not (now or unread or there) and self._can_give(file, runs):
                self._give(file, reader)
                return []
            digests = self._maker.make(entry, reader, runs, folder, name, replace=replace)
            self._report.unread(entry, unread)
            self._count(reader.size, folder, name, digests)
            return digests
        finally:
            reader.close()

    def _count(self, size: int, folder: Folder, name: bytes, digests: list[str]) -> None:
        self._report.files += 1
        self._report.bytes += size
        if self._manifest is not None:
            self._manifest.add(folder.path_of(name), digests)

    # -- small files, which another process makes ----------------------------------------------------

    def _can_give(self, file: Given, runs: Ranges) -> bool:
        """Whether another process can make it: small, without holes, and not among the first. That process is
        started, and used as soon as it can be."""
        length = len(file.entry.path) + len(file.folder.path) + len(file.name)
        if file.size > SMALL or length > PATH or not file.folder.traits.unnamed:
            return False
        if sum(length for _, length in runs) < file.size:
            return False
        if self._scribe is None:
            self._small += 1
            if self._small != _ENOUGH:
                return False
            options = self._options
            with suppress(BrowseError):  # then all are made here
                self._scribe = Scribe(
                    self._algorithms, self._heard, owners=options.owners, verify=options.verify
                )
        return self._is_ready()

    def _is_ready(self) -> bool:
        if self._scribe is None:
            return False
        try:
            return self._scribe.is_ready()
        except TargetError:  # it could not begin: all are made here
            self._scribe.close()
            self._scribe = None
            return False

    def _give(self, file: Given, reader: Reader) -> None:
        assert self._scribe is not None
        data = reader.read_at(0, file.size)
        file.folder.claim(file.name)
        self._scribe.give(file, data)
        self._advance(file.size)

    def _heard(self, file: Given, outcome: Outcome) -> None:
        """Of a file that was given."""
        for severity, code, message in outcome.told:
            self._report.tell(file.entry, code, message, severity)
        if outcome.error is None:
            self._count(file.size, file.folder, file.name, outcome.digests)
            return
        with self._report.or_left_out(file.entry):
            raise outcome.error

    def _check_room(self, entry: Entry, reader: Reader, folder: Folder, needed: int) -> None:
        """TargetError when a file does not fit. A damaged size is the file's fault, not the target's: the
        last byte of a real file can be read. The target is asked again when half of what it had may be used up."""
        if needed <= self._room:
            self._room -= needed
            return
        free = folder.free_bytes()
        if needed <= free:
            self._room = (free - needed) // 2
            return
        reader.read_at(reader.size - 1, 1)
        raise TargetError(
            f"'{shown(entry)}' needs {needed} bytes, and '{folder.shown}' has {free} free",
            hint="make room there, or choose another folder",
            needed=needed,
            free=free,
        )

    # -- what is there already --------------------------------------------------------------------

    def _look(
        self, entry: Entry, opener: Opener, folder: Folder, name: bytes
    ) -> tuple[list[str] | None, bool]:
        """(digests of what is there and can stay, else None; whether it is ours to replace).

        A file of the same time that is shorter was cut off when the machine went down.
        """
        there = folder.status(name)
        if there is None or not stat.S_ISREG(there.st_mode) or there.st_size > entry.size:
            return None, False
        timed = entry.mtime_ns is not None
        if timed and not same_time(there.st_mtime_ns, entry.mtime_ns or 0):
            return None, False
        if there.st_size < entry.size:
            return None, timed
        fd = folder.open_file(name)
        try:
            return self._digests_if_same(entry, opener, folder.path_of(name), fd, compare=not timed), timed
        finally:
            os.close(fd)

    def _digests_if_same(
        self, entry: Entry, opener: Opener, path: bytes, fd: int, *, compare: bool
    ) -> list[str] | None:
        if self._options.verify:
            from_the_medium(fd)
        digests: list[str] = []
        if self._manifest is not None:
            digests = digests_of(fd, self._manifest.algorithms)
            known = self._manifest.known(path)
            if known is None:
                compare = True
            elif digests != known:
                return None
        if compare or self._options.verify:
            reader = opener()
            try:
                if not same_content(reader, fd):
                    return None
            finally:
                reader.close()
        return digests

    # -- hard links -------------------------------------------------------------------------------

    def _link(self, entry: Entry, first: _Linked, folder: Folder, name: bytes) -> bool:
        """One more name for a file that was made; False where that does not work, then it is copied."""
        replace = self._options.overwrite
        there = _identity(folder, name)
        if there == first.identity:
            folder.claim(name)
        elif there and self._options.resume:
            return False
        else:
            with first.spot.root.inside(first.spot.parts) as source:
                if source is None:
                    return False
                try:
                    with folder.new_node(name, overwrite=replace) as beside:
                        _link_same(first, source, folder, beside)
                except _NotLinked:
                    return False
        self._advance(entry.size)
        self._count(entry.size, folder, name, first.digests)
        return True


class _NotLinked(Exception):
    """No hard link could be made; the file is copied instead."""


def _link_same(first: _Linked, source: Folder, folder: Folder, name: bytes) -> None:
    try:
        os.link(first.name, name, src_dir_fd=source.fd, dst_dir_fd=folder.fd, follow_symlinks=False)
    except OSError as error:
        raise _NotLinked from error
    if _identity(folder, name) != first.identity:
        raise _NotLinked


def _identity(folder: Folder, name: bytes) -> tuple[int, ...]:
    """What tells a file from another that came to its name or number."""
    made = folder.status(name)
    if made is None:
        return ()
    return made.st_dev, made.st_ino, stat.S_IFMT(made.st_mode), made.st_size, made.st_mtime_ns


def same_time(actual: int, wanted: int) -> bool:
    """Whether a target that was told ``wanted`` may answer ``actual``, in ns."""
    return any(actual == wanted - wanted % grain for grain in _TIME_GRAINS)
