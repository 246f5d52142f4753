"""Taking one mount away, and saying who keeps it when it is busy. Knows no FUSE library."""

from __future__ import annotations

import errno
import os
import time

from imagefs.errors import MountError
from mounter import mounttable
from mounter.holders import holders

_BUSY_TRIES, _BUSY_PAUSE = 5, 0.1


def detach(path: str, *, lazy: bool, mount: str = "") -> None:
    """Unmount ``path``; MountError naming its holders while it is busy, unless ``lazy``.

    A process that has just ended holds on for a moment, so a mount that nobody holds is tried again.
    ``mount`` is the mount of imagefs that it belongs to, itself if not given.
    """
    for remaining in reversed(range(_BUSY_TRIES)):
        try:
            mounttable.detach(path, lazy=lazy)
            return
        except OSError as error:
            if error.errno == errno.EINVAL and mounttable.find(path) is None:
                return  # somebody else was faster
            if error.errno != errno.EBUSY:
                raise MountError(f"cannot unmount {path}: {error.strerror}", path=path) from error
            using = holders(path)
            if using or not remaining:
                raise busy(path, using, mount or path) from error
        time.sleep(_BUSY_PAUSE)


def busy(path: str, using: list[str], mount: str) -> MountError:
    who = ", ".join(using[:10]) + (f" and {len(using) - 10} more" if len(using) > 10 else "")
    if not who:
        who = "a process that only root can see" if os.geteuid() != 0 else "something in the kernel"
    hint = f"end that first, or detach the mount with `imagefs umount --lazy {mount}`"
    return MountError(f"{path} is in use by {who}", hint=hint, path=path, holders=using)
