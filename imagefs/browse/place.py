"""Making files in a folder of this machine without ever leaving it: what extraction writes through.

Every call names one part of a path relative to an open folder and follows no symlink, so nothing that
was extracted before can redirect what is extracted next. A file gets its name when it is whole: it is
written without a name (O_TMPFILE) where the target can do that, else beside it as ``.NAME.imagefs.partial``.
This module knows nothing of file systems inside images.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from imagefs.block.sysfs import HOST, number_of
from imagefs.browse.names import printable
from imagefs.browse.targetnames import NAME_MAX, NameRules, holds_windows_names, same_key
from imagefs.errors import TargetError

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_NEW_FILE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_UNNAMED = os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC
_SUFFIX = b".imagefs.partial"
#: Errors of the target that every further file would meet too.
_FATAL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENODEV})
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EACCES, errno.EINVAL})
#: Errors that another name would not meet.
_NAME_ERRORS = frozenset({errno.EINVAL, errno.EILSEQ, errno.ENAMETOOLONG})


class Refused(Exception):
    """One name cannot be made; ``code`` says why (``exists``, ``collision``, ``name``, ``target``, ``verify``)."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def check_name(name: bytes) -> None:
    """Refuse what is not exactly one part of a path."""
    if name in (b"", b".", b"..") or b"/" in name or b"\0" in name:
        raise Refused("name", f"the name '{printable(name)}' cannot be used outside the image")


@dataclass(frozen=True, slots=True)
class Traits:
    """What a target can do. ``unnamed``: files without a name. ``stale``: what a killed run left
    beside a name may be removed."""

    rules: NameRules
    unnamed: bool
    stale: bool


def traits_of(fd: int, *, windows: bool | None, stale: bool) -> Traits:
    """Look at the file system of a folder; ``windows`` None means: decide by its type."""
    if windows is None:
        number = number_of(os.fstat(fd).st_dev)
        windows = any(holds_windows_names(mount.fstype) for mount in HOST.mounts() if mount.number == number)
    limit = os.fstatvfs(fd).f_namemax or NAME_MAX
    return Traits(NameRules(windows, limit), _makes_unnamed(fd), stale)


def _makes_unnamed(fd: int) -> bool:
    """Whether a file can be made without a name here and be named afterwards: tried."""
    beside = b"." + secrets.token_hex(6).encode() + _SUFFIX
    try:
        made = os.open(b".", _UNNAMED, 0o600, dir_fd=fd)
    except OSError:
        return False
    try:
        _name_unnamed(made, beside, fd)
        os.unlink(beside, dir_fd=fd)
    except OSError:
        return False
    finally:
        os.close(made)
    return True


def _name_unnamed(made: int, name: bytes, folder: int) -> None:
    os.link(b"/proc/self/fd/%d" % made, name, dst_dir_fd=folder, follow_symlinks=True)


class Folder:
    """An open folder. It remembers the names this run made in it, by ``same_key``: on a target without
    case the second of two names that differ in case only must not replace the first.

    ``path`` is its path as the user named it (empty: the current one), ``fresh`` says that this run made it.
    """

    def __init__(self, fd: int, path: bytes, traits: Traits, *, fresh: bool = False) -> None:
        self.fd = fd
        self.path = path
        self.fresh = fresh
        self.traits = traits
        self._made: set[bytes] = set()

    @classmethod
    def open(cls, path: bytes, *, windows: bool | None = None, stale: bool = False) -> Folder:
        """A folder of the user's own choice; symlinks on the way to it are theirs and are followed."""
        try:
            fd = os.open(path or b".", _FOLDER)
            return cls(fd, path, traits_of(fd, windows=windows, stale=stale))
        except OSError as error:
            raise TargetError(
                f"the folder '{printable(path or b'.')}' cannot be opened: {error.strerror}",
                hint="make it first, or choose another",
                path=path,
            ) from error

    def close(self) -> None:
        with suppress(OSError):
            os.close(self.fd)

    @property
    def shown(self) -> str:
        return printable(self.path or b".")

    def path_of(self, name: bytes) -> bytes:
        return os.path.join(self.path, name)

    def choose(self, name: bytes, inode: str, *, sure: Callable[[], None] = lambda: None) -> bytes:
        """The name to make ``name`` under: itself, or what the target can hold, or with ``~<inode>`` where
        something that this run made is in the way. ``sure`` has what was claimed made, before it is looked for."""
        check_name(name)
        fitted = self.traits.rules.fit(name, inode)
        if self._is_mine(fitted, sure):
            fitted = self.traits.rules.distinct(fitted, inode)
            if self._is_mine(fitted, sure):
                raise self._taken(fitted)
        return fitted

    def _is_mine(self, name: bytes, sure: Callable[[], None]) -> bool:
        if same_key(name) not in self._made:
            return False
        sure()
        return self.exists(name)

    def claim(self, name: bytes) -> None:
        """``name`` is this run's now."""
        self._made.add(same_key(name))

    def subfolder(self, name: bytes) -> Folder:
        """The folder ``name`` in here. An existing one is gone into, a symlink never."""
        check_name(name)
        fresh = False
        with self._errors(name):
            try:
                os.mkdir(name, 0o700, dir_fd=self.fd)
                fresh = True
            except FileExistsError:
                pass
            try:
                fd = os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=self.fd)
            except OSError as error:
                if error.errno in (errno.ENOTDIR, errno.ELOOP):
                    raise self._taken(name) from error
                raise
        self.claim(name)
        return Folder(fd, self.path_of(name), self.traits, fresh=fresh)

    @contextmanager
    def inside(self, parts: tuple[bytes, ...]) -> Iterator[Folder | None]:
        """The folder some steps down, no symlink on the way; None where it is no longer there."""
        fd = os.dup(self.fd)
        try:
            for part in parts:
                below = os.open(part, _FOLDER | os.O_NOFOLLOW, dir_fd=fd)
                os.close(fd)
                fd = below
            found: Folder | None = Folder(fd, os.path.join(self.path, *parts), self.traits)
        except OSError:
            found = None
        try:
            yield found
        finally:
            os.close(fd)

    def exists(self, name: bytes) -> bool:
        return self.status(name) is not None

    def status(self, name: bytes) -> os.stat_result | None:
        """What lies at ``name``, symlinks themselves; None where nothing does."""
        try:
            return os.lstat(name, dir_fd=self.fd)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ):
                return None
            with self._errors(name):
                raise

    def open_file(self, name: bytes) -> int:
        """A regular file of this folder to read from."""
        with self._errors(name):
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self.fd)
        if stat.S_ISREG(os.fstat(fd).st_mode):
            return fd
        os.close(fd)
        raise self._taken(name)

    @contextmanager
    def new_file(self, name: bytes, *, overwrite: bool) -> Iterator[int]:
        """A file descriptor to write to. It gets its name when the block ends well, else it is gone."""
        self.check_free(name, overwrite=overwrite)
        beside = None if self.traits.unnamed else self._beside(name)
        with self._errors(name):
            if beside is None:
                fd = os.open(b".", _UNNAMED, 0o600, dir_fd=self.fd)
            else:
                fd = os.open(beside, _NEW_FILE, 0o600, dir_fd=self.fd)
        try:
            with self._errors(name):
                try:
                    yield fd
                    if beside is None:
                        self._name(fd, name, overwrite=overwrite)
                finally:
                    os.close(fd)
                if beside is not None:
                    self._put(beside, name, overwrite=overwrite)
        except BaseException:
            if beside is not None:
                self._remove(beside)
            raise

    @contextmanager
    def new_node(self, name: bytes, *, overwrite: bool) -> Iterator[bytes]:
        """A name beside ``name`` for the caller to make something under (symlink, device, hard link)."""
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
        if self.fresh and same_key(name) not in self._made:
            return  # nobody else's names are in here, and what came in meanwhile is not replaced either
        if self.exists(name) and (not overwrite or same_key(name) in self._made):
            raise self._taken(name)

    def free_bytes(self) -> int:
        info = os.fstatvfs(self.fd)
        return info.f_bavail * info.f_frsize

    def _name(self, fd: int, name: bytes, *, overwrite: bool) -> None:
        """Give the unnamed file its name, replacing nothing unless asked to."""
        try:
            _name_unnamed(fd, name, self.fd)
        except FileExistsError as error:
            if not overwrite:
                raise self._taken(name) from error
            beside = self._beside(name)
            _name_unnamed(fd, beside, self.fd)
            try:
                os.rename(beside, name, src_dir_fd=self.fd, dst_dir_fd=self.fd)
            except OSError:
                self._remove(beside)
                raise
        self.claim(name)

    def _put(self, beside: bytes, name: bytes, *, overwrite: bool) -> None:
        """Give what lies at ``beside`` its name, replacing nothing unless asked to."""
        if overwrite:
            os.rename(beside, name, src_dir_fd=self.fd, dst_dir_fd=self.fd)
        else:
            self._put_new(beside, name)
        self.claim(name)

    def _put_new(self, beside: bytes, name: bytes) -> None:
        try:
            os.link(beside, name, src_dir_fd=self.fd, dst_dir_fd=self.fd, follow_symlinks=False)
        except OSError as error:
            if error.errno == errno.EEXIST:
                raise self._taken(name) from error
            if error.errno not in _NO_LINKS:
                raise
            if self.exists(name):  # no hard links here: as close as it gets
                raise self._taken(name) from error
            os.rename(beside, name, src_dir_fd=self.fd, dst_dir_fd=self.fd)
            return
        self._remove(beside)

    def _remove(self, name: bytes) -> None:
        with suppress(OSError):
            os.unlink(name, dir_fd=self.fd)

    def _beside(self, name: bytes) -> bytes:
        """``.name.imagefs.partial``, or with something random in it where that is taken, too long or a name that
        this run makes, perhaps in another process."""
        beside = b"." + name + _SUFFIX
        if len(beside) <= self.traits.rules.limit and same_key(beside) not in self._made:
            there = self.status(beside)
            if there is not None and self.traits.stale:
                self._remove(beside)
                there = self.status(beside)
            if there is None:
                return beside
        random = b"." + secrets.token_hex(6).encode() + _SUFFIX
        return b"." + name[: self.traits.rules.limit - len(random) - 1] + random

    def _taken(self, name: bytes) -> Refused:
        shown = printable(self.path_of(name))
        if same_key(name) in self._made:
            return Refused("collision", f"'{shown}' was made a moment ago for another name of the image")
        return Refused("exists", f"'{shown}' exists already")

    @contextmanager
    def _errors(self, name: bytes) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            shown = printable(self.path_of(name))
            if error.errno in _FATAL:
                hint = "make room there, or choose another folder" if error.errno != errno.EROFS else ""
                raise TargetError(f"'{shown}' cannot be written: {error.strerror}", hint=hint) from error
            more = "; --names windows changes such names" if error.errno in _NAME_ERRORS else ""
            raise Refused("target", f"'{shown}' cannot be made: {error.strerror}{more}") from error
        except ValueError as error:
            raise Refused("name", f"'{printable(self.path_of(name))}' cannot be made: {error}") from error
