"""``imagefs://``: what is in an image, for everything that speaks fsspec (pandas, pyarrow, DuckDB …).

The conventions are those of ``fsspec.implementations.zip``: ``fo`` is what it is taken from, ``target_protocol`` and
``target_options`` how that is reached, and URLs chain: ``imagefs://p2/etc/fstab::file:///backups/set@latest~1``.
Contracts: ``fsspec.spec`` (AbstractFileSystem, AbstractBufferedFile), and its tests in ``fsspec.tests.abstract``.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, NoReturn

from fsspec import AbstractFileSystem, filesystem
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from fsspec.spec import AbstractBufferedFile
from fsspec.utils import tokenize

from imagefs.errors import ImagefsError, PathNotFound, UsageError
from imagefs.interfaces import Entry, EntryType, Reader
from imagefs.spec.opened import Choice, OpenedImage, choose_local, choose_remote, opened_image
from mounter.attributes import attributes_of

_TYPES = {EntryType.FILE: "file", EntryType.DIRECTORY: "directory", EntryType.SYMLINK: "link"}


@contextmanager
def _as_os_errors(path: object = None) -> Iterator[None]:
    """Our errors as those that callers of a file system look out for; the sentence stays."""
    shown = () if path is None else (os.fspath(path) if isinstance(path, os.PathLike) else str(path),)
    try:
        yield
    except PathNotFound as error:
        raise FileNotFoundError(errno.ENOENT, error.message, *shown) from error
    except UsageError as error:
        raise ValueError(_sentence(error)) from error
    except ImagefsError as error:
        raise OSError(errno.EIO, _sentence(error), *shown) from error


def _sentence(error: ImagefsError) -> str:
    return f"{error.message}; {error.hint}" if error.hint else error.message


class ImageFileSystem(AbstractFileSystem):  # type: ignore[misc]
    """The volumes of one image as folders ``p1``, ``p2``, …, read-only.

    ``fo`` is an image, a set (its newest image) or ``SET@latest~1``, as a local path or whatever ``target_protocol``
    and ``target_options`` reach. ``image`` chooses from a set as what follows ``@`` does, with or without the ``@``:
    ``latest~1``, an id, ``2026-11-17T14:00``. Symbolic links are followed as if each volume were mounted at ``/``.
    Names are Unicode, what is not in the image being surrogates (``os.fsdecode``). Instances are thread-safe, can be
    pickled (then they mean the same image for ever), and share open images.
    """

    protocol = "imagefs"
    root_marker = ""
    cachable = True

    def __init__(
        self,
        fo: str | os.PathLike[str] = "",
        target_protocol: str | None = None,
        target_options: dict[str, Any] | None = None,
        image: str = "",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not isinstance(fo, str | os.PathLike) or not os.fspath(fo):
            raise ValueError("imagefs:// needs to know the image: fo=…, or imagefs://p1/path::file:///set")
        self._more = kwargs
        self.fo, self.selector = os.fspath(fo), image.removeprefix("@")
        self.target_protocol, self.target_options = target_protocol, dict(target_options or {})
        if not target_protocol and "://" not in self.fo and "::" not in self.fo:
            self.fo = os.path.abspath(self.fo)  # wherever it may be unpickled
        self._opened = self._open_image()

    def _open_image(self) -> OpenedImage:
        """Also makes sure that the same image is found again, in a forked process or where this is unpickled."""
        with _as_os_errors(self.fo):
            choice = self._choose()
            opened = opened_image(choice)
        self.fo, self.selector = self.fo.removesuffix(choice.suffix), choice.selector
        return opened

    def _choose(self) -> Choice:
        if self.target_protocol:
            files = filesystem(self.target_protocol, **self.target_options)
            path = files._strip_protocol(self.fo)
        else:
            files, path = url_to_fs(self.fo, **self.target_options)
        if isinstance(files, LocalFileSystem):
            return choose_local(path, self.selector)
        return choose_remote(files, path, files.unstrip_protocol, self.selector)

    @property
    def opened(self) -> OpenedImage:
        """The image; opened again in a process that was forked."""
        if self._opened.process != os.getpid():
            self._opened = self._open_image()
        return self._opened

    @property
    def fsid(self) -> str:
        return f"imagefs_{self.opened.image.id}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ImageFileSystem) and self.fsid == other.fsid

    def __hash__(self) -> int:
        return hash(self.fsid)

    def __reduce__(self) -> Any:
        options = {"target_protocol": self.target_protocol, "target_options": self.target_options}
        return _make, (type(self), {"fo": self.fo, "image": self.selector, **options, **self._more})

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        """Paths are relative to the image, as those in an archive."""
        stripped = super()._strip_protocol(path)
        return stripped if isinstance(stripped, list) else stripped.lstrip("/")

    # -- looking -------------------------------------------------------------------------------------

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        """What lies at ``path``: of a symbolic link what it leads to, and ``islink`` and ``destination``."""
        path = self._strip_protocol(path)
        if "/" not in path:
            return self._volume_info(path)
        with _as_os_errors(path):
            system, own, entry = self.opened.find(os.fsencode(path))
            found = _described(path, entry)
            if own.type is EntryType.SYMLINK:
                found |= {"islink": True, "destination": os.fsdecode(system.readlink(own))}
            return found

    def _volume_info(self, path: str) -> dict[str, Any]:
        with _as_os_errors(path):
            volumes = self.opened.volumes()
        if path and path not in volumes:
            raise FileNotFoundError(errno.ENOENT, f"the image has no volume {path!r}", path)
        return {"name": path, "size": 0, "type": "directory", "islink": False}

    def ls(self, path: str, detail: bool = True, refresh: bool = False, **kwargs: Any) -> list[Any]:
        """Entries of a folder, links as links (``type`` is "link"); a file is listed as itself."""
        path = self._strip_protocol(path)
        with _as_os_errors(path):
            if refresh or not self._more.get("use_listings_cache", True):
                found = self._list(path)
            else:
                found = self.opened.listings.get(path, lambda: self._list(path))
        return list(found) if detail else [each["name"] for each in found]

    def _list(self, path: str) -> list[dict[str, Any]]:
        if not path:
            return [self._volume_info(name) for name in self.opened.volumes()]
        system, _, entry = self.opened.find(os.fsencode(path))
        if entry.type is not EntryType.DIRECTORY:
            return [self.info(path)]
        found = []
        for child in system.children(entry):
            each = _described(f"{path}/{os.fsdecode(child.name)}", child)
            if each["islink"]:
                each["destination"] = os.fsdecode(system.readlink(child))
            found.append(each)
        return found

    def created(self, path: str) -> datetime:
        return self._time(path, "created")

    def modified(self, path: str) -> datetime:
        return self._time(path, "mtime")

    def _time(self, path: str, name: str) -> datetime:
        seconds = self.info(path).get(name)
        if seconds is None:
            raise NotImplementedError(f"the file system does not keep that time of {path}")
        return datetime.fromtimestamp(seconds, tz=UTC)

    def ukey(self, path: str) -> str:
        """Changes with the image, as two may hold files of one size and time."""
        return str(tokenize(self.fsid, self.info(path)))

    def checksum(self, path: str) -> int:
        return int(self.ukey(path), 16)

    # -- reading -------------------------------------------------------------------------------------

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> ImageFile:
        if mode != "rb":
            self._refuse()
        return ImageFile(self, path, **kwargs)

    def reader(self, path: str) -> Reader:
        """The content of a file as imagefs' own kind of reader, for as long as this file system lives; close it."""
        with _as_os_errors(path):
            system, _, entry = self.opened.find(os.fsencode(self._strip_protocol(path)))
            if entry.type is EntryType.DIRECTORY:
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
            return system.open(entry)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        reader = self.reader(path)
        try:
            return _part(reader, start, end, path)
        finally:
            reader.close()

    def cat_ranges(
        self,
        paths: list[str],
        starts: int | list[int | None] | None,
        ends: int | list[int | None] | None,
        max_gap: int | None = None,
        on_error: str = "return",
        **kwargs: Any,
    ) -> list[Any]:
        """Each file is opened once, however many ranges of it are asked for. ``max_gap`` would gain nothing."""
        if not isinstance(paths, list):
            raise TypeError("paths must be a list")
        all_starts = starts if isinstance(starts, list) else [starts] * len(paths)
        all_ends = ends if isinstance(ends, list) else [ends] * len(paths)
        if not len(paths) == len(all_starts) == len(all_ends):
            raise ValueError("paths, starts and ends must be equally many")
        readers: dict[str, Reader] = {}
        found: list[Any] = []
        try:
            for path, start, end in zip(paths, all_starts, all_ends, strict=True):
                try:
                    if path not in readers:
                        readers[path] = self.reader(path)
                    found.append(_part(readers[path], start, end, path))
                except Exception as error:
                    if on_error != "return":
                        raise
                    found.append(error)
        finally:
            for reader in readers.values():
                reader.close()
        return found

    # -- what an image does not allow ----------------------------------------------------------------

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError("an image cannot be changed: imagefs:// is read-only")

    mkdir = makedirs = rmdir = rm = rm_file = _rm = cp_file = mv = touch = pipe_file = put_file = _refuse


class ImageFile(AbstractBufferedFile):  # type: ignore[misc]
    """A file of an image, seekable and buffered as ``cache_type`` and ``block_size`` say."""

    #: Chunks of the image are kept below anyway; this is for those who read by the line.
    DEFAULT_BLOCK_SIZE = 1 << 20

    def __init__(self, fs: ImageFileSystem, path: str, **kwargs: Any) -> None:
        self._reader = fs.reader(path)
        kwargs.pop("size", None)  # which one that is unpickled says
        super().__init__(fs, path, mode="rb", size=self._reader.size, **kwargs)

    def _fetch_range(self, start: int, end: int) -> bytes:
        return _part(self._reader, start, end, self.path)

    def close(self) -> None:
        if not self.closed:
            self._reader.close()
        super().close()


def _make(kind: type[ImageFileSystem], options: dict[str, Any]) -> ImageFileSystem:
    return kind(**options)


def _part(reader: Reader, start: int | None, end: int | None, path: str) -> bytes:
    """Bytes as a slice has them: negative numbers count from the end."""
    first, stop, _ = slice(start, end).indices(reader.size)
    with _as_os_errors(path):
        return reader.read_at(first, max(0, stop - first))


def _described(path: str, entry: Entry) -> dict[str, Any]:
    """What ``info`` and ``ls`` say, in the words of ``fsspec.implementations.local``; unknown times are None."""
    facts = attributes_of(entry, 0)
    return {
        "name": path,
        "size": entry.size,
        "type": _TYPES.get(entry.type, "other"),
        "created": _seconds(entry.crtime_ns),
        "islink": entry.type is EntryType.SYMLINK,
        "mode": facts.mode,
        "uid": entry.uid,
        "gid": entry.gid,
        "mtime": _seconds(entry.mtime_ns),
        "ino": entry.inode,
        "nlink": entry.nlink,
    }


def _seconds(time_ns: int | None) -> float | None:
    return None if time_ns is None else time_ns / 10**9
