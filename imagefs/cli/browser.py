"""``imagefs browse``: the terminal browser, and what it is given of the command line."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click

from imagefs.browse.extract import plan_targets
from imagefs.browse.names import printable
from imagefs.browse.taking import ExtractOptions, ExtractReport
from imagefs.cli.browse import Place, Places, listed_volumes, stat_row
from imagefs.cli.command import Terminated, common, fat_zone_option
from imagefs.cli.console import Console, Meter, default_set
from imagefs.cli.deleted import Recoverable, distinct_names
from imagefs.cli.details import stat_lines
from imagefs.cli.facts import CONSISTENCY
from imagefs.cli.get import Job, take, taken_words, tell_deleted
from imagefs.cli.unlock import secrets_of, unlock_option
from imagefs.cli.wiring import (
    find_image,
    look_at,
    open_disk,
    open_point,
    open_set,
    shown_disk,
    split_path,
)
from imagefs.errors import BrowseError, UsageError
from imagefs.image.catalog import Catalog, ImageInfo
from imagefs.image.shared import Shared
from imagefs.interfaces import FileSystem
from imagefs.ops.diskimage import DiskImage
from imagefs.ops.history import Version as FileVersion
from imagefs.ops.history import path_history
from imagefs.tui.folder import Heed, Mark
from imagefs.tui.session import Beat, Point, Taken, Version, VolumeRow, Wishes

#: Those that end the browser, which first puts the terminal back as it was.
SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


@click.command()
@click.argument("set_", metavar="[SET]", required=False)
@click.argument("path", metavar="[PATH]", default="/")
@fat_zone_option
@unlock_option
@common
def browse(console: Console, set_: str | None, path: str) -> None:
    """Look through all images of SET in the terminal: folders, contents, versions, deleted files.

    With an IMAGE (SET@latest~1, or a file) it begins there, with PATH in that folder. ? shows the keys.
    """
    if console.json_mode:
        raise UsageError(
            "the browser is for people and has no --json",
            hint="`imagefs list`, ls, find, history and get tell and do the same with --json",
        )
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError(
            "the browser needs a terminal",
            hint="in a script take `imagefs list`, ls, find, history and get",
        )
    run = _load()
    session = SetSession(console, set_ or default_set(), os.fsencode(path))
    number = run(session, signals=SIGNALS)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    if number is not None:
        raise Terminated(number)


def _load() -> Callable[..., int | None]:
    """The browser itself, which needs Textual."""
    try:
        from imagefs.tui.app import run
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in ("textual", "rich"):
            raise
        raise UsageError(
            "the browser needs the library Textual (8), which is not installed",
            hint="pip install 'imagefs[tui]'",
        ) from error
    return run


class SetSession:
    """A set as the browser sees it; see ``tui/session.py``."""

    def __init__(self, console: Console, text: str, path: bytes) -> None:
        self.zone = console.zone
        self.start: tuple[str, bytes] | None = None
        self._console = console
        self._lock = threading.Lock()
        self._infos: dict[str, ImageInfo] = {}
        self._shared = Shared()
        self._secrets = secrets_of(console.unlocks)
        split_path(path)
        if text.startswith("@"):
            text = default_set() + text
        self._text = text
        self._is_set = Path(text).is_dir()
        self._catalog, info = self._look()
        if info is not None and (path != b"/" or not self._is_set):
            self.start = info.id, path
        self.title = os.path.basename(os.path.normpath(os.path.abspath(self._catalog.store.url)))

    def _look(self) -> tuple[Catalog, ImageInfo | None]:
        """What there is now, and the image that was named or is the newest; a set may be empty."""
        if self._is_set:
            catalog = look_at(open_set(self._text))
            info = catalog.newest()
        else:
            catalog, info, _ = find_image(self._text, zone=self.zone)
        with self._lock:
            self._infos = {each.id: each for each in catalog.images}
        return catalog, info

    def now(self) -> int:
        return time.time_ns()

    def points(self) -> list[Point]:
        self._catalog, _ = self._look()
        catalog = self._catalog
        points = [point_of(info) for info in reversed(catalog.images)]
        for found, error in catalog.damaged:
            trouble = error.message + (f"; {error.hint}" if error.hint else "")
            points.append(Point("", found.name, 0, "", found.size, 0, trouble=trouble))
        for found in catalog.partials:
            trouble = "an unfinished capture, not an image; `imagefs list` tells whether it can be resumed"
            points.append(Point("", found.name, 0, "", found.size, 0, trouble=trouble))
        return points

    def open(self, point: Point) -> OpenImage:
        with self._lock:
            info = self._infos[point.id]
        return OpenImage(self._console, self._catalog, info, self._shared)

    def versions(
        self, path: bytes, told: Callable[[Beat], None], heed: Heed
    ) -> tuple[list[Version], list[str]]:
        volume, inner = split_path(path)
        if volume is None:
            raise BrowseError("a whole disk has no versions", hint="go into a volume first")
        progress = ScreenProgress(told, heed)
        history = path_history(self._catalog, volume, inner, opener=self._opener, progress=progress)
        versions = [
            Version(point_of(each.image), each.images, str(each.change), _what(each), each.entry)
            for each in reversed(history.versions)
        ]
        return versions, history.notes

    def _opener(self, info: ImageInfo) -> DiskImage:
        image = open_point(self._console, self._catalog, info, secrets=self._secrets, shared=self._shared)
        image.waiting = nullcontext  # the terminal is the browser's
        return image

    def close(self) -> None:
        pass


def _what(version: FileVersion) -> str:
    """In which respects a version differs from the one before, in a line."""
    told = [", ".join(version.what)] if version.what else []
    for sign, names in (("+", version.added), ("-", version.removed)):
        told += [f"{sign}{printable(name)}" for name in names]
    if version.other is not None:
        told.append(printable(version.other))
    return " ".join(told)


def point_of(info: ImageInfo) -> Point:
    """An image as the browser lists it."""
    parent = info.header.parent
    return Point(
        id=info.id,
        name=info.name,
        created=info.created,
        kind=info.header.kind.name.lower(),
        stored=info.tail.size,
        disk_size=info.summary.disk_size,
        note=str(info.header.facts.get("note", "")),
        consistency=CONSISTENCY.get(info.summary.consistency, "none"),
        parent=parent.hex if parent else "",
    )


class _SharedPlaces(Places):
    """For several threads: a volume is opened by one of them."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._opening = threading.Lock()

    def filesystem(self, volume: str) -> FileSystem:
        with self._opening:
            return super().filesystem(volume)


class OpenImage:
    """An image, opened; see ``tui/session.py``."""

    def __init__(self, console: Console, catalog: Catalog, info: ImageInfo, shared: Shared) -> None:
        self._console = console
        self._disk = open_disk(catalog, info, console=console, shared=shared)
        self._disk.waiting = nullcontext  # the terminal is the browser's
        self._reader = shown_disk(self._disk, unreadable="zeros")
        self._places = _SharedPlaces(console, self._disk, onerror=lambda error: None, note=lambda text: None)

    def volumes(self) -> list[VolumeRow]:
        return [
            VolumeRow(
                name=row["path"].lstrip("/"),
                size=row["size"],
                used=row["used"],
                filesystem=row["filesystem"] or "",
                label=row["label"] or "",
                role=row["role"] or "",
            )
            for row in listed_volumes(self._disk)
        ]

    def live(self, path: bytes) -> Place:
        return self._places.entry(path)

    def deleted(self, path: bytes) -> Place:
        return self._places.entry(path, deleted=True)

    def facts(self, mark: Mark) -> list[str]:
        place = self.deleted(mark.path) if mark.deleted else self.live(mark.path)
        troubles: list[str] = []
        row = stat_row(self._console, place, onerror=lambda error: troubles.append(error.message))
        return [*stat_lines(row), *troubles]

    def extract(
        self,
        marks: Sequence[Mark],
        dest: str,
        wishes: Wishes,
        told: Callable[[Beat], None],
        heed: Heed,
    ) -> Taken:
        recoverable = _SharedPlaces(
            self._console, self._disk, tree=Recoverable, onerror=lambda error: None, note=lambda text: None
        )
        places = []
        for mark in marks:
            heed()
            places.append(
                (recoverable if mark.deleted else self._places).entry(mark.path, deleted=mark.deleted)
            )
        target = os.path.expanduser(os.fsencode(dest or "."))
        shown = [place.entry._replace(path=mark.path) for place, mark in zip(places, marks, strict=True)]
        targets = plan_targets(distinct_names(shown), target, is_dir=os.path.isdir(target))
        options = ExtractOptions(overwrite=wishes.overwrite, streams=wishes.streams, verify=wishes.verify)
        jobs = list(zip(places, targets, strict=True))
        report, progress = ExtractReport(), ScreenProgress(told, heed)
        for these in (_of_kind(jobs, marks, deleted) for deleted in (False, True)):
            take(these, options, progress=progress, report=report, count_first=True)
            tell_deleted([place for place, _ in these], report)
        return Taken(taken_words(report), tuple(report.findings), report.dropped)

    def close(self) -> None:
        self._reader.close()
        self._disk.close()


def _of_kind(jobs: list[Job], marks: Sequence[Mark], deleted: bool) -> list[Job]:
    """The deleted ones come from other trees than the live ones."""
    return [job for job, mark in zip(jobs, marks, strict=True) if mark.deleted is deleted]


class ScreenProgress(Meter):
    """Progress that a screen hears of, and can end."""

    def __init__(self, told: Callable[[Beat], None], heed: Heed) -> None:
        super().__init__()
        self._told, self._heed = told, heed

    def start(self, label: str, total: int | None, /) -> None:
        self._heed()
        super().start(label, total)
        self._told(Beat(label, 0, total, 0.0, None))

    def advance(self, count: int, /) -> None:
        self._heed()
        super().advance(count)

    def note(self, message: str, /) -> None:
        pass

    def beat(self, seconds: float) -> None:
        rate, eta = self.rate_and_eta(seconds)
        self._told(Beat(self.label, self.done, self.total, rate, eta))
