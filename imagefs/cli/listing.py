"""``imagefs list``: what a set holds. Imports no more than it needs: it is asked often."""

from __future__ import annotations

import contextlib
import os
import time
from typing import Any

import click

from imagefs.cli.command import common
from imagefs.cli.console import Console, default_set
from imagefs.cli.facts import CONSISTENCY, image_row
from imagefs.cli.text import age_text, quote, size_text, time_json, time_text
from imagefs.cli.wiring import look_at, open_set
from imagefs.errors import ImagefsError
from imagefs.image.catalog import Catalog, ImageInfo
from imagefs.interfaces import ObjectInfo
from imagefs.store import LocalStore
from imagefs.store.local import is_being_written


@click.command("list")
@click.argument("set_", metavar="[SET]", required=False, type=click.Path())
@click.option("--clean-partials", is_flag=True, help="Remove unfinished images that nobody is writing.")
@common
def list_command(console: Console, set_: str | None, clean_partials: bool) -> None:
    """Show the images of SET as a tree: what needs what, sizes, ages, and unfinished ones.

    An image is indented below the one it needs, so space is freed from the leaves.
    """
    store = open_set(set_ or default_set())
    if clean_partials:
        _clean_partials(console, store)
    catalog = look_at(store)
    if console.json_mode:
        console.document(_list_document(catalog, store))
    else:
        for line in _tree_lines(console, catalog):
            console.line(line)
    for found, error in catalog.damaged:
        console.warn(error.message if found.name in error.message else f"{found.name}: {error.message}")
    for found in catalog.partials:
        console.line(_partial_line(store, found))
    if not (catalog.images or catalog.damaged or catalog.partials):
        console.line("no images yet; make one with `imagefs capture SOURCE SET`")


def _list_document(catalog: Catalog, store: LocalStore) -> dict[str, Any]:
    def row(info: ImageInfo) -> dict[str, Any]:
        needed_by = [child.id for child in catalog.children(info)]
        return image_row(info, store.url) | {
            "needed_by": needed_by,
            "note": info.header.facts.get("note", ""),
        }

    return {
        "images": [row(info) for info in catalog.images],
        "damaged": [
            {"path": os.path.join(store.url, found.name), "size": found.size, "message": error.message}
            for found, error in catalog.damaged
        ],
        "partials": [
            {
                "path": os.path.join(store.url, found.name),
                "size": found.size,
                "modified": time_json(found.mtime_ns),
                "in_progress": is_being_written(os.path.join(store.url, found.name)),
                "resumable": _resumable(store, found),
            }
            for found in catalog.partials
        ],
    }


def _tree_lines(console: Console, catalog: Catalog) -> list[str]:
    """One line an image, children indented below their parents. Iterative: chains may be long."""
    lines = []
    roots = [info for info in catalog.images if info.header.parent not in catalog.by_uuid]
    waiting = [(info, 0) for info in reversed(roots)]
    while waiting:
        info, depth = waiting.pop()
        lines.append(_image_line(console, catalog, info, depth))
        # The only child of an incremental stays on its level: a chain of 1,000 is a column, not a stair.
        children = catalog.children(info)
        deeper = depth + 1 if depth == 0 or len(children) > 1 else depth
        waiting += [(child, deeper) for child in reversed(children)]
    return lines


def _image_line(console: Console, catalog: Catalog, info: ImageInfo, depth: int) -> str:
    needed = len(catalog.descendants(info)) if depth == 0 else len(catalog.children(info))
    what = f"needed by {needed} image{'s' if needed != 1 else ''}" if needed else "needed by none"
    lost = info.header.parent is not None and info.header.parent not in catalog.by_uuid
    parent = f", parent {info.header.parent.hex[:8]} MISSING" if lost and info.header.parent else ""
    note = info.header.facts.get("note")
    shown = f", {quote(str(note).encode())}" if note else ""
    lead = "  " * depth + ("└ " if depth else "")
    kind = info.header.kind.name.lower()
    taken = f"consistency {CONSISTENCY.get(info.summary.consistency, 'none')}"
    return (
        f"{lead}{info.id[:8]}  {kind:<12} {time_text(info.created, console.zone)}"
        f"  {age_text(info.created, time.time_ns()):<16} {size_text(info.tail.size):>10}"
        f" of {size_text(info.summary.disk_size)}, {what}{parent}, {taken}{shown}"
    )


def _clean_partials(console: Console, store: LocalStore) -> None:
    """Under the set's lock, so that no capture is just beginning."""
    lock = store.lock()
    try:
        for found in list(store.partials()):
            if not is_being_written(os.path.join(store.url, found.name)):
                store.delete(found.name)
                console.line(f"removed {found.name}, {size_text(found.size)} freed")
    finally:
        lock.release()


def _partial_line(store: LocalStore, found: ObjectInfo) -> str:
    path = os.path.join(store.url, found.name)
    if is_being_written(path):
        return f"{found.name}: {size_text(found.size)} so far, a capture is at work on it"
    age = age_text(found.mtime_ns, time.time_ns())
    resumable = (
        "go on with `capture --resume`, or " if _resumable(store, found) else "too short to go on with, "
    )
    return (
        f"{found.name}: unfinished, {size_text(found.size)}, {age}; "
        f"{resumable}be rid of it with `list --clean-partials`"
    )


def _resumable(store: LocalStore, found: ObjectInfo) -> bool:
    from imagefs.image.resume import has_checkpoint

    with contextlib.suppress(ImagefsError), contextlib.closing(store.open_partial(found.name)) as reader:
        return has_checkpoint(reader)
    return False
