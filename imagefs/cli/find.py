"""``imagefs find``: files by name, path, type, size, times, digest and content, live or deleted."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from imagefs.browse.examine import Content
from imagefs.browse.find import Range
from imagefs.browse.find import find as find_in
from imagefs.browse.hashset import HashSet
from imagefs.cli.browse import Place, Places, incomplete, write_entry
from imagefs.cli.command import common, fat_zone_option
from imagefs.cli.console import Console
from imagefs.cli.criteria import moment, needle_of_hex, needle_of_text, path_pattern, size_range
from imagefs.cli.deleted import deleted_option, only_deleted
from imagefs.cli.unlock import unlock_option
from imagefs.cli.wiring import choose_image, open_disk, shown_disk
from imagefs.errors import BrowseError, UsageError
from imagefs.interfaces import Entry, EntryType, Progress
from imagefs.ops.diskimage import DiskImage

LETTERS = {"f": "file", "d": "directory", "l": "symlink", "p": "fifo", "s": "socket"}
TYPES = [*(str(kind) for kind in EntryType), *LETTERS]
TIMES = {
    "mtime": ("Modified", ("--newer", "--changed-within"), ("--older", "--changed-before")),
    "atime": ("Read", (), ()),
    "ctime": ("Metadata changed", (), ()),
    "crtime": ("Created", (), ()),
}


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be found, but for the times, which a file in the image may give."""

    name: bytes | None
    iname: bytes | None
    path: list[tuple[str, bool]]
    types: frozenset[EntryType] | None
    sizes: tuple[Range, ...]
    content: Content | None
    deleted: bool

    @property
    def everything(self) -> bool:
        """Whether all files below a place are read: then it is known how much that is."""
        files = self.types in (None, frozenset({EntryType.FILE}))
        return files and not (self.name or self.iname or self.path or self.sizes or self.deleted)


def time_options(body: Callable[..., None]) -> Callable[..., None]:
    """``--mtime-after``, ``--mtime-before`` and so for each time; find's and fd's names for the first."""
    for field, (done, after, before) in reversed(TIMES.items()):
        body = click.option(
            f"--{field}-before", *before, metavar="WHEN", help=f"{done} before WHEN.", multiple=True
        )(body)
        body = click.option(
            f"--{field}-after", *after, metavar="WHEN", help=f"{done} at WHEN or later.", multiple=True
        )(body)
    return body


@click.command(
    epilog="WHEN is 2026-11-17, '2026-11-17 14:00', either with Z or +01:00 behind it (else local time, or "
    "--tz), @SECONDS since 1970, 3d, 12h or 2weeks ago, or /p1/FILE: the same time of a file in the image. "
    "N is in bytes; k M G T are powers of 1,024."
)
@click.argument("image")
@click.argument("path", default="/")
@click.option("--name", metavar="GLOB", help="The name matches, * ? [a-z] as in a shell.")
@click.option("--iname", metavar="GLOB", help="The same without regard to case.")
@click.option("--regex", metavar="RE", multiple=True, help="The whole path (/p1/…) matches, from end to end.")
@click.option("--iregex", metavar="RE", multiple=True, help="The same without regard to case.")
@click.option("--type", "types", type=click.Choice(TYPES), multiple=True, help="Any of these types.")
@click.option(
    "--size", "sizes", metavar="N", multiple=True, help="+N at least, -N at most, N exactly, N..N between."
)
@time_options
@click.option("--hash", "hashes", metavar="HEX", multiple=True, help="Any of these MD5, SHA-1 or SHA-256.")
@click.option(
    "--hash-set",
    "hash_sets",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    multiple=True,
    help="Any digest in a list: of sha256sum, NSRL (CSV), or one a line.",
)
@click.option("--contains", metavar="TEXT", multiple=True, help="TEXT is in it, as UTF-8 or UTF-16.")
@click.option("--contains-hex", metavar="BYTES", multiple=True, help="These bytes are in it: 'de ad be ef'.")
@deleted_option
@click.option("-0", "--null", "null", is_flag=True, help="End names with NUL.")
@fat_zone_option
@unlock_option
@common
def find(console: Console, image: str, path: str, null: bool, **options: Any) -> None:
    """Find files in IMAGE, below PATH or in every volume.

    What is found matches every option that is given. Digests and contents are those of files and of their
    named streams, which are shown as PATH:STREAM; each is read once. What cannot be read is told on stderr,
    and the exit code is 3.
    """
    asked = _asked(console, options)
    catalog, found = choose_image(console, image, browse=True)
    with (
        open_disk(catalog, found, console=console) as disk,
        console.progress() as progress,
    ):
        if asked.content is not None:
            shown_disk(disk, unreadable="zeros")  # which tells bad sectors from zeros, and reads ahead
        places = Places(console, disk)
        times = [
            (f"{field}_ns", span)
            for field in TIMES
            for span in _times(console, places, field, options[f"{field}_after"], options[f"{field}_before"])
        ]
        starts = list(starts_of(console, disk, places, os.fsencode(path), deleted=asked.deleted))
        if asked.content is not None:
            progress.start("searching", _total(starts) if asked.everything else None)
        hits = _hits(console, starts, asked, times, progress)
        slow = asked.content is not None
        if console.json_mode:
            console.stream("entries", (place.row(entry) for place, entry in hits), flush=slow)
            return
        for place, entry in hits:
            write_entry(console, place, entry, place.shown(entry), null=null, deleted=asked.deleted)
            if slow:
                sys.stdout.flush()


def _asked(console: Console, options: dict[str, Any]) -> Asked:
    kinds = frozenset(EntryType(LETTERS.get(kind, kind)) for kind in options["types"])
    pairs = [(text, False) for text in options["regex"]] + [(text, True) for text in options["iregex"]]
    for text, _ in pairs:  # what makes no sense is refused before anything is opened
        path_pattern(text, ignore_case=False)
    for text in (
        each for field in TIMES for edge in ("after", "before") for each in options[f"{field}_{edge}"]
    ):
        if not text.startswith("/"):
            moment(text, console.zone)
    return Asked(
        name=os.fsencode(options["name"]) if options["name"] else None,
        iname=os.fsencode(options["iname"]) if options["iname"] else None,
        path=pairs,
        types=kinds or None,
        sizes=tuple(size_range(text) for text in options["sizes"]),
        content=_content(console, options),
        deleted=options["deleted"],
    )


def _content(console: Console, options: dict[str, Any]) -> Content | None:
    needles = [needle_of_text(os.fsencode(text)) for text in options["contains"]]
    needles += [needle_of_hex(text) for text in options["contains_hex"]]
    hashes = None
    if options["hashes"] or options["hash_sets"]:
        hashes = HashSet()
        for text in options["hashes"]:
            try:
                hashes.add(text.strip())
            except ValueError as error:
                raise UsageError(f"{text!r} is no digest", hint="MD5, SHA-1 and SHA-256 in hex") from error
        for file in options["hash_sets"]:
            _read_hash_set(console, hashes, file)
    return Content(tuple(needles), hashes) if needles or hashes is not None else None


def _read_hash_set(console: Console, hashes: HashSet, file: Path) -> None:
    before = len(hashes)
    try:
        with file.open("rb") as stream:
            unknown = hashes.read(stream)
    except OSError as error:
        raise UsageError(f"the hash set {file} cannot be read: {error.strerror}") from error
    if len(hashes) == before:
        raise UsageError(
            f"the hash set {file} holds no digest",
            hint="lines as of sha256sum, an NSRL CSV with its header, or one digest a line",
        )
    if unknown:
        console.warn(f"{unknown} lines of the hash set {file} hold no digest and are left out")


def _times(
    console: Console, places: Places, field: str, after: tuple[str, ...], before: tuple[str, ...]
) -> Iterator[Range]:
    def of_file(path: str) -> int:
        entry = places.entry(os.fsencode(path)).entry
        found: int | None = getattr(entry, f"{field}_ns")
        if found is None:
            raise BrowseError(f"the {field} of {path} is not known")
        return found

    for text in after:  # newer than a file: not as old as it
        yield Range(low=of_file(text) + 1 if text.startswith("/") else moment(text, console.zone))
    for text in before:
        yield Range(high=(of_file(text) if text.startswith("/") else moment(text, console.zone)) - 1)


def starts_of(
    console: Console, disk: DiskImage, places: Places, path: bytes, *, deleted: bool = False
) -> Iterator[Place]:
    """Where to search: the place of ``path``, or the root of every volume that can be opened, shadow copies aside;
    with ``deleted`` in the trees of their deleted files."""
    look_up = places.deleted if deleted else places.find
    place = look_up(path)
    if place is not None:
        yield place
        return
    for volume in disk.all_volumes:
        if volume.moment:  # old versions of what is found anyway; they can be named
            continue
        try:
            places.filesystem(volume.id)
        except BrowseError as error:
            console.note(f"imagefs: {volume.id} is left out: {error.message}")
            continue
        try:
            place = look_up(f"/{volume.id}".encode())
        except BrowseError as error:
            incomplete(console, BrowseError(f"{volume.id} is left out: {error.message}"))
            continue
        yield from [place] if place is not None else []


def _total(starts: list[Place]) -> int | None:
    """About how many bytes will be read; None where nobody knows."""
    total = 0
    for place in starts:
        known = place.fs.used_bytes if place.entry.path == b"/" else None
        known = place.entry.size if place.entry.type is EntryType.FILE else known
        if known is None:
            return None
        total += known
    return total


def _hits(
    console: Console,
    starts: list[Place],
    asked: Asked,
    times: list[tuple[str, Range]],
    progress: Progress,
) -> Iterator[tuple[Place, Entry]]:
    """What is found, place by place."""
    count = 0
    for place in starts:
        found = find_in(
            place.fs,
            place.entry,
            onerror=lambda error: incomplete(console, error),
            name=asked.name,
            iname=asked.iname,
            path=_path_test(place, asked.path) if asked.path else None,
            types=asked.types,
            sizes=asked.sizes,
            times=times,
            content=asked.content,
            progress=progress,
        )
        for entry in only_deleted(found) if asked.deleted else found:
            count += 1
            progress.tell({"hits": count})
            yield place, entry


def _path_test(place: Place, patterns: list[tuple[str, bool]]) -> Callable[[bytes], bool]:
    """All patterns, on the path as it is shown; without case where the file system has none."""
    tests = [
        path_pattern(text, ignore_case=ignored or place.fs.case_insensitive) for text, ignored in patterns
    ]
    lead = b"/" + place.volume.encode()
    return lambda path: all(test(lead + path) for test in tests)
