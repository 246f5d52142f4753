"""``imagefs diff``: the files that differ between two images, by volume."""

from __future__ import annotations

import contextlib
import os
import re
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from imagefs.cli.command import common, fat_zone_option
from imagefs.cli.console import Console
from imagefs.cli.rows import entry_row, path_fields
from imagefs.cli.text import one_line, quote, time_json
from imagefs.cli.unlock import secrets_of, unlock_option
from imagefs.cli.wiring import choose_image, open_point, split_path

if TYPE_CHECKING:
    from imagefs.ops.diff import Difference, VolumeDiff


#: A sentence that begins with a volume.
_NAMED = re.compile(r"p\d")


@click.command()
@click.argument("old")
@click.argument("new")
@click.argument("path", default="/")
@fat_zone_option
@unlock_option
@common
def diff(console: Console, old: str, new: str, path: str) -> None:
    """Files added, removed, changed and renamed between image OLD and image NEW, below PATH.

    Only what lies in chunks that differ is looked at where the file system allows it (ext, NTFS); any other
    is walked twice. Times of reading are no difference, and a folder is none because of what is in it.
    """
    volume, inner = split_path(os.fsencode(path))
    before, after = choose_image(console, old), choose_image(console, new)
    from imagefs.image.changes import changes_between
    from imagefs.image.shared import Shared
    from imagefs.ops.diff import diff as compare
    from imagefs.ops.innervolumes import check_secrets

    shared = Shared()
    with contextlib.ExitStack() as opened, console.progress() as progress:
        secrets = secrets_of(console.unlocks)
        one, other = (
            opened.enter_context(open_point(console, *each, secrets=secrets, shared=shared))
            for each in (before, after)
        )
        volumes = compare(one, other, changes_between(one.disk, other.disk), only=volume, progress=progress)
        found = [_below(each, inner) for each in volumes]
        check_secrets(secrets)
    console.document(
        {
            "old": {"id": before[1].id, "created": time_json(before[1].created)},
            "new": {"id": after[1].id, "created": time_json(after[1].created)},
            "volumes": [_volume_row(each) for each in found],
            "differences": [_row(each.volume, every) for each in found for every in each.differences],
            "complete": True,
        }
    )
    for each in found:
        for line in _lines(each):
            console.line(line)
    notes = [
        note if _NAMED.match(note) else f"{each.volume}: {note}" for each in found for note in each.notes
    ]
    for note in dict.fromkeys(notes):  # what lies in a locked volume has the same
        console.warn(note)
        console.exit_code = 3


def _below(found: VolumeDiff, path: bytes) -> VolumeDiff:
    """What is at ``path`` or below it, or was."""
    lead = path.rstrip(b"/") + b"/"
    found.differences = [
        each
        for each in found.differences
        if any((name + b"/").startswith(lead) for name in (each.path, each.other) if name is not None)
    ]
    return found


def _volume_row(found: VolumeDiff) -> dict[str, Any]:
    return {"id": found.volume, "name": found.name, "way": found.way, "why": found.why, "notes": found.notes}


def _row(volume: str, each: Difference) -> dict[str, Any]:
    entry = each.new or each.old
    assert entry is not None
    row = {"change": str(each.kind), "what": list(each.what)} | entry_row(_shown(volume, each.path), entry)
    if each.old is not None and each.new is not None:
        row["old_size"], row["old_mtime"] = each.old.size, time_json(each.old.mtime_ns)
    if each.other is not None:
        row |= path_fields("renamed_from", _shown(volume, each.other))
    return row


def _lines(found: VolumeDiff) -> Iterator[str]:
    counts = Counter(str(each.kind) for each in found.differences)
    told = ", ".join(f"{counts[kind]} {kind}" for kind in ("added", "removed", "changed", "renamed"))
    why = f" (both were walked: {found.why})" if found.way == "walk" and found.why else ""
    told = {"unreadable": "cannot be compared", "unchanged": "unchanged", "container": found.why}.get(
        found.way, told
    )
    name = f" ({one_line(found.name)})" if "." in found.volume and found.name else ""
    lead = "" if found.way == "container" else f"{found.volume}{name}: "
    yield f"{lead}{told}{why}"
    for each in found.differences:
        line = f"{each.kind:<8} {quote(_shown(found.volume, each.path))}"
        line += f"  ({', '.join(each.what)})" if each.what else ""
        line += f"  was {quote(_shown(found.volume, each.other))}" if each.other is not None else ""
        yield line


def _shown(volume: str, path: bytes) -> bytes:
    return b"/" + volume.encode() + (b"" if path == b"/" else path)
