"""``imagefs ls``, ``cat`` and ``stat``: into an image without mounting it."""

from __future__ import annotations

import os
import stat as modes
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import click

from imagefs.browse.deletedtree import DeletedTree
from imagefs.browse.walk import OnError, walk
from imagefs.cli.command import common, fat_zone_option
from imagefs.cli.console import Console
from imagefs.cli.deleted import (
    NONE_KEPT,
    check_inodes,
    deleted_entry,
    deleted_option,
    entry_at,
    inode_option,
    only_deleted,
    tell_whole,
    whole_lead,
    whole_row,
)
from imagefs.cli.details import details, stat_lines, with_streams
from imagefs.cli.facts import volume_rows
from imagefs.cli.rows import entry_row
from imagefs.cli.text import one_line, quote, size_text, time_json, time_text
from imagefs.cli.unlock import unlock_option
from imagefs.cli.wiring import choose_image, open_disk, prepare_worker, split_path
from imagefs.errors import BrowseError, ImagefsError, IntegrityError, UsageError
from imagefs.interfaces import Entry, EntryType, FileSystem, Volume
from imagefs.ops.diskimage import DiskImage

CAT_PIECE = 1024 * 1024
TYPE_LETTERS = {
    EntryType.FILE: "-",
    EntryType.DIRECTORY: "d",
    EntryType.SYMLINK: "l",
    EntryType.DEVICE: "b",
    EntryType.FIFO: "p",
    EntryType.SOCKET: "s",
    EntryType.OTHER: "?",
}


@dataclass(frozen=True, slots=True)
class Place:
    """A PATH looked up: the file system of a volume and an entry in it."""

    volume: str
    fs: FileSystem
    entry: Entry

    def shown(self, entry: Entry) -> bytes:
        """The entry's path as a user writes it: ``/p2/etc/fstab``."""
        return shown_path(self.volume, entry)

    def row(self, entry: Entry) -> dict[str, Any]:
        return entry_row(self.shown(entry), entry) | whole_row(self.fs, entry)


def shown_path(volume: str, entry: Entry) -> bytes:
    return b"/" + volume.encode() + (b"" if entry.path == b"/" else entry.path)


class Places:
    """Looks PATHs up in one image; each volume is opened once. ``tree`` makes that of its deleted files, and
    ``onerror`` hears what of them cannot be read, ``note`` what is to be known of them, else the console does."""

    def __init__(
        self,
        console: Console,
        disk: DiskImage,
        *,
        tree: type[DeletedTree] = DeletedTree,
        onerror: OnError | None = None,
        note: Callable[[str], None] | None = None,
    ) -> None:
        self._note = note or console.note
        self._onerror = onerror or partial(incomplete, console)
        self._disk = disk
        self._tree = tree
        self._open: dict[str, FileSystem] = {}
        self._trees: dict[str, DeletedTree] = {}

    def find(self, path: bytes) -> Place | None:
        """The place of ``path``; None for the root, which lists the volumes. Raises BrowseError."""
        volume, inner = split_path(path)
        if volume is None:
            return None
        return Place(volume, self.filesystem(volume), self._lookup(volume, inner))

    def entry(self, path: bytes, *, deleted: bool = False) -> Place:
        """As ``find`` or ``deleted``, where the root will not do."""
        place = self.deleted(path) if deleted else self.find(path)
        if place is None:
            raise BrowseError(
                "/ is the list of volumes, not a file", hint="name a path in one, such as /p1/…"
            )
        return place

    def deleted(self, path: bytes) -> Place | None:
        """As ``find``, among the deleted files: ``fs`` is a tree of these."""
        volume, inner = split_path(path)
        if volume is None:
            return None
        fs = self.filesystem(volume)
        if volume not in self._trees:
            if fs.kind in NONE_KEPT:
                self._note(f"imagefs: {volume}: {NONE_KEPT[fs.kind]}")
            self._trees[volume] = self._tree(fs, onerror=self._onerror)
        tree = self._trees[volume]
        return Place(volume, tree, deleted_entry(tree, fs, inner))

    def at(self, path: bytes, address: str) -> Place:
        """The entry at an address of the volume that ``path`` names."""
        volume, _ = split_path(path)
        if volume is None:
            raise UsageError("--inode goes with a PATH that names the volume", hint="such as /p1")
        fs = self.filesystem(volume)
        return Place(volume, fs, entry_at(fs, address))

    def chosen(self, paths: tuple[str, ...], inodes: tuple[str, ...]) -> list[Place]:
        """The places of ``paths``, or those at ``inodes`` of the volume that the only path names."""
        check_inodes(paths, inodes)
        if inodes:
            return [self.at(os.fsencode(paths[0]), address) for address in inodes]
        return [self.entry(os.fsencode(path)) for path in paths]

    def filesystem(self, volume: str) -> FileSystem:
        if volume not in self._open:
            self._open[volume] = self._disk.filesystem(volume)
        return self._open[volume]

    def _lookup(self, volume: str, inner: bytes) -> Entry:
        try:
            return self.filesystem(volume).lookup(inner)
        except BrowseError as error:
            if b"\\" in inner and not error.hint:
                error.hint = "paths in an image are written with /"
            raise


def write_name(console: Console, name: bytes, end: bytes) -> None:
    """A name: quoted on a terminal so that it can be pasted back, raw bytes in a pipe."""
    if console.on_terminal and end == b"\n":
        console.line(quote(name))
    else:
        console.write(name + end)


# -- ls -------------------------------------------------------------------------------------------


@click.command()
@click.argument("image")
@click.argument("path", default="/")
@click.option("-l", "--long", "long", is_flag=True, help="Modes, owners, sizes and times too.")
@click.option("-R", "--recursive", is_flag=True, help="Everything below as well.")
@click.option("--streams", is_flag=True, help="Named streams too, as name:stream (NTFS, HFS+).")
@click.option("-0", "--null", "null", is_flag=True, help="End names with NUL.")
@deleted_option
@fat_zone_option
@unlock_option
@common
def ls(
    console: Console,
    image: str,
    path: str,
    long: bool,
    recursive: bool,
    streams: bool,
    null: bool,
    deleted: bool,
) -> None:  # fmt: skip
    """List PATH in IMAGE; without PATH, its volumes."""
    catalog, found = choose_image(console, image, browse=path.strip("/") != "")
    with open_disk(catalog, found, console=console) as disk:
        places = Places(console, disk)
        place = (places.deleted if deleted else places.find)(os.fsencode(path))
        if place is None:
            list_volumes(console, disk)
            return
        entries = _listed(console, place, recursive=recursive)
        if streams:
            entries = with_streams(console, place.fs, entries)
        if deleted and recursive:
            entries = only_deleted(entries)
        if console.json_mode:
            console.stream("entries", (place.row(each) for each in entries))
        else:
            for each in entries if recursive else sorted(entries, key=lambda entry: entry.name):
                name = place.shown(each) if recursive or each is place.entry else each.name
                if long:
                    console.write(_long_lead(console, each))
                write_entry(console, place, each, name, null=null, deleted=deleted)


def write_entry(
    console: Console, place: Place, entry: Entry, name: bytes, *, null: bool, deleted: bool
) -> None:
    """A name; with ``deleted`` behind how whole it is and its address, but for names that end in NUL."""
    if deleted and not null:
        console.write(whole_lead(place.fs, entry))
    write_name(console, name, b"\0" if null else b"\n")


def _listed(console: Console, place: Place, *, recursive: bool) -> Iterator[Entry]:
    if place.entry.type is not EntryType.DIRECTORY:
        return iter([place.entry])
    if recursive:
        return walk(place.fs, place.entry, onerror=lambda error: incomplete(console, error))
    return place.fs.children(place.entry)


def incomplete(console: Console, error: ImagefsError) -> None:
    """Something was left out: say so, go on, and end with exit code 3."""
    console.warn(error.message)
    console.exit_code = 3


def _long_lead(console: Console, entry: Entry) -> bytes:
    letters = TYPE_LETTERS[entry.type] + modes.filemode(entry.mode)[1:]
    when = time_text(entry.mtime_ns, console.zone)
    return f"{letters} {entry.nlink:>3} {entry.uid:>5} {entry.gid:>5} {entry.size:>12} {when} ".encode()


def list_volumes(console: Console, disk: DiskImage) -> None:
    """The volumes with label, file system, size, used and role, so that a user finds C:."""
    for finding in disk.table.findings:
        console.warn(finding.message)
    rows = listed_volumes(disk)
    if console.json_mode:
        console.stream("entries", rows)
        return
    width = max(8, *(len(row["path"]) + 1 for row in rows)) if rows else 8
    console.line(f"{'volume':<{width}}{'size':>11}{'used':>11}  {'file system':<12} {'label':<16} role")
    for row in rows:
        used = size_text(row["used"])
        label = quote(row["label"].encode()) if row["label"] else "-"
        size = size_text(row["size"])
        console.line(
            f"{row['path']:<{width}}{size:>11}{used:>11}  {row['filesystem'] or '-':<12} {label:<16} "
            f"{row['role'] or '-'}{', ' + quote(row['name'].encode()) if row['inside'] and row['name'] else ''}"
        )
    for row in rows:
        if row["message"] and (row["state"] != "open" or row["filesystem"] in ("raid", "ntfs", "apfs")):
            console.note(f"imagefs: {one_line(row['message'])}")


def listed_volumes(disk: DiskImage) -> list[dict[str, Any]]:
    facts = {row["id"]: row for row in volume_rows(disk)}
    if any(row["filesystem"] for row in facts.values()):
        prepare_worker()
    return [_volume_row(disk, volume, facts[volume.id]) for volume in disk.all_volumes]


def _volume_row(disk: DiskImage, volume: Volume, facts: dict[str, Any]) -> dict[str, Any]:
    used, label, kind = None, facts["label"], facts["filesystem"]
    container = disk.container(volume.id)
    # BitLocker To Go has a FAT for show
    holds_others = container is not None and not container.is_file_system
    if kind and not holds_others and not volume.moment:  # of which there may be hundreds, each to be opened
        try:
            fs = disk.filesystem(volume.id)
            used, label, kind = fs.used_bytes, fs.label or label, fs.kind
        except (BrowseError, IntegrityError):
            pass  # what cannot be opened is still listed, by what its first bytes say
    return {
        "path": f"/{volume.id}",
        "type": "directory",
        "size": volume.length,
        "mtime": facts.get("made"),
        "inode": "",
        "deleted": False,
        "used": used,
        "label": label,
        "filesystem": kind,
        "role": volume.role,
        "name": volume.name,
        "inside": volume.inside or None,
        "state": facts.get("state"),
        "message": facts.get("message"),
        "needs": facts.get("needs", []),
    }


# -- cat and stat ---------------------------------------------------------------------------------


@click.command()
@click.argument("image")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@inode_option
@fat_zone_option
@unlock_option
@common
def cat(console: Console, image: str, paths: tuple[str, ...], inodes: tuple[str, ...]) -> None:
    """Write the content of files in IMAGE to stdout."""
    catalog, found = choose_image(console, image, browse=True)
    with open_disk(catalog, found, console=console) as disk:
        for each in Places(console, disk).chosen(paths, inodes):
            write_content(console, each)


def write_content(console: Console, place: Place) -> None:
    """A file's bytes to stdout. Raises BrowseError before anything is written when it is no file."""
    if place.entry.type is not EntryType.FILE:
        shown = quote(place.shown(place.entry))
        raise BrowseError(f"{shown} is a {place.entry.type}, not a file", path=shown)
    content = place.fs.open(place.entry)
    tell_whole(console, place.fs, [(place.shown(place.entry), place.entry)])
    try:
        for offset in range(0, content.size, CAT_PIECE):
            console.write(content.read_at(offset, CAT_PIECE))
    finally:
        content.close()


@click.command()
@click.argument("image")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@inode_option
@fat_zone_option
@unlock_option
@common
def stat(console: Console, image: str, paths: tuple[str, ...], inodes: tuple[str, ...]) -> None:
    """Everything the file system says of files in IMAGE."""
    catalog, found = choose_image(console, image, browse=True)
    with open_disk(catalog, found, console=console) as disk:
        told = partial(incomplete, console)
        rows = [stat_row(console, each, onerror=told) for each in Places(console, disk).chosen(paths, inodes)]
    console.document({"entries": rows})
    for row in rows:
        for line in stat_lines(row):
            console.line(line)


def stat_row(console: Console, place: Place, *, onerror: OnError) -> dict[str, Any]:
    """All that is known of an entry; ``onerror`` hears why there is no more."""
    entry = place.entry
    row = place.row(entry) | {
        "nlink": entry.nlink,
        "atime": time_json(entry.atime_ns),
        "ctime": time_json(entry.ctime_ns),
        "crtime": time_json(entry.crtime_ns),
        "filesystem": place.fs.kind,
        "flags": list(entry.flags),
    }
    if entry.type is EntryType.SYMLINK and row.get("whole") != "unknown":
        row["target"] = place.fs.readlink(entry).decode("utf-8", "replace")
    if entry.rdev is not None:
        row["rdev"] = list(entry.rdev)
    try:
        return row | details(console, place.fs, entry)
    except BrowseError as error:  # the rest is worth having
        onerror(error)
        return row
