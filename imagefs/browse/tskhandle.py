"""One file system opened by The Sleuth Kit, used by one thread at a time. Never imports pytsk3.

What goes wrong below TSK, in our own ``Img_Info.read``, reaches us as a RuntimeError with a text, or
not at all where TSK goes on without it: the image keeps the original, and it is raised again here.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any, Protocol

from imagefs.browse.extinode import ExtInodes
from imagefs.browse.extxattr import ExtAttributes
from imagefs.browse.fatdentry import Dentries
from imagefs.browse.hfsplus import HfsPlus
from imagefs.browse.mft import Mft
from imagefs.errors import BrowseError
from imagefs.interfaces import Reader

#: What pytsk3 raises. SystemError: a NULL without an exception; OverflowError: a number past C's.
TSK_ERRORS = (OSError, RuntimeError, SystemError, ValueError, TypeError, OverflowError, MemoryError)


class Image(Protocol):
    """The ``Img_Info`` under the file system; ``error`` is what its last failed read raised."""

    error: BaseException | None


@dataclass(frozen=True, slots=True)
class Facts:
    """What does not change while the file system is open. ``ext`` (with ``xattrs``), ``fat``, ``mft`` and ``hfs``
    are set for these."""

    kind: str
    reader: Reader
    block_size: int
    root_inode: int
    ext: ExtInodes | None = None
    xattrs: ExtAttributes | None = None
    fat: Dentries | None = None
    mft: Mft | None = None
    hfs: HfsPlus | None = None


class Handle:
    """TSK's FS_Info behind a lock."""

    def __init__(self, image: Image, info: Any) -> None:
        self.image = image
        self.info: Any = info
        self.lock = threading.Lock()

    def hold(self, what: str) -> Hold:
        """TSK for the length of a ``with``: nothing that waits for others may be done inside.
        ``what`` names in errors what is being read."""
        return Hold(self, what)

    def check_open(self) -> None:
        """For what is read without TSK. Raises BrowseError after ``close``."""
        if self.info is None:
            raise BrowseError("the file system is closed")

    def close(self) -> None:
        with self.lock:
            self.info = None


class Hold:
    """``with`` gives the FS_Info, locked; at the end TSK's errors are made ours, and a read that
    failed below is raised even where TSK went on without it."""

    def __init__(self, handle: Handle, what: str) -> None:
        self._handle = handle
        self._what = what

    def __enter__(self) -> Any:
        handle = self._handle
        handle.lock.acquire()
        try:
            handle.check_open()
        except BrowseError:
            handle.lock.release()
            raise
        handle.image.error = None
        return handle.info

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        failed, self._handle.image.error = self._handle.image.error, None
        self._handle.lock.release()
        if failed is not None and (error is None or isinstance(error, TSK_ERRORS)):
            raise failed
        if isinstance(error, TSK_ERRORS):
            raise BrowseError(
                f"{self._what} cannot be read: {reason(error)}", hint="the file system is damaged there"
            ) from error


def reason(error: BaseException) -> str:
    """What TSK says, without the place in pytsk3 it comes from."""
    text = str(error)
    for mark in ("with error: ", "directory: ", "file: ", "error: "):
        if mark in text:
            text = text.split(mark, 1)[1]
            break
    return " ".join(text.split())[:200]
