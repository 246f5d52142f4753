"""What the browser asks of the command line, which knows how to open images and what its words are.

All of it may take long and is called from threads; what it raises are the errors of the project.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import tzinfo
from typing import Protocol

from imagefs.interfaces import Entry, FileSystem, Finding
from imagefs.tui.folder import Heed, Mark


@dataclass(frozen=True, slots=True)
class Point:
    """One point in time: an image of the set. ``trouble`` is why it cannot be opened, then ``id`` is empty; times
    in ns since 1970, sizes in bytes."""

    id: str
    name: str
    created: int
    kind: str
    stored: int
    disk_size: int
    note: str = ""
    consistency: str = ""
    parent: str = ""
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class VolumeRow:
    """A volume as `imagefs ls IMAGE` lists it; ``name`` is ``p2``."""

    name: str
    size: int
    used: int | None
    filesystem: str
    label: str
    role: str


@dataclass(frozen=True, slots=True)
class Version:
    """What a path was from ``point`` on for ``images`` images in a row; ``entry`` None: it was not there.
    ``change`` is the word of `imagefs history`, ``what`` tells how it differs from the version before."""

    point: Point
    images: int
    change: str
    what: str
    entry: Entry | None


@dataclass(frozen=True, slots=True)
class Wishes:
    """How to extract, in the words of `imagefs get`."""

    overwrite: bool = False
    streams: bool = False
    verify: bool = False


@dataclass(frozen=True, slots=True)
class Beat:
    """How far a job is: bytes done and in all (None: not known), bytes a second, seconds left."""

    label: str
    done: int
    total: int | None
    rate: float
    eta: float | None


@dataclass(frozen=True, slots=True)
class Taken:
    """How an extraction ended: a sentence, and what there is to say of single files."""

    words: str
    findings: Sequence[Finding] = ()
    more: int = 0


class Located(Protocol):
    """A path that was looked up."""

    @property
    def fs(self) -> FileSystem: ...

    @property
    def entry(self) -> Entry: ...


class OpenPoint(Protocol):
    """One image, opened. Paths are those that a user writes: ``/p2/etc/fstab``. Safe in several threads."""

    def volumes(self) -> list[VolumeRow]: ...

    def live(self, path: bytes, /) -> Located:
        """Raises BrowseError, PathNotFound."""
        ...

    def deleted(self, path: bytes, /) -> Located:
        """Among the deleted files of its volume, all of which are searched for once; ``fs`` is their tree. A live
        folder that leads to nothing deleted is itself, ``fs`` is the tree all the same."""
        ...

    def facts(self, mark: Mark, /) -> list[str]:
        """What `imagefs stat` prints."""
        ...

    def extract(
        self, marks: Sequence[Mark], dest: str, wishes: Wishes, told: Callable[[Beat], None], heed: Heed, /
    ) -> Taken:
        """As `imagefs get` does. ``heed`` is called often, and may raise to end it; what was taken stays."""
        ...

    def close(self) -> None: ...


class Session(Protocol):
    """A set, looked at. ``zone`` None is local time; ``start`` is (id of the point, path) to begin with, or None."""

    title: str
    zone: tzinfo | None
    start: tuple[str, bytes] | None

    def now(self) -> int:
        """In ns since 1970."""
        ...

    def points(self) -> list[Point]:
        """As they are now, newest first; those that cannot be opened too."""
        ...

    def open(self, point: Point, /) -> OpenPoint: ...

    def versions(
        self, path: bytes, told: Callable[[Beat], None], heed: Heed, /
    ) -> tuple[list[Version], list[str]]:
        """Newest first, and what could not be looked into."""
        ...

    def close(self) -> None: ...
