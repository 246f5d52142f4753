"""The images that file systems of this process have open: one for all that want the same point of the same set.

fsspec makes an instance for every thread, and for every time one is unpickled; each would have its own disk, caches
and worker processes otherwise. Knows nothing of fsspec: what is not a local path is a ``RemoteFiles``.
"""

from __future__ import annotations

import atexit
import errno
import os
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from imagefs.block.cache import BlockCache
from imagefs.browse.crew import Crew
from imagefs.cli.wiring import find_image, open_disk, split_path
from imagefs.errors import PathNotFound, StoreError, UsageError
from imagefs.image.catalog import SUFFIX, Catalog, ImageInfo, read_info, scan
from imagefs.image.select import select
from imagefs.image.shared import Shared
from imagefs.interfaces import Entry, EntryType, FileSystem
from imagefs.ops.diskimage import DiskImage
from imagefs.store.remote import RemoteFiles, RemoteStore

#: Entries of folders whose listings are kept of one image; each is some 1,000 bytes.
KEPT_ENTRIES = 65_536
#: As many as Linux follows.
MAX_LINKS = 40


@dataclass(frozen=True, slots=True)
class Choice:
    """An image of a set. ``suffix`` is what of its name only chose it (``@latest``), and ``selector`` finds the very
    same again, also when newer ones have come; both are empty for an image that is named itself."""

    catalog: Catalog
    info: ImageInfo
    suffix: str = ""
    selector: str = ""


class OpenedImage:
    """An image that is open; closed when nobody refers to it any more, or this process ends."""

    def __init__(self, image: DiskImage, shared: Shared) -> None:
        self.image = image
        self.process = os.getpid()
        self._shared = shared  # lives as long as one of its images
        self._lock = threading.Lock()
        self._filesystems: dict[str, FileSystem] = {}
        #: Whole folders as ``ls`` tells of them, by path. What is in an image never changes.
        self.listings: BlockCache[str, list[dict[str, Any]]] = BlockCache(
            KEPT_ENTRIES, lambda rows: len(rows) + 1
        )
        weakref.finalize(self, image.close).atexit = False  # a forked process must not end our workers

    def volumes(self) -> list[str]:
        """Their ids, those inside others too."""
        return [volume.id for volume in self.image.all_volumes]

    def filesystem(self, volume: str) -> FileSystem:
        """The file system of a volume, opened when it is first asked for. Raises BrowseError."""
        with self._lock:
            found = self._filesystems.get(volume)
            if found is None:
                found = self._filesystems[volume] = self.image.filesystem(volume)
            return found

    def find(self, path: bytes) -> tuple[FileSystem, Entry, Entry]:
        """What lies at ``p2/etc/fstab``, itself and through symbolic links. PathNotFound; OSError for links
        without end."""
        try:
            volume, inside = split_path(path)
        except UsageError as error:
            raise PathNotFound(error.message, hint=error.hint) from error
        if volume is None or volume not in self.volumes():
            raise PathNotFound(f"the image has no {os.fsdecode(path)!r}")
        filesystem = self.filesystem(volume)
        return filesystem, *follow(filesystem, inside)


def follow(filesystem: FileSystem, path: bytes) -> tuple[Entry, Entry]:
    """The entry at ``path`` (behind links in its folders) and where that leads to, every symbolic link followed
    as if the volume were mounted at ``/``."""
    try:
        own = filesystem.lookup(path)
    except PathNotFound:  # or it lies behind a link
        own = None
    if own is not None and own.type is not EntryType.SYMLINK:
        return own, own
    entry, links, left = filesystem.root(), 0, path.split(b"/")[::-1]
    while left:
        part = left.pop()
        if part == b"..":
            entry = filesystem.lookup(os.path.dirname(entry.path))
        if part in (b"", b".", b".."):
            continue
        found = filesystem.lookup(entry.path.rstrip(b"/") + b"/" + part)
        if found.type is not EntryType.SYMLINK:
            entry = found
            continue
        links += 1
        if links > MAX_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), os.fsdecode(path))
        target = filesystem.readlink(found)
        left += target.split(b"/")[::-1]
        entry = filesystem.root() if target.startswith(b"/") else entry
    return own or entry, entry


class _Process:
    """What this process has open."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.images: weakref.WeakValueDictionary[tuple[str, bytes], OpenedImage] = (
            weakref.WeakValueDictionary()
        )
        self.shared: weakref.WeakValueDictionary[str, Shared] = weakref.WeakValueDictionary()
        self.crew = Crew()

    def close(self) -> None:
        for opened in list(self.images.values()):
            opened.image.close()


_process = _Process()
#: What a forked process has of the one before it: neither used nor ended, as its workers are not ours.
_inherited: list[object] = []


def _begin_anew() -> None:
    global _process
    _inherited.append((list(_process.images.values()), _process))
    _process = _Process()


os.register_at_fork(after_in_child=_begin_anew)
atexit.register(lambda: _process.close())


def opened_image(choice: Choice) -> OpenedImage:
    """The image of ``choice``, which may be open already. Raises what opening a disk does."""
    key = choice.catalog.store.url, choice.info.tail.seal
    with _process.lock:
        opened = _process.images.get(key)
        if opened is None:
            shared = _process.shared.get(key[0]) or Shared()
            _process.shared[key[0]] = shared
            image = open_disk(choice.catalog, choice.info, shared=shared)
            image.crew = _process.crew
            opened = _process.images[key] = OpenedImage(image, shared)
        return opened


def choose_local(place: str, selector: str) -> Choice:
    """An image by its path, or by a set with or without ``@…`` behind it; ``selector`` as in ``SET@selector``."""
    path, at, inside = place.rpartition("@")
    if not os.path.exists(place) and not (at and os.path.exists(path)):
        raise FileNotFoundError(errno.ENOENT, f"{place} does not exist", place)
    if selector and not os.path.isdir(place):
        raise _nothing_to_choose(place)
    catalog, info, chosen = find_image(f"{place}@{selector}" if selector else place)
    if not chosen:
        return Choice(catalog, info)
    return Choice(catalog, info, "" if os.path.isdir(place) else f"@{inside}", info.id)


def choose_remote(files: RemoteFiles, path: str, url: Callable[[str], str], selector: str) -> Choice:
    """The same of a place that is not local; a path that ends in ``.imagefs`` is one image."""
    if path.endswith(SUFFIX):
        if selector:
            raise _nothing_to_choose(path)
        return _one_image(files, path, url)
    folder, at, inside = path.rpartition("@")
    if not at or "/" in inside:
        folder, inside = path, ""
    catalog = scan(RemoteStore(files, folder, url=url(folder), suffix=SUFFIX))
    if not catalog.images:
        if catalog.damaged:
            raise catalog.damaged[0][1]
        raise FileNotFoundError(errno.ENOENT, f"{url(folder)} holds no images", path)
    info = select(catalog.images, selector or inside)
    return Choice(catalog, info, path[len(folder) :], info.id)


def _nothing_to_choose(place: str) -> UsageError:
    return UsageError(f"{place} is not a set, of which an image could be chosen", hint="leave image= out")


def _one_image(files: RemoteFiles, path: str, url: Callable[[str], str]) -> Choice:
    """An image by its name; its relatives are looked for beside it, where that can be listed."""
    folder, _, name = path.rpartition("/")
    store = RemoteStore(files, folder, url=url(folder), suffix=SUFFIX)
    info = read_info(store, name)
    catalog = Catalog(store, (info,), (), ())
    if info.header.parent is not None:
        with suppress(StoreError):
            catalog = scan(store)
    others = [each for each in catalog.images if each.uuid != info.uuid]
    images = sorted((*others, info), key=lambda each: (each.created, each.name))
    return Choice(replace(catalog, images=tuple(images)), info)
