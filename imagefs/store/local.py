"""An ObjectStore in a folder.

An object is written to ``NAME.partial`` and appears under its name by link(2) (where the file system
has none, renameat2 with RENAME_NOREPLACE, else rename), after fsync, and before an fsync of the
folder. Files are 0600 while written and 0400 after, and belong to the owner of the folder.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

from imagefs.block.linux import start_writeback
from imagefs.block.views import clamp
from imagefs.errors import StoreError, StoreFull
from imagefs.interfaces import ObjectInfo

PARTIAL = ".partial"
LOCK_NAME = ".lock"
BUFFER = 1024 * 1024
#: What has been written so far is sent on its way to the disk each time so much has come together.
WRITEBACK = 16 * 1024 * 1024
#: Files that the readers of one store keep open: a chain may have more layers than a process may have files.
MAX_OPEN = 256
#: writev takes no more buffers at once (IOV_MAX).
MAX_PARTS = 1024
AT_FDCWD = -100
RENAME_NOREPLACE = 1
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL)
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class LocalStore:
    """Objects are the regular files of ``folder`` whose names end in ``suffix``.

    ``folder`` need not exist to be listed as empty; ``make`` makes it (0700), never its parents. Its readers
    have ``max_open`` files open at once, whatever their number.
    """

    def __init__(self, folder: str | Path, *, suffix: str = "", max_open: int = MAX_OPEN) -> None:
        self.folder = Path(folder)
        #: Where it is whatever becomes of the current directory: layers are opened when they are read.
        self._place = os.path.abspath(folder)
        self.suffix = suffix
        self._files = OpenFiles(max_open)

    @property
    def url(self) -> str:
        return os.fspath(self.folder)

    def make(self) -> None:
        """Make the last folder of the path; StoreError when its parent is not there."""
        parent = self.folder.parent
        if not self.folder.exists() and not parent.is_dir():
            raise StoreError(
                f"the folder {parent} does not exist, so the set {self.folder} cannot be made in it",
                hint="mount the medium or make the folder first",
                path=str(parent),
            )
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(self.folder, 0o700)
                _give(os.fspath(self.folder), like=parent)
        except OSError as error:
            raise _failed("make the set", self.folder, error) from error
        if not self.folder.is_dir():
            raise StoreError(f"{self.folder} is not a folder", hint="name a folder as the set")

    def list(self) -> Iterator[ObjectInfo]:
        return self._scan(self.suffix)

    def partials(self) -> Iterator[ObjectInfo]:
        return self._scan(self.suffix + PARTIAL)

    def open(self, name: str, /) -> LocalReader:
        return LocalReader(Path(self._place, self._path(name).name), self._files)

    def create(self, name: str, /) -> LocalWriter:
        path = self._path(name)
        if os.path.lexists(path):
            raise StoreError(
                f"{path} exists already", hint="imagefs never overwrites an image", path=str(path)
            )
        return LocalWriter(path, owner=self.folder)

    def open_partial(self, name: str, /) -> LocalReader:
        return LocalReader(self._path(name), self._files)

    def reopen(self, name: str, size: int, /) -> LocalWriter:
        path = self._path(name.removesuffix(PARTIAL))
        if os.path.lexists(path):
            raise StoreError(f"{path} is finished already", hint="remove the partial", path=str(path))
        return LocalWriter(path, owner=self.folder, keep=size)

    def delete(self, name: str, /) -> None:
        path = self._path(name)
        try:
            os.unlink(path)
            _sync_folder(self.folder)
        except OSError as error:
            raise _failed("delete", path, error) from error

    def write_text(self, name: str, text: str) -> None:
        """A note beside the objects, whole or not at all; it takes the place of an older one."""
        path = self._path(name)
        partial = path.with_name(f".{name}{PARTIAL}")
        try:
            fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            with open(fd, "wb") as out:
                _give(fd, like=self.folder)
                out.write(text.encode("utf-8", "replace"))
                out.flush()
                os.fsync(fd)
                os.fchmod(fd, 0o400)
            os.rename(partial, path)
            _sync_folder(self.folder)
        except OSError as error:
            raise _failed("write", path, error) from error

    def lock(self) -> LocalLock:
        return LocalLock(self.folder)

    def free_bytes(self) -> int | None:
        """Bytes that this user can still write here; None when the file system does not say."""
        try:
            facts = os.statvfs(self.folder)
        except OSError:
            return None
        return facts.f_bavail * facts.f_frsize if facts.f_blocks else None

    def _path(self, name: str) -> Path:
        if "/" in name or name in ("", ".", ".."):
            raise StoreError(f"{name!r} is not a name for an object", path=name)
        return self.folder / name

    def _scan(self, ending: str) -> Iterator[ObjectInfo]:
        try:
            with os.scandir(self.folder) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except FileNotFoundError:
            return
        except OSError as error:
            raise _failed("list", self.folder, error) from error
        for entry in entries:
            if not entry.name.endswith(ending) or entry.name.startswith("."):
                continue
            if entry.name.endswith(PARTIAL) and not ending:
                continue
            try:
                facts = entry.stat()
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.ELOOP):  # gone meanwhile, or a link to nowhere
                    continue
                raise _failed("list", Path(entry.path), error) from error
            if stat.S_ISREG(facts.st_mode):
                yield ObjectInfo(entry.name, facts.st_size, facts.st_mtime_ns, facts.st_ino)


class OpenFiles:
    """Keeps at most ``limit`` files of its readers open and closes what was read longest ago.

    A file is never closed while it is read; with more reads at once than ``limit`` there are more for a
    moment. Thread-safe; no lock is held while a file is opened or read.
    """

    def __init__(self, limit: int = MAX_OPEN) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._count = 0
        self._idle: OrderedDict[LocalReader, None] = OrderedDict()

    def take(self, reader: LocalReader) -> int:
        """The descriptor of ``reader``, to be given back. Raises OSError, StoreError."""
        with self._lock:
            if reader.fd >= 0:
                self._idle.pop(reader, None)
                reader.users += 1
                return reader.fd
            self._count += 1
            while self._count > self._limit and self._idle:
                self._close(self._idle.popitem(last=False)[0])
        try:
            fd = reader.open()
        except BaseException:
            with self._lock:
                self._count -= 1
            raise
        with self._lock:
            if reader.fd >= 0:  # another thread was quicker, and may be through with it already
                os.close(fd)
                self._count -= 1
                self._idle.pop(reader, None)
            else:
                reader.fd = fd
            reader.users += 1
            return reader.fd

    def give(self, reader: LocalReader) -> None:
        with self._lock:
            reader.users -= 1
            if reader.users:
                return
            if reader.closed or self._count > self._limit:
                self._close(reader)
            else:
                self._idle[reader] = None

    def close(self, reader: LocalReader) -> None:
        """For good; what reads it now ends first."""
        with self._lock:
            reader.closed = True
            if self._idle.pop(reader, self) is None:
                self._close(reader)

    def _close(self, reader: LocalReader) -> None:
        os.close(reader.fd)
        reader.fd = -1
        self._count -= 1


class LocalReader:
    """A finished object, or any image file, read with pread.

    ``files`` keeps its descriptor, may close it when it is not in use, and opens it again for the next read.
    ``fd``, ``users`` and ``closed`` are for ``files`` alone.
    """

    def __init__(self, path: str | Path, files: OpenFiles | None = None) -> None:
        self.path = Path(path)
        self.fd, self.users, self.closed = -1, 0, False
        self._files = files or OpenFiles()
        self._identity: tuple[int, ...] = ()
        try:
            facts = os.fstat(self._files.take(self))
        except OSError as error:
            raise _failed("open", self.path, error) from error
        self._files.give(self)
        self.size = facts.st_size
        self.mtime_ns = facts.st_mtime_ns

    def open(self) -> int:
        """A new descriptor of the same file as before; for ``files``."""
        # Without O_NONBLOCK a pipe of that name would wait for a writer.
        fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        facts = os.fstat(fd)
        identity = (facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns)
        if not stat.S_ISREG(facts.st_mode):
            os.close(fd)
            raise StoreError(f"{self.path} is not a regular file", path=str(self.path))
        if self._identity not in ((), identity):
            os.close(fd)
            raise StoreError(f"{self.path} was replaced while it was in use", path=str(self.path))
        self._identity = identity
        return fd

    def read_at(self, offset: int, length: int, /) -> bytes:
        count = clamp(self.size, offset, length)
        if self.closed:
            raise StoreError(f"{self.path} is closed")
        try:
            fd = self._files.take(self)
        except OSError as error:
            raise _failed("open", self.path, error) from error
        try:
            return self._read(fd, count, offset)
        except OSError as error:
            raise _failed("read", self.path, error) from error
        finally:
            self._files.give(self)

    def _read(self, fd: int, count: int, offset: int) -> bytes:
        data = os.pread(fd, count, offset)
        while len(data) < count:
            more = os.pread(fd, count - len(data), offset + len(data))
            if not more:
                raise StoreError(f"{self.path} became shorter while it was read", path=str(self.path))
            data += more
        return data

    def close(self) -> None:
        self._files.close(self)


class LocalWriter:
    """Appends to ``PATH.partial``; see the module's docstring for how it becomes ``PATH``.

    ``keep`` goes on with a partial that is there, behind so many bytes.
    """

    def __init__(self, path: Path, *, owner: Path, keep: int | None = None) -> None:
        self._path = path
        self._partial = path.with_name(path.name + PARTIAL)
        self._parts: list[bytes | memoryview] = []
        self._waiting = 0
        self._written = self._sent = keep or 0
        self._broken = False
        try:
            flags = os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW
            flags |= os.O_CREAT | os.O_EXCL if keep is None else 0
            self._fd = os.open(self._partial, flags, 0o600)
        except OSError as error:
            raise _failed("create", self._partial, error) from error
        try:
            # A lock on the file itself tells a listing that this partial is still being written.
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if keep is not None:
                os.ftruncate(self._fd, keep)
                os.lseek(self._fd, keep, os.SEEK_SET)
            _give(self._fd, like=owner)
        except OSError as error:
            if keep is None:
                self.abort()
            else:
                self._close()
            raise _failed("create" if keep is None else "go on with", self._partial, error) from error

    @property
    def position(self) -> int:
        return self._written + self._waiting

    def append(self, data: bytes | memoryview, /) -> None:
        self._check()
        self._parts.append(data)
        self._waiting += len(data)
        if self._waiting >= BUFFER or len(self._parts) >= MAX_PARTS:
            self._flush()

    def sync(self) -> None:
        self._check()
        self._flush()
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            self._broken = True
            raise _failed("write", self._path, error) from error

    def suspend(self) -> None:
        """Also after a failure: what reached the partial stays."""
        if self._fd >= 0:
            with contextlib.suppress(StoreError):
                self.sync()
            self._close()

    def commit(self) -> None:
        self._check()
        self._flush()
        try:
            os.fsync(self._fd)
            os.fchmod(self._fd, 0o400)
            _publish(self._partial, self._path)
            _sync_folder(self._path.parent)
        except FileExistsError as error:
            self._broken = True
            raise StoreError(f"{self._path} exists already", path=str(self._path)) from error
        except OSError as error:
            self._broken = True
            raise _failed("finish", self._path, error) from error
        self._close()

    def abort(self) -> None:
        if self._fd >= 0:
            self._close()
            with contextlib.suppress(OSError):
                os.unlink(self._partial)

    def _check(self) -> None:
        if self._broken or self._fd < 0:
            raise StoreError(f"{self._path} takes no more data after a failure", path=str(self._path))

    def _flush(self) -> None:
        try:
            while self._parts:
                count = os.writev(self._fd, self._parts)
                self._written += count
                self._waiting -= count
                # A short write is rare; what is left of it is joined and goes out next.
                self._parts = [b"".join(self._parts)[count:]] if self._waiting else []
        except OSError as error:
            self._broken = True
            raise _failed("write", self._path, error) from error
        if self._written - self._sent >= WRITEBACK:
            start_writeback(self._fd, self._sent, self._written - self._sent)
            self._sent = self._written

    def _close(self) -> None:
        os.close(self._fd)
        self._fd = -1


class LocalLock:
    """flock on ``.lock``: the kernel lets go of it when its holder dies."""

    def __init__(self, folder: Path) -> None:
        path = folder / LOCK_NAME
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise _failed("lock", folder, error) from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _give(self._fd, like=folder)
        except BlockingIOError as error:
            self.release()
            raise StoreError(
                f"another capture is at work in {folder}", hint="wait for it to end", path=str(folder)
            ) from error
        except OSError as error:
            self.release()
            raise _failed("lock", folder, error) from error

    def release(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _give(what: int | str, *, like: Path) -> None:
    """Give a file or folder the owner of ``like``, which only root can do and only root needs.

    File systems without owners, and shares that do not trust root, refuse; then it stays as it is.
    """
    if os.geteuid() == 0:
        facts = os.stat(like)
        with contextlib.suppress(PermissionError):
            os.chown(what, facts.st_uid, facts.st_gid)


def is_being_written(path: str | Path) -> bool:
    """True while a LocalWriter holds this partial file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False


def _publish(partial: Path, path: Path) -> None:
    """Give the finished file its name without ever replacing another."""
    try:
        os.link(partial, path, follow_symlinks=False)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        _rename_noreplace(partial, path)
    else:
        os.unlink(partial)


def _rename_noreplace(partial: Path, path: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    old, new = os.fsencode(partial), os.fsencode(path)
    if hasattr(libc, "renameat2"):
        if libc.renameat2(AT_FDCWD, old, AT_FDCWD, new, RENAME_NOREPLACE) == 0:
            return
        number = ctypes.get_errno()
        if number not in NO_LINKS:
            raise OSError(number, os.strerror(number), str(path))
    # The name holds the image's UUID, so nobody else can have taken it meanwhile.
    if path.exists():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    os.rename(partial, path)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        # Some network and FUSE file systems cannot sync a folder; the file itself is safe.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise
    finally:
        os.close(fd)


def _failed(verb: str, path: Path, error: OSError) -> StoreError:
    reason = os.strerror(error.errno) if error.errno else str(error)
    if error.errno in FULL:
        return StoreFull(
            f"no space left in {path.parent}", hint="free some space, or use another set", path=str(path)
        )
    hint = "run it with sudo, or as the owner" if error.errno in (errno.EACCES, errno.EPERM) else ""
    return StoreError(f"cannot {verb} {path}: {reason}", hint=hint, path=str(path), errno=error.errno)
