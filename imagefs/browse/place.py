"""Making files in a folder of this machine without ever leaving it: what extraction writes through.

Every call names one part of a path relative to an open folder and follows no symlink, so nothing that
was extracted before can redirect what is extracted next. A file is written beside its name and put
in place when it is whole. This module knows nothing of file systems inside images.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from imagefs.browse.names import fold, printable
from imagefs.errors import TargetError

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NAME_MAX = 255
#: Errors of the target that every further file would meet too.
_FATAL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENODEV})
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EACCES, errno.EINVAL})


class Refused(Exception):
    """One name cannot be made; ``code`` says why (``exists``, ``collision``, ``name``, ``target``)."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def check_name(name: bytes) -> None:
    """Refuse what is not exactly one part of a path."""
    if name in (b"", b".", b"..") or b"/" in name or b"\0" in name:
        raise Refused("name", f"the name '{printable(name)}' cannot be used outside the image")


class Folder:
    """An open folder. ``made`` remembers the names this run made in it, folded: on a target without
    case the second of two names that differ in case only must not replace the first."""

    def __init__(self, fd: int, shown: str) -> None:
        self.fd = fd
        self.shown = shown
        self._made: set[bytes] = set()

    @classmethod
    def open(cls, path: bytes) -> Folder:
        """A folder of the user's own choice; symlinks on the way to it are theirs and are followed."""
        try:
            return cls(os.open(path or b".", _FOLDER), printable(path or b"."))
        except OSError as error:
            raise TargetError(
                f"the folder '{printable(path or b'.')}' cannot be opened: {error.strerror}",
                hint="make it first, or choose another",
                path=path,
            ) from error

    def close(self) -> None:
        with suppress(OSError):
            os.close(self.fd)

    def subfolder(self, name: bytes) -> tuple[Folder, bool]:
        """The folder ``name`` in here, and whether it was made now. An existing one is gone into,
        a symlink never."""
        check_name(name)
        fresh = not self.exists(name)
        if not fresh and fold(name) in self._made:
            raise self._taken(name)
        with self._errors(name):
            if fresh:
                os.mkdir(name, 0o700, dir_fd=self.fd)
            try:
                fd = os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=self.fd)
            except OSError as error:
                if error.errno in (errno.ENOTDIR, errno.ELOOP):
                    raise self._taken(name) from error
                raise
        self._made.add(fold(name))
        return Folder(fd, f"{self.shown.rstrip('/')}/{printable(name)}"), fresh

    def exists(self, name: bytes) -> bool:
        try:
            os.lstat(name, dir_fd=self.fd)
        except OSError as error:
            return error.errno not in (errno.ENOENT, errno.ENAMETOOLONG)
        return True

    @contextmanager
    def new_file(self, name: bytes, *, overwrite: bool) -> Iterator[int]:
        """A file descriptor to write to. It gets its name when the block ends well, else it is gone."""
        self.check_free(name, overwrite=overwrite)
        beside = self._beside(name)
        with self._errors(name):
            fd = os.open(beside, _NEW_FILE, 0o600, dir_fd=self.fd)
        try:
            with self._errors(name):
                try:
                    yield fd
                finally:
                    os.close(fd)
                self._put(beside, name, overwrite=overwrite)
        except BaseException:
            self._remove(beside)
            raise

    @contextmanager
    def new_node(self, name: bytes, *, overwrite: bool) -> Iterator[bytes]:
        """A name beside ``name`` for the caller to make something under (symlink, device)."""
        self.check_free(name, overwrite=overwrite)
        beside = self._beside(name)
        try:
            with self._errors(name):
                yield beside
                self._put(beside, name, overwrite=overwrite)
        except BaseException:
            self._remove(beside)
            raise

    def check_free(self, name: bytes, *, overwrite: bool) -> None:
        check_name(name)
        if not self.exists(name):
            return
        if not overwrite or fold(name) in self._made:
            raise self._taken(name)

    def free_bytes(self) -> int:
        stat = os.fstatvfs(self.fd)
        return stat.f_bavail * stat.f_frsize

    def _put(self, beside: bytes, name: bytes, *, overwrite: bool) -> None:
        """Give what lies at ``beside`` its name, replacing nothing unless asked to."""
        if overwrite:
            os.rename(beside, name, src_dir_fd=self.fd, dst_dir_fd=self.fd)
        else:
            self._put_new(beside, name)
        self._made.add(fold(name))

    def _put_new(self, beside: bytes, name: bytes) -> None:
        try:
            os.link(beside, name, src_dir_fd=self.fd, dst_dir_fd=self.fd, follow_symlinks=False)
        except OSError as error:
            if error.errno == errno.EEXIST:
                raise self._taken(name) from error
            if error.errno not in _NO_LINKS:
                raise
            self.check_free(name, overwrite=False)  # no hard links here: as close as it gets
            os.rename(beside, name, src_dir_fd=self.fd, dst_dir_fd=self.fd)
            return
        self._remove(beside)

    def _remove(self, name: bytes) -> None:
        with suppress(OSError):
            os.unlink(name, dir_fd=self.fd)

    def _beside(self, name: bytes) -> bytes:
        """``.name.partial``, or with something random in it where that is taken or too long."""
        beside = b"." + name + b".partial"
        if len(beside) > _NAME_MAX or self.exists(beside):
            beside = b"." + name[:200] + b"." + secrets.token_hex(6).encode() + b".partial"
        return beside

    def _taken(self, name: bytes) -> Refused:
        shown = f"{self.shown.rstrip('/')}/{printable(name)}"
        if fold(name) in self._made:
            return Refused("collision", f"'{shown}' was made a moment ago for another name of the image")
        return Refused("exists", f"'{shown}' exists already")

    @contextmanager
    def _errors(self, name: bytes) -> Iterator[None]:
        shown = f"{self.shown.rstrip('/')}/{printable(name)}"
        try:
            yield
        except OSError as error:
            if error.errno in _FATAL:
                hint = "make room there, or choose another folder" if error.errno != errno.EROFS else ""
                raise TargetError(f"'{shown}' cannot be written: {error.strerror}", hint=hint) from error
            raise Refused("target", f"'{shown}' cannot be made: {error.strerror}") from error
        except ValueError as error:
            raise Refused("name", f"'{shown}' cannot be made: {error}") from error
