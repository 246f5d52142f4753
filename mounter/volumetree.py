"""One volume as the mount shows it: its file system, opened when first asked for, and its entries.

Pure: knows Readers and FileSystems, not FUSE, and nothing of where they come from.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from imagefs.errors import (
    BrowseError,
    FormatError,
    ImagefsError,
    IntegrityError,
    Locked,
    NotAFileSystem,
    PathNotFound,
    line_of,
)
from imagefs.interfaces import Entry, EntryType, FileSystem, ListsNames, Named, Reader
from mounter.entrycache import EntryCache

#: The kernel's FUSE_NAME_MAX; one longer name would make it refuse the whole folder.
NAME_MAX = 1024
#: So many folders are listed with all that is known of their entries before names alone are tried.
_IN_FULL = 8
#: The root of a volume that is opened later.
LATER = Entry(b"/", EntryType.DIRECTORY, 0, "later", mode=0o555)
_NO_NAMES = (b"", b".", b"..")


@dataclass(frozen=True, slots=True)
class VolumeSpec:
    """A volume to show: its id (``p1``), its bytes, and how to open the file system it may hold. One that is opened
    ``later`` is shown as a folder without a look, and opened when somebody enters it."""

    id: str
    reader: Reader
    open_filesystem: Callable[[], FileSystem]
    later: bool = False


class VolumeTree:
    """The entries of one volume. Safe to call from several threads; nothing opens before it is asked for."""

    def __init__(self, spec: VolumeSpec, slot: int, *, cache: EntryCache, log: Callable[[str], None]) -> None:
        self.spec = spec
        self.slot = slot
        self._cache = cache
        self._log = log
        self._lock = threading.Lock()
        self._filesystem: FileSystem | None = None
        self._lister: ListsNames | None = None
        self._root: Entry | None = None
        self._reason: str | None = None
        self._in_full = _IN_FULL

    def reason(self) -> str | None:
        """Why there is no tree to show, None when there is one. Opens the file system.

        What the bytes of the volume cause is remembered; what a store or a device causes may pass,
        and is tried again the next time.
        """
        with self._lock:
            if self._filesystem is not None or self._reason is not None:
                return self._reason
            try:
                self._open()
            except (BrowseError, FormatError, IntegrityError) as error:
                needed = error.hint if isinstance(error, NotAFileSystem | Locked) else ""
                self._reason = f"{error.message}; {needed}" if needed else error.message
                return self._reason
            except ImagefsError as error:
                self._log(line_of(error, self.spec.id))
                return error.message
            except Exception as error:  # a parser's bug costs one tree, not the whole mount
                self._log(line_of(error, self.spec.id))
                self._reason = f"its file system cannot be read ({type(error).__name__}: {error})"
                return self._reason
            return None

    def _open(self) -> None:
        filesystem = self.spec.open_filesystem()
        try:
            self._root = filesystem.root()
        except BaseException:
            filesystem.close()
            raise
        self._filesystem = filesystem
        self._lister = filesystem if isinstance(filesystem, ListsNames) else None

    @property
    def filesystem(self) -> FileSystem:
        """The open file system; PathNotFound where there is none."""
        reason = self.reason()
        if self._filesystem is None:
            raise PathNotFound(f"{self.spec.id} shows no files: {reason}")
        return self._filesystem

    def lookup(self, path: bytes) -> Entry:
        """The entry at ``path``, from memory where possible; PathNotFound if there is none."""
        if path == b"/" and self.spec.later:
            return LATER
        filesystem = self.filesystem
        if path == b"/" and self._root is not None:
            return self._root
        known, entry = self._cache.path(self.slot, path)
        if not known:
            known, entry = self._from_folder(path, case_insensitive=filesystem.case_insensitive)
        if not known:
            entry = _ask(filesystem, path)
            self._cache.keep_path(self.slot, path, entry)
        if entry is None:
            raise PathNotFound(f"no {path!r} in {self.spec.id}", path=path)
        return entry

    def _from_folder(self, path: bytes, *, case_insensitive: bool) -> tuple[bool, Entry | None]:
        parent, _, name = path.rpartition(b"/")
        _, above = self._cache.path(self.slot, parent or b"/")
        shown = above.path if above else parent or b"/"
        folder = self._cache.folder(self.slot, shown)
        if not name or folder is None:
            return False, None
        found = folder.find(name, case_insensitive=case_insensitive)
        if found is None and (b":" in name or b"~" in name or self._may_fold(name)):
            return False, None  # a named stream, a short name, another form of one: no folder lists those
        if not isinstance(found, Named):
            return True, found
        self._in_full = _IN_FULL
        for _ in self._list(self.lookup(shown), in_full=True):  # the others will be asked for next
            pass
        whole = self._cache.folder(self.slot, shown)
        found = whole.find(name, case_insensitive=case_insensitive) if whole else None
        return isinstance(found, Entry), found if isinstance(found, Entry) else None

    def _may_fold(self, name: bytes) -> bool:
        """Whether macOS may know a file by this name that has another one."""
        kind = self._filesystem.kind if self._filesystem is not None else ""
        return kind == "hfs" or (kind == "apfs" and not name.isascii())

    def children(self, entry: Entry) -> Iterator[tuple[bytes, Entry | Named]]:
        """Name and entry of all in a directory, as they come; a complete listing is remembered.

        After some folders of whose entries nothing more was asked, only names are listed; once
        more is asked of a file that was listed so, entries are whole again.
        """
        if entry is LATER:
            self.filesystem  # noqa: B018 (opened here)
            entry = self._root or entry
        folder = self._cache.folder(self.slot, entry.path)
        if folder is not None and (folder.in_full or self._in_full <= 0):
            return iter(folder.entries.items())
        self._in_full = max(0, self._in_full - 1)
        return self._list(entry, in_full=self._in_full > 0)

    def _list(self, entry: Entry, *, in_full: bool) -> Iterator[tuple[bytes, Entry | Named]]:
        """Names that no path could say (a slash, a NUL, too long) are left out with a log line: the
        kernel would refuse the whole folder for one of them."""
        filesystem, above = self.filesystem, entry.path.rstrip(b"/") + b"/"
        lister = None if in_full else self._lister
        limit, start, count = self._cache.largest_folder, len(above), 0
        seen: dict[bytes, Entry | Named] = {}
        for child in lister.names(entry) if lister else filesystem.children(entry):
            if type(child) is Named:
                name, right = child[0], True
            else:
                name, right = child[0][start:], child[0].startswith(above)
            if not right or not _can_be_named(name):
                self._log(f"{self.spec.id}: left out of {entry.path!r}: the name of {child[0][:2000]!r}")
                continue
            count += 1
            if count <= limit:
                seen[name] = child
            elif seen:
                seen = {}
            yield name, child
        if count <= limit:
            self._cache.keep_folder(self.slot, entry.path, seen)

    def close(self) -> None:
        with self._lock:
            if self._filesystem is not None:
                self._filesystem.close()
        self.spec.reader.close()


def _ask(filesystem: FileSystem, path: bytes) -> Entry | None:
    try:
        return filesystem.lookup(path)
    except PathNotFound:
        return None


def _can_be_named(name: bytes) -> bool:
    if b"/" in name or b"\0" in name or name in _NO_NAMES:
        return False
    return len(name) <= NAME_MAX
