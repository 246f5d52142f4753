"""A file that is written under another name first and takes its own when it is complete."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat

from imagefs.errors import TargetError

_MODE = 0o600  # a disk's bytes are for its owner, until he says otherwise
_NAME_BYTES = 255 - len("..partial")


class FinalName:
    """The way of one file from ``.NAME.partial`` to ``NAME``, both in one folder.

    ``real`` is the final path without symbolic links, ``shown`` what the user called it. The
    unfinished file is locked, so that two cannot write to one name; what a kill leaves of it is
    taken over by the next. A file that is replaced leaves its mode and owner.
    """

    def __init__(self, real: str, shown: str, *, overwrite: bool) -> None:
        self._real = os.fsencode(real)
        self._folder, name = os.path.split(self._real)
        self._partial = os.path.join(self._folder, b"." + name[:_NAME_BYTES] + b".partial")
        self._shown = shown
        self._overwrite = overwrite
        self._held = False

    def open(self) -> int:
        """The unfinished file: empty, locked, for reading and writing."""
        try:
            self._clear_way()
            fd = os.open(self._partial, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, _MODE)
        except OSError as error:
            raise self._failed("cannot be made", error) from error
        try:
            self._claim(fd)
            os.ftruncate(fd, 0)
            self._dress(fd)
        except OSError as error:
            os.close(fd)
            raise self._failed("cannot be made", error) from error
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _clear_way(self) -> None:
        """Take away a name that is not a file of its own: a link, or the finished file's second
        name (left by a kill in the middle of ``_link``). Truncating it would hit the other."""
        with contextlib.suppress(FileNotFoundError):
            info = os.lstat(self._partial)
            if not stat.S_ISREG(info.st_mode) or info.st_nlink > 1:
                os.unlink(self._partial)

    def _claim(self, fd: int) -> None:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise self._taken() from error
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS, errno.EINVAL):
                raise
            # a file system without locks: two writers at once are then the user's own look-out
        if not _same_file(self._partial, fd):
            raise self._taken()  # another writer finished between our open and our lock
        self._held = True

    def _taken(self) -> TargetError:
        said = f"{self._shown} is being written by another imagefs"
        return TargetError(said, hint="wait for it, or name another target", path=self._shown)

    def _dress(self, fd: int) -> None:
        """Mode and owner of the file that is replaced; a new one belongs to its folder's owner."""
        try:
            old = os.stat(self._real)
            mode = stat.S_IMODE(old.st_mode) & 0o777
        except FileNotFoundError:
            old, mode = os.stat(self._folder), _MODE
        with contextlib.suppress(OSError):  # FAT and some shares know no owners and modes
            if os.geteuid() == 0:
                os.fchown(fd, old.st_uid, old.st_gid)
            os.fchmod(fd, mode)

    def take(self) -> None:
        """Give the complete and synced file its name, for good."""
        if not self._held:
            return
        try:
            if self._overwrite:
                os.replace(self._partial, self._real)
            else:
                self._link()
            self._held = False
            _sync_folder(self._folder)
        except OSError as error:
            raise self._failed("cannot be given its name", error) from error

    def _link(self) -> None:
        """Rename without replacing a file that came up meanwhile."""
        try:
            os.link(self._partial, self._real)
        except FileExistsError as error:
            said = f"{self._shown} appeared while it was being written"
            raise TargetError(said, hint="add --yes if it may go", path=self._shown) from error
        except OSError:  # no hard links here (FAT, some shares)
            if os.path.lexists(self._real):
                raise
            os.replace(self._partial, self._real)
            return
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._partial)

    def abandon(self) -> None:
        """Leave nothing behind of a file that was not finished."""
        if self._held:
            self._held = False
            with contextlib.suppress(OSError):  # else the next writer takes it over
                os.unlink(self._partial)

    def _failed(self, what: str, error: OSError) -> TargetError:
        hint = "run it with sudo" if error.errno in (errno.EACCES, errno.EPERM) else ""
        said = f"{self._shown} {what}: {os.strerror(error.errno or 0)}"
        return TargetError(said, hint=hint, path=self._shown, errno=error.errno)


def _same_file(path: bytes, fd: int) -> bool:
    try:
        there, ours = os.lstat(path), os.fstat(fd)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)


def _sync_folder(folder: bytes) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
    finally:
        os.close(fd)
