"""Every error imagefs raises on purpose. Errors carry data; the sentences are made in ``cli/``.

::

    ImagefsError                    exit  what it says
    ├── UsageError                    2   the request makes no sense
    ├── SourceError                  10   a source cannot be read, or is not what was asked for
    ├── TargetError                  11   a target cannot be written, or must not be
    ├── FormatError                  20   not an image, or one this version cannot read
    ├── IntegrityError               21   bytes that fail their check
    ├── ChainError                   22   a parent is missing or not the one sealed; an image is needed
    ├── StoreError                   30   the set cannot be read or written
    │   └── StoreFull                30   no space left in the set
    ├── AllocationError              20   a map of used blocks that cannot be relied on: captured whole instead
    ├── BrowseError                  40   a volume, file system or path that cannot be opened
    │   ├── PathNotFound             40
    │   ├── NotAFileSystem           40
    │   └── Locked                   40   an encrypted volume, and no secret that opens it
    ├── MountError                   50   FUSE said no
    └── ServeError                   50   the disk cannot be served over NBD, or no machine booted from it
"""

from __future__ import annotations


class ImagefsError(Exception):
    """Base of all errors raised on purpose.

    ``message`` is one plain sentence without a full stop that names the thing; ``hint`` is the way
    out, empty when there is none. Any other keyword becomes part of ``data``, which ``--json``
    prints: ``image``, ``chunk``, ``offset``, ``length``, ``path`` …
    """

    exit_code = 1
    code = "error"

    def __init__(self, message: str, *, hint: str = "", **data: object) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.data = data


class UsageError(ImagefsError):
    exit_code = 2
    code = "usage"


class SourceError(ImagefsError):
    exit_code = 10
    code = "source"


class TargetError(ImagefsError):
    exit_code = 11
    code = "target"


class FormatError(ImagefsError):
    exit_code = 20
    code = "format"


class IntegrityError(ImagefsError):
    exit_code = 21
    code = "integrity"


class ChainError(ImagefsError):
    exit_code = 22
    code = "chain"


class StoreError(ImagefsError):
    exit_code = 30
    code = "store"


class StoreFull(StoreError):
    code = "store-full"


class AllocationError(ImagefsError):
    exit_code = 20
    code = "allocation"


class BrowseError(ImagefsError):
    exit_code = 40
    code = "browse"


class PathNotFound(BrowseError):
    code = "path-not-found"


class NotAFileSystem(BrowseError):
    code = "not-a-file-system"


class Locked(BrowseError):
    code = "locked"


class MountError(ImagefsError):
    exit_code = 50
    code = "mount"


class ServeError(ImagefsError):
    exit_code = 50
    code = "serve"


#: Exit codes from mildest to worst; of several failures in one run the last one listed wins.
EXIT_ORDER = (0, 3, 4, 22, 21, 20, 40, 50, 30, 11, 10, 1)


def worst_exit(codes: list[int]) -> int:
    """The exit code of a run in which every one of ``codes`` happened; 0 for none."""
    return max(codes, key=lambda code: EXIT_ORDER.index(code) if code in EXIT_ORDER else 99, default=0)


def line_of(error: BaseException, where: str) -> str:
    """One log line about ``error``: what was asked for, what happened, and the numbers it carries."""
    if not isinstance(error, ImagefsError):
        return f"{where}: {type(error).__name__}: {error}"
    facts = " ".join(f"{key}={value}" for key, value in error.data.items() if value is not None)
    return f"{where}: {error.code}: {error.message}" + (f" [{facts}]" if facts else "")
