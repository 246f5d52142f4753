"""Which errno the kernel hears for which of our errors. Knows no FUSE and does no I/O."""

from __future__ import annotations

import errno

from imagefs.errors import PathNotFound, TargetError

#: What a writer can do something about is told as it is.
_OUT_OF_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def errno_of(error: BaseException) -> int:
    """The errno that answers ``error``: ENOENT for a missing path, its own for an OSError, a lack of
    room for what an overlay could not take, else EIO.

    EIO is also the answer to a plain bug: a reader of the mount must never take it for "no data".
    """
    if isinstance(error, PathNotFound):
        return errno.ENOENT
    if isinstance(error, OSError) and error.errno:
        return error.errno
    if isinstance(error, TargetError) and error.data.get("errno") in _OUT_OF_ROOM:
        return int(str(error.data["errno"]))
    return errno.EIO
