"""What taking files out of an image is told to do, and what it has to tell: shared by trees and archives."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from imagefs.browse.names import printable, safe_name
from imagefs.browse.place import Refused
from imagefs.browse.walk import walk
from imagefs.errors import ImagefsError, TargetError
from imagefs.interfaces import Entry, EntryType, FileSystem, Finding, HasStreams, HasXattrs, Progress, Stream

#: Findings that are kept; of more than these only the number is.
MAX_FINDINGS = 10_000


@dataclass(frozen=True, slots=True)
class ExtractOptions:
    """``owners`` restores owners, setuid, setgid and sticky bits, devices and pipes; it needs root.

    ``streams`` writes the streams of a file beside it as ``name:stream``. ``resume`` keeps what is there
    already with the same size and time. ``verify`` reads back what was written. ``windows_names``: only names that
    Windows can hold; None decides by the target's file system.
    """

    overwrite: bool = False
    owners: bool = False
    xattrs: bool = False
    streams: bool = False
    hard_links: bool = False
    resume: bool = False
    verify: bool = False
    windows_names: bool | None = None


@dataclass(slots=True)
class ExtractReport:
    """What was made, and a finding for each thing that was not. ``files`` counts hard links, streams and
    what was ``kept`` too, and ``bytes`` theirs."""

    files: int = 0
    directories: int = 0
    symlinks: int = 0
    nodes: int = 0
    kept: int = 0
    bytes: int = 0
    findings: list[Finding] = field(default_factory=list)
    dropped: int = 0
    #: Severities and codes of all findings, those that were dropped too.
    severities: set[str] = field(default_factory=set)
    codes: set[str] = field(default_factory=set)

    def tell(
        self,
        entry: Entry,
        code: str,
        message: str,
        severity: str = "error",
        offset: int | None = None,
        length: int | None = None,
    ) -> None:
        files = (shown(entry),)
        self.add(Finding(severity, code, message, offset=offset, length=length, files=files))

    def add(self, finding: Finding) -> None:
        self.severities.add(finding.severity)
        self.codes.add(finding.code)
        if len(self.findings) < MAX_FINDINGS:
            self.findings.append(finding)
        else:
            self.dropped += 1

    def left_out(self, entry: Entry, code: str, why: str) -> None:
        self.tell(entry, code, f"'{shown(entry)}' is left out: {why}")

    @contextmanager
    def or_left_out(self, entry: Entry) -> Iterator[None]:
        """What cannot be made of an entry inside this is a finding; TargetError ends all."""
        try:
            yield
        except TargetError:
            raise
        except Refused as refused:
            self.left_out(entry, refused.code, refused.message)
        except ImagefsError as error:
            self.left_out(entry, error.code, error.message)

    def unread(self, entry: Entry, ranges: list[tuple[int, int]]) -> None:
        """What the image does not have of a file, and was written as zeros."""
        for offset, length in ranges:
            message = f"{length} bytes of '{shown(entry)}' from byte {offset} were not read from the source"
            self.tell(entry, "unreadable", f"{message} and are zeros", "warning", offset, length)


class Extras:
    """What a file has beside its content, for file systems that know such things."""

    def __init__(self, fs: FileSystem, report: ExtractReport, *, xattrs: bool, streams: bool) -> None:
        self._xattrs = fs if xattrs and isinstance(fs, HasXattrs) else None
        self._streams = fs if streams and isinstance(fs, HasStreams) else None
        self._report = report

    def xattrs(self, entry: Entry) -> dict[bytes, bytes]:
        if self._xattrs is None:
            return {}
        try:
            return self._xattrs.xattrs(entry)
        except ImagefsError as error:
            message = f"the extended attributes of '{shown(entry)}' cannot be read: {error.message}"
            self._report.tell(entry, error.code, message, "warning")
            return {}

    def streams(self, entry: Entry) -> list[tuple[Entry, Stream]]:
        """The streams as files of their own beside ``entry``: ``name:stream``."""
        if self._streams is None:
            return []
        try:
            found = self._streams.streams(entry)
        except ImagefsError as error:
            message = f"the streams of '{shown(entry)}' cannot be read: {error.message}"
            self._report.tell(entry, error.code, message)
            return []
        return [
            (
                entry._replace(
                    path=entry.path + b":" + safe_name(stream.name), type=EntryType.FILE, size=stream.size
                ),
                stream,
            )
            for stream in found
        ]


def bytes_below(fs: FileSystem, entries: list[Entry], progress: Progress) -> int:
    """The bytes of all files in and below ``entries``, as far as they can be listed. ``progress`` hears of them."""

    def ignore(_: ImagefsError) -> None:
        pass

    progress.start("count", None)
    total = sum(entry.size for entry in entries if entry.type is EntryType.FILE)
    for entry in entries:
        for each in walk(fs, entry, onerror=ignore):
            size = each.size if each.type is EntryType.FILE else 0
            progress.advance(size)
            total += size
    return total


def shown(entry: Entry) -> str:
    return printable(entry.path)
