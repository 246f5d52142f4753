"""APFS through libfsapfs: the only module that knows pyfsapfs, which is an extra (``imagefs[apfs]``).

A container with one volume shows that volume's tree; with several, each is a folder of its name. Volumes
as they are now, not their snapshots; an encrypted one is refused. The library is called by one thread at
a time; what it says of damage becomes BrowseError. pyproject.toml names the one version that was held
against the records on the disk: it gives the times of creation and of modification for each other.
"""

from __future__ import annotations

import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from imagefs.block.views import LibraryFile
from imagefs.browse.content import FetchReader
from imagefs.browse.listing import Listings
from imagefs.browse.names import join, printable, repeated, safe_name, shown_name
from imagefs.errors import BrowseError, NotAFileSystem, PathNotFound
from imagefs.interfaces import Entry, EntryType, Place, Reader, Stream

#: What the library itself makes use of, or what is given as a stream.
_FORK = "com.apple.ResourceFork"
_INTERNAL = frozenset({_FORK, "com.apple.decmpfs", "com.apple.fs.symlink"})
_RSRC = b"rsrc"
_MAX_VALUE, _MAX_ATTRIBUTES, _MAX_VOLUMES = 16 << 20, 1 << 16, 100
_SPARSE = 1
_LIBRARY_ERRORS = (OSError, ValueError, MemoryError, OverflowError, RuntimeError)


class _At(NamedTuple):
    """A file: the number of its volume, and its number there; no volume: the list of volumes."""

    volume: int | None
    file: int


def open_apfs(reader: Reader) -> ApfsFileSystem:
    """The APFS on ``reader``, which stays the caller's; NotAFileSystem says what is in the way."""
    if reader.read_at(32, 4) != b"NXSB":
        raise NotAFileSystem("the volume is not APFS")
    try:
        import pyfsapfs
    except ImportError as error:
        raise NotAFileSystem(
            "the volume is APFS, for which libfsapfs-python is not installed",
            hint="install it with `make install EXTRAS=apfs`, or `pip install 'imagefs[apfs]'`",
        ) from error
    file, container = LibraryFile(reader), pyfsapfs.container()
    try:
        container.open_file_object(file)
        volumes = [container.get_volume(i) for i in range(min(container.number_of_volumes, _MAX_VOLUMES))]
        names = [str(volume.name or "") for volume in volumes]
    except _LIBRARY_ERRORS as error:
        if file.error is not None:
            raise file.error from None
        said = f"the volume seems to be APFS, which cannot be opened ({_said(error)})"
        raise NotAFileSystem(said, hint="the file system is damaged") from error
    if not volumes:
        raise NotAFileSystem("the APFS container has no volume")
    return ApfsFileSystem(file, container, volumes, names)


class ApfsFileSystem:
    """A FileSystem with attributes, and with resource forks as streams called ``rsrc``."""

    kind = "apfs"
    case_insensitive = False
    used_bytes = None

    def __init__(self, file: LibraryFile, container: Any, volumes: list[Any], names: list[str]) -> None:
        self.label = names[0] if len(names) == 1 else ""
        self._file = file
        self._container: Any = container
        self._volumes = volumes
        self._names = [name.encode("utf-8", "surrogatepass") for name in names]
        self._lock = threading.Lock()
        self._listings = Listings(self._scan, case_insensitive=False, readlink=self.readlink)

    def root(self) -> Entry:
        if len(self._volumes) > 1:
            return Entry(b"/", EntryType.DIRECTORY, 0, "0", mode=0o755)
        return self._top(0, b"/")

    def _top(self, volume: int, path: bytes) -> Entry:
        with self._asking(path):
            if self._volumes[volume].is_locked():
                raise _encrypted(self._names[volume])
            return self._entry(path, volume, self._volumes[volume].root_directory)

    def lookup(self, path: bytes, /) -> Entry:
        return self._listings.lookup(self.root(), path)

    def children(self, entry: Entry, /) -> Iterator[Entry]:
        return self._listings.children(entry)

    def open(self, entry: Entry, /) -> Reader:
        if entry.type is not EntryType.FILE:
            raise BrowseError(f"'{printable(entry.path)}' is not a file but a {entry.type}", path=entry.path)
        with self._asking(entry.path):
            return self._content(entry, self._get(entry))

    def readlink(self, entry: Entry, /) -> bytes:
        if entry.type is not EntryType.SYMLINK:
            raise BrowseError(f"'{printable(entry.path)}' is not a symbolic link", path=entry.path)
        with self._asking(entry.path):
            target = self._get(entry).symbolic_link_target
        if not target:
            raise _broken(entry.path, "it has no target")
        return str(target).encode("utf-8", "surrogatepass")

    def places(self, entry: Entry, /) -> list[Place]:
        if entry.type is not EntryType.FILE:
            return []
        with self._asking(entry.path):
            file = self._get(entry)
            extents = [file.get_extent(i) for i in range(file.number_of_extents)]
        return [Place(b"", at, at + length) for at, length, flags in extents if not flags & _SPARSE]

    def xattrs(self, entry: Entry, /) -> dict[bytes, bytes]:
        """macOS knows no name spaces; on Linux all of them are the user's."""
        if self._is_list(entry):
            return {}
        found = {}
        with self._asking(entry.path):
            for each in self._attributes(self._get(entry)):
                if each.name in _INTERNAL:
                    continue
                size = int(each.size)
                if size > _MAX_VALUE:
                    raise _broken(entry.path, f"its attribute {each.name} has {size} bytes")
                value = each.read_buffer_at_offset(size, 0) if size else b""
                if len(value) != size:
                    raise _broken(entry.path, f"its attribute {each.name} is cut off")
                found[b"user." + each.name.encode("utf-8", "surrogatepass")] = value
        return found

    def streams(self, entry: Entry, /) -> list[Stream]:
        if self._is_list(entry):
            return []
        with self._asking(entry.path):
            found = self._attributes(self._get(entry))
            return [Stream(_RSRC, int(each.size)) for each in found if each.name == _FORK]

    def open_stream(self, entry: Entry, name: bytes, /) -> Reader:
        if name == _RSRC and not self._is_list(entry):
            with self._asking(entry.path):
                for each in self._attributes(self._get(entry)):
                    if each.name == _FORK:
                        return self._content(entry, each)
        shown = printable(entry.path + b":" + name)
        raise PathNotFound(f"there is no '{shown}'", path=entry.path)

    def close(self) -> None:
        with self._lock:
            self._container, self._volumes = None, []
        self._listings.clear()

    # -- the library, under its lock -----------------------------------------------------------------

    @contextmanager
    def _asking(self, path: bytes) -> Iterator[None]:
        with self._lock:
            if self._container is None:
                raise BrowseError("the file system is closed")
            self._file.error = None
            try:
                yield
            except _LIBRARY_ERRORS as error:
                if self._file.error is not None:
                    raise self._file.error from None
                raise _broken(path, _said(error)) from error

    def _is_list(self, entry: Entry) -> bool:
        return _address(entry).volume is None

    def _get(self, entry: Entry) -> Any:
        at = _address(entry)
        if at.volume is None or at.volume >= len(self._volumes):
            raise PathNotFound(f"there is no file {entry.inode}", path=entry.path)
        if self._volumes[at.volume].is_locked():
            raise _encrypted(self._names[at.volume])
        found = self._volumes[at.volume].get_file_entry_by_identifier(at.file)
        if found is None:
            raise _broken(entry.path, f"there is no file {at.file}")
        return found

    @staticmethod
    def _attributes(file: Any) -> list[Any]:
        found = file.extended_attributes
        return [found[i] for i in range(min(len(found), _MAX_ATTRIBUTES))]

    def _content(self, entry: Entry, source: Any) -> FetchReader:
        def fetch(offset: int, length: int) -> bytes:
            with self._asking(entry.path):
                return bytes(source.read_buffer_at_offset(length, offset))

        return FetchReader(int(source.size), fetch, label=printable(entry.path))

    def _scan(self, directory: Entry) -> Iterator[Entry]:
        if self._is_list(directory):
            yield from self._tops()
            return
        at = _address(directory)
        with self._asking(directory.path):
            files = self._get(directory).sub_file_entries
            found = [self._named(at.volume or 0, files, i) for i in range(len(files))]
        yield from _told_apart(directory.path, found)

    def _named(self, volume: int, files: Any, number: int) -> Entry:
        file = files[number]
        name = safe_name(str(file.name or "").encode("utf-8", "surrogatepass"))
        return self._entry(b"/" + name, volume, file)

    def _tops(self) -> Iterator[Entry]:
        """The volumes; one that is encrypted is there, and says so when it is opened."""
        found = []
        for number, name in enumerate(self._names):
            path = b"/" + safe_name(name)
            try:
                top = self._top(number, path)
            except BrowseError:
                top = Entry(path, EntryType.DIRECTORY, 0, f"{number}-2", flags=("encrypted",))
            found.append(top)
        yield from _told_apart(b"/", found)

    def _entry(self, path: bytes, volume: int, file: Any) -> Entry:
        mode = int(file.file_mode or 0)
        kind = EntryType.of_mode(mode)
        several = len(self._volumes) > 1
        target = file.symbolic_link_target if kind is EntryType.SYMLINK else None
        return Entry(
            path,
            kind,
            len(target.encode("utf-8", "surrogatepass")) if target else int(file.size or 0),
            f"{volume}-{file.identifier}" if several else str(file.identifier),
            mode=stat.S_IMODE(mode),
            uid=int(file.owner_identifier or 0),
            gid=int(file.group_identifier or 0),
            nlink=1 if kind is EntryType.DIRECTORY else int(file.number_of_links or 1),
            # Taken from each other: the library names the two as they do not lie in a j_inode_val.
            mtime_ns=file.get_creation_time_as_integer(),
            atime_ns=file.get_access_time_as_integer(),
            ctime_ns=file.get_inode_change_time_as_integer(),
            crtime_ns=file.get_modification_time_as_integer(),
            rdev=file.device_number if kind is EntryType.DEVICE else None,
        )


def _address(entry: Entry) -> _At:
    volume, _, file = entry.inode.rpartition("-")
    try:
        number = int(file)
        return _At(None if not volume and number == 0 else int(volume or 0), number)
    except ValueError:
        raise PathNotFound(f"there is no file {entry.inode}", path=entry.path) from None


def _told_apart(parent: bytes, entries: list[Entry]) -> Iterator[Entry]:
    names = [entry.name for entry in entries]
    twice, taken = repeated(names), frozenset(names)
    for entry in entries:
        name = shown_name(entry.name, entry.inode, twice=twice, taken=taken)
        yield entry._replace(path=join(parent, name))


def _encrypted(name: bytes) -> BrowseError:
    return BrowseError(
        f"the APFS volume '{printable(name)}' is encrypted",
        hint="mount the image and open its pN.raw with a tool that asks for the password",
    )


def _said(error: BaseException) -> str:
    """The cause, which the library puts last in a chain of sentences."""
    parts = [part.strip() for part in str(error).split(". ") if part.strip()]
    return parts[-1].rpartition(": ")[2].rstrip(".") if parts else type(error).__name__


def _broken(path: bytes, why: str) -> BrowseError:
    return BrowseError(
        f"'{printable(path)}' cannot be read: {why}", hint="the file system is damaged there", path=path
    )
