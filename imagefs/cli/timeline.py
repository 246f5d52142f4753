"""``imagefs timeline``: every time of a volume, for mactime or sorted."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import click

from imagefs.browse import timeline as core
from imagefs.cli.browse import Place, Places, incomplete
from imagefs.cli.command import common, fat_zone_option
from imagefs.cli.console import Console
from imagefs.cli.find import starts_of
from imagefs.cli.rows import entry_row
from imagefs.cli.text import time_json
from imagefs.cli.unlock import unlock_option
from imagefs.cli.wiring import VOLUME, choose_image, open_disk
from imagefs.errors import UsageError


@click.command()
@click.argument("image")
@click.argument("path", metavar="[PATH|pN]", default="/")
@click.option("--csv", "as_csv", is_flag=True, help="A line for each time, sorted, instead of a body file.")
@fat_zone_option
@unlock_option
@common
def timeline(console: Console, image: str, path: str, as_csv: bool) -> None:
    """List all times in IMAGE: below PATH, of volume pN, or of every volume.

    Writes a body file as `fls -r -m` does, for `mactime -b`: deleted files too where they can be told, named
    streams, and on NTFS the times of names ($FILE_NAME). With --csv each time has a line of its own (UTC, with
    nanoseconds, sorted), with --json each file.
    """
    if as_csv and console.json_mode:
        raise UsageError("--csv and --json cannot go together", hint="leave one of them out")
    where = os.fsencode(path)
    where = b"/" + where if VOLUME.fullmatch(where) else where
    catalog, chosen = choose_image(console, image, browse=True)
    with open_disk(catalog, chosen, console=console) as disk:
        found = _lines(console, list(starts_of(console, disk, Places(console, disk), where)))
        if console.json_mode:
            console.stream("entries", (_row(place, line) for place, line in found))
        elif as_csv:
            console.write(core.HEADER.encode() + b"\n")
            for row in core.sorted_rows((line, _lead(place)) for place, line in found):
                console.write(row)
        else:
            for place, line in found:
                console.write(core.body(line, _lead(place)))


def _lines(console: Console, places: list[Place]) -> Iterator[tuple[Place, core.Line]]:
    for place in places:
        for line in core.lines(place.fs, place.entry, onerror=lambda error: incomplete(console, error)):
            yield place, line


def _lead(place: Place) -> bytes:
    return b"/" + place.volume.encode()


def _row(place: Place, line: core.Line) -> dict[str, Any]:
    entry = line.entry
    row = entry_row(place.shown(entry), entry) | {
        "atime": time_json(entry.atime_ns),
        "ctime": time_json(entry.ctime_ns),
        "crtime": time_json(entry.crtime_ns),
    }
    if line.target:
        row["target"] = line.target.decode("utf-8", "replace")
    if line.source:
        row["source"] = line.source
    return row
