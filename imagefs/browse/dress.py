"""Owner, extended attributes, mode and times of what was made. Never follows a symlink."""

from __future__ import annotations

import os
from collections.abc import Callable

from imagefs.browse.names import printable
from imagefs.browse.place import Folder
from imagefs.browse.taking import ExtractReport, shown
from imagefs.interfaces import Entry


class Dresser:
    """Gives files and folders what the image says of them; what cannot be given becomes a finding."""

    def __init__(
        self, report: ExtractReport, xattrs: Callable[[Entry], dict[bytes, bytes]], *, owners: bool
    ) -> None:
        self._report = report
        self._xattrs = xattrs
        self._owners = owners

    def file(self, entry: Entry, fd: int) -> None:
        """In this order: changing the owner clears setuid and capabilities. A setuid bit is never
        given to a file whose owner could not be restored."""
        bits = 0o7777 if self._owners and self._own(entry, fd) else 0o777
        self._set_xattrs(entry, fd)
        os.fchmod(fd, entry.mode & bits)
        if entry.mtime_ns is not None:
            os.utime(fd, ns=times_of(entry))

    def node(self, entry: Entry, folder: Folder, name: bytes, *, mode: int | None = None) -> None:
        """A symlink, or a device or pipe that gets ``mode``, lying at ``name``."""
        if self._owners:
            os.chown(name, entry.uid, entry.gid, dir_fd=folder.fd, follow_symlinks=False)
        self._set_xattrs(entry, b"/proc/self/fd/%d/%s" % (folder.fd, name))
        if mode is not None:
            os.chmod(name, mode, dir_fd=folder.fd)
        if entry.mtime_ns is not None:
            os.utime(name, ns=times_of(entry), dir_fd=folder.fd, follow_symlinks=False)

    def _own(self, entry: Entry, fd: int) -> bool:
        try:
            os.fchown(fd, entry.uid, entry.gid)
        except OSError as error:
            message = f"the owner of '{shown(entry)}' cannot be restored: {error.strerror}"
            self._report.tell(entry, "owner", message, "warning")
            return False
        return True

    def _set_xattrs(self, entry: Entry, where: int | bytes) -> None:
        for name, value in self._xattrs(entry).items():
            try:
                os.setxattr(where, name, value, follow_symlinks=isinstance(where, int))
            except (OSError, ValueError) as error:
                why = error.strerror if isinstance(error, OSError) else error
                message = f"the attribute {printable(name)} of '{shown(entry)}' cannot be restored: {why}"
                self._report.tell(entry, "xattr", message, "warning")


def times_of(entry: Entry) -> tuple[int, int]:
    """Access and modification time; only for an entry whose ``mtime_ns`` is known."""
    modified = entry.mtime_ns or 0
    return (modified if entry.atime_ns is None else entry.atime_ns), modified
