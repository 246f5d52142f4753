"""The composition root: turns what a user typed into stores, catalogs, disks and file systems."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, tzinfo
from pathlib import Path
from typing import TYPE_CHECKING

from imagefs.block.readahead import ReadAhead
from imagefs.block.views import MarkedReader, RefusingReader
from imagefs.cli.console import Console, cache_folder, default_set
from imagefs.cli.text import age_text, time_text
from imagefs.cli.unlock import secrets_of
from imagefs.errors import BrowseError, FormatError, NotAFileSystem, StoreError, UsageError
from imagefs.image.catalog import SUFFIX, Catalog, ImageInfo, read_info, scan
from imagefs.image.select import select
from imagefs.interfaces import FileSystem, Reader, State
from imagefs.store import CacheFolder, LocalStore

if TYPE_CHECKING:
    from imagefs.image.shared import Shared
    from imagefs.ops.diskimage import DiskImage
    from imagefs.ops.innervolumes import Secret

#: How a set is looked at: ``look_at``, or ``scan`` where nothing remembered will do.
Look = Callable[[LocalStore], Catalog]
#: A partition, a volume inside another, a shadow copy: ``p3``, ``p3.1``, ``p2@20261117T020004Z``.
VOLUME = re.compile(rb"p0*(\d{1,6})((?:\.\d{1,6}){0,8})(@\d{8}T\d{6}Z(?:~\d{1,4})?)?", re.IGNORECASE)


def open_set(text: str) -> LocalStore:
    """The store of an existing set. Raises StoreError."""
    folder = Path(text)
    if not folder.is_dir():
        there = "is not a folder" if folder.exists() else "does not exist"
        raise StoreError(f"the set {text} {there}", hint="name the folder your images are in", path=text)
    return LocalStore(folder, suffix=SUFFIX)


def look_at(store: LocalStore) -> Catalog:
    """What the set holds, with what is remembered of it in the user's cache folder."""
    return scan(store, cache=CacheFolder(cache_folder()), place=os.path.realpath(store.url))


def find_image(
    text: str, *, zone: tzinfo | None = None, look: Look = look_at
) -> tuple[Catalog, ImageInfo, bool]:
    """(its set, the image, whether it was chosen rather than named) for an IMAGE on the command line."""
    path = Path(text)
    if path.is_dir():
        return *_chosen(look(open_set(text)), "", zone), True
    if path.exists():
        return *_named(path, look), False
    folder, at, selector = text.rpartition("@")
    if at:
        return *_chosen(look(open_set(folder)), selector, zone), True
    raise StoreError(f"{text} does not exist", hint="name an image file, a set, or SET@latest", path=text)


def choose_image(
    console: Console,
    text: str | None,
    *,
    look: Look = look_at,
    note: Callable[[str], None] | None = None,
    browse: bool = False,
) -> tuple[Catalog, ImageInfo]:
    """The image a command is to work on; one that was chosen by time or order is named on stderr, or to ``note``.

    Nothing, or a text that begins with @, means the set of ``IMAGEFS_SET``. ``browse``: its file systems will be
    asked for, so the process that reads them starts now.
    """
    if browse:
        prepare_worker()
    if not text or text.startswith("@"):
        text = default_set() + (text or "")
    catalog, info, chosen = find_image(text, zone=console.zone, look=look)
    if chosen:
        age = age_text(info.created, time.time_ns())
        tell = note or console.note
        tell(f"imagefs: {info.name}, of {time_text(info.created, console.zone)}, {age}")
    return catalog, info


def prepare_worker() -> None:
    """Start the process that reads file systems, for who opens one soon."""
    from imagefs.browse.workers import prepare

    with contextlib.suppress(BrowseError):  # who needs it will hear of it
        prepare()


def parse_volume(text: str) -> str:
    """``2`` or ``P2`` → ``p2``; also ``p3.1`` and shadow copies. Raises UsageError."""
    found = _volume_id(
        text.encode("utf-8", "replace") if text[:1] in "pP" else b"p" + text.encode("utf-8", "replace")
    )
    if found is None:
        raise UsageError(f"{text!r} is not a volume", hint="write 2 or p2, p3.1 for a volume inside p3")
    return found


def _volume_id(text: bytes) -> str | None:
    match = VOLUME.fullmatch(text)
    if match is None:
        return None
    return f"p{match[1].decode()}{match[2].decode()}{(match[3] or b'').decode().upper()}"


def _chosen(catalog: Catalog, selector: str, zone: tzinfo | None) -> tuple[Catalog, ImageInfo]:
    if not catalog.images and catalog.damaged:
        raise catalog.damaged[0][1]
    return catalog, select(catalog.images, selector, zone=zone)


def _named(path: Path, look: Look) -> tuple[Catalog, ImageInfo]:
    """An image by its file, whatever its name is; its relatives are looked for beside it."""
    if path.name.endswith(".partial"):
        raise FormatError(
            f"{path} is an unfinished capture, not an image", hint="delete it when no capture is running"
        )
    store = LocalStore(path.parent, suffix=SUFFIX)
    info = read_info(store, path.name)
    catalog = look(store)
    others = tuple(other for other in catalog.images if other.uuid != info.uuid)
    images = tuple(sorted((*others, info), key=lambda each: (each.created, each.name)))
    return replace(catalog, images=images), info


def open_disk(
    catalog: Catalog,
    info: ImageInfo,
    *,
    console: Console | None = None,
    fat_zone: tzinfo = UTC,
    shared: Shared | None = None,
) -> DiskImage:
    """The virtual disk of ``info`` with its volumes and file systems, as the options of ``console`` say, or with
    ``fat_zone`` as ``open_filesystem`` has it.

    ``shared`` is what it has in common with other disks of the set that are open.
    """
    from imagefs.ops.diskimage import DiskImage  # `list` does not need it

    image = DiskImage(catalog.open_disk(info, shared=shared), info, other=open_by_kernel)
    image.fat_zone = fat_zone
    if console is not None:
        image.fat_zone = console.fat_zone
        image.waiting = console.waiting
        image.unlock(secrets_of(console.unlocks))
    return image


def open_point(
    console: Console,
    catalog: Catalog,
    info: ImageInfo,
    *,
    secrets: Mapping[str, Secret],
    shared: Shared,
) -> DiskImage:
    """One of several images that are looked at together: what ``secrets`` do not open in it stays locked."""
    image = open_disk(catalog, info, console=console, shared=shared)
    image.unlock(secrets, lenient=True)
    return image


def open_by_kernel(reader: Reader, refused: NotAFileSystem) -> FileSystem:
    """What only the kernel can read; loaded when something is refused."""
    from mounter import kernel

    return kernel.open_by_kernel(reader, refused)


def shown_disk(image: DiskImage, *, unreadable: str) -> Reader:
    """The disk as mount and nbd show it, its volumes too; sectors that were ``unreadable`` give ``zeros`` or
    ``eio``."""
    from imagefs.cli.facts import unreadable_ranges  # with all that tells of an image

    lost = unreadable_ranges(image)
    first, end = [row["offset"] for row in lost], [row["offset"] + row["length"] for row in lost]
    reader: Reader = ReadAhead(image.disk)
    if unreadable == "eio":
        reader = RefusingReader(reader, first, end, "could not be read from the source")
    elif lost:
        reader = MarkedReader(reader, first, end, State.UNREADABLE)
    image.read_through(reader)
    return reader


def open_image(path: str | os.PathLike[str]) -> DiskImage:
    """What ``imagefs.open`` does: an IMAGE as on the command line, opened."""
    catalog, info, _ = find_image(os.fspath(path))
    return open_disk(catalog, info)


def split_path(path: bytes) -> tuple[str | None, bytes]:
    """``/p2/etc/fstab`` → (``p2``, ``/etc/fstab``); ``/`` → (None, ``/``). Raises UsageError."""
    if b"\\" in path and b"/" not in path:
        shown = path.replace(b"\\", b"/").decode("utf-8", "replace")
        raise UsageError("paths in an image are written with /", hint=f"did you mean {shown}")
    parts = [part for part in path.split(b"/") if part not in (b"", b".")]
    if not parts:
        return None, b"/"
    volume = _volume_id(parts[0])
    if volume is None:
        shown = path.decode("utf-8", "replace")
        raise UsageError(
            f"{shown} does not begin with a volume", hint="write /p2/…; `imagefs ls IMAGE` lists the volumes"
        )
    if b".." in parts:
        raise UsageError("a path in an image cannot have ..", hint="write the whole path")
    return volume, b"/" + b"/".join(parts[1:])
