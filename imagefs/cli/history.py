"""``imagefs history``: every version of a file or folder over the images of a set."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from imagefs.cli.command import common, fat_zone_option
from imagefs.cli.console import Console, default_set
from imagefs.cli.rows import entry_row, path_fields
from imagefs.cli.text import quote, size_text, time_json, time_text
from imagefs.cli.unlock import secrets_of, unlock_option
from imagefs.cli.wiring import look_at, open_point, open_set, split_path
from imagefs.errors import UsageError
from imagefs.image.catalog import Catalog, ImageInfo

if TYPE_CHECKING:
    from imagefs.ops.history import History, Version

#: Names of a folder's entries that text shows of one version.
_SHOWN = 20


@click.command()
@click.argument("words", metavar="[SET] PATH", nargs=-1, required=True)
@fat_zone_option
@unlock_option
@common
def history(console: Console, words: tuple[str, ...]) -> None:
    """Every version of PATH over all images of SET: first seen, changed, renamed, deleted, back again.

    A version is what PATH was from one image to the next that has it otherwise; take it out with
    `imagefs get SET PATH DEST --version N`. Of a folder, the names that came and went.
    """
    if len(words) > 2:
        raise UsageError("history takes a SET and one PATH", hint="ask for the others one by one")
    catalog = look_at(open_set((words[0] if len(words) == 2 else "") or default_set()))
    found = read_history(console, catalog, os.fsencode(words[-1]))
    console.document(_document(found))
    for line in _lines(console, found):
        console.line(line)
    for note in found.notes:
        console.warn(f"left out: {note}")
        console.exit_code = 3


def read_history(console: Console, catalog: Catalog, path: bytes) -> History:
    """The history of PATH over the images of ``catalog``. Raises UsageError, BrowseError."""
    from imagefs.image.shared import Shared
    from imagefs.ops.history import path_history
    from imagefs.ops.innervolumes import check_secrets

    volume, inner = split_path(path)
    if volume is None:
        raise UsageError("/ is the list of volumes", hint="name a path in one, such as /p1/…")

    secrets = secrets_of(console.unlocks)
    opened = partial(open_point, console, catalog, secrets=secrets, shared=Shared())
    with console.progress() as progress:
        found = path_history(catalog, volume, inner, opener=opened, progress=progress)
    if not volume[1:].isdigit():
        check_secrets(secrets)
    return found


def image_of_version(
    console: Console, text: str, paths: list[bytes], number: int
) -> tuple[Catalog, ImageInfo, bytes]:
    """The set, the image that has version ``number`` of the only path, and the path in that image. Raises UsageError,
    BrowseError."""
    if len(paths) != 1:
        raise UsageError("--version is that of one PATH", hint="take the others one by one")
    if not os.path.isdir(text or default_set()):
        raise UsageError(
            "--version counts over a whole set", hint="name the set, without @ and what is behind it"
        )
    catalog = look_at(open_set(text or default_set()))
    history = read_history(console, catalog, paths[0])
    version = history.version(number)
    when = time_text(version.image.created, console.zone)
    console.note(f"imagefs: version {number} is that of {version.image.name}, of {when}")
    return catalog, version.image, b"/" + version.volume.encode() + history.path


def _shown(found: History, path: bytes) -> bytes:
    return b"/" + found.volume.encode() + path


def _document(found: History) -> dict[str, Any]:
    return {
        **path_fields("path", _shown(found, found.path)),
        "images": found.images,
        "opened": found.opened,
        "versions": [_row(found, each) for each in found.versions],
        "notes": found.notes,
    }


def _row(found: History, version: Version) -> dict[str, Any]:
    row: dict[str, Any] = {
        "version": version.number,
        "change": str(version.change),
        "image": version.image.id,
        "created": time_json(version.image.created),
        "last_image": version.last.id,
        "last_created": time_json(version.last.created),
        "images": version.images,
        "what": list(version.what),
        "entry": entry_row(_shown(found, version.entry.path), version.entry) if version.entry else None,
    }
    for name, names in (("added", version.added), ("removed", version.removed)):
        if version.entry is not None and version.entry.type == "directory":
            row[name] = [path_fields("name", each) for each in names]
    if version.other is not None:
        key = "renamed_to" if version.entry is None else "renamed_from"
        row |= path_fields(key, _shown(found, version.other))
    return row


def _lines(console: Console, found: History) -> list[str]:
    lines = [f"{'version':>7}  {'image':<8}  {'of':<25}  {'images':>6}  {'size':>10}  {'modified':<25}  what"]
    for each in found.versions:
        size, modified = "-", "-"
        if each.entry is not None:
            size = size_text(each.entry.size) if each.entry.type != "directory" else "-"
            modified = time_text(each.entry.mtime_ns, console.zone)
        when = time_text(each.image.created, console.zone)
        lines.append(
            f"{each.number:>7}  {each.image.id[:8]}  {when:<25}  {each.images:>6}  {size:>10}  {modified:<25}  "
            + _what(found, each)
        )
        marked = [(b"+", name) for name in each.added] + [(b"-", name) for name in each.removed]
        lines += [f"{'':>9}{mark.decode()} {quote(name)}" for mark, name in marked[:_SHOWN]]
        if len(marked) > _SHOWN:
            lines.append(f"{'':>9}and {len(marked) - _SHOWN} more; all with --json")
    return lines


def _what(found: History, version: Version) -> str:
    words = str(version.change) + (f": {', '.join(version.what)}" if version.what else "")
    if version.other is None:
        return words
    return f"{words}{' to ' if version.entry is None else ', was '}{quote(_shown(found, version.other))}"
