"""Ending a mount from outside, and listing those there are. Knows no FUSE library."""

from __future__ import annotations

import errno
import os
import select
import time
from pathlib import Path

from imagefs.errors import MountError
from mounter import mounttable
from mounter.holders import holders
from mounter.mountpoint import clear_stale, forget, remove_made
from mounter.state import MountRecord, MountStates

_BUSY_TRIES, _BUSY_PAUSE = 5, 0.1
_END_SECONDS, _LAZY_SECONDS = 30.0, 1.0


def list_mounts(state_dir: Path) -> list[MountRecord]:
    """The mounts recorded in ``state_dir``, oldest first; records of mounts that are gone are swept.

    A mount whose process was killed is listed (its ``alive()`` is False) until it is unmounted.
    """
    states = MountStates(state_dir)
    mounted = {entry.directory for entry in mounttable.mounts() if entry.is_ours}
    found = []
    for record in states.all():
        if record.directory in mounted:
            found.append(record)
        else:
            forget(record.directory, states)
    return sorted(found, key=lambda record: record.since_ns)


def unmount(directory: str, *, lazy: bool = False, state_dir: Path | None = None) -> None:
    """Unmount, and come back when the process that served it has ended and DIR is as it was.

    MountError if DIR is no mount of ours, or is in use (naming by whom); with ``lazy`` a mount in
    use is detached, and its process ends with its last user.
    """
    path = mounttable.resolve(directory)
    states = MountStates(state_dir) if state_dir else None
    record = states.read(path) if states else None
    mounted = mounttable.find(path)
    if mounted is None and record is not None and not record.alive():
        forget(path, states)
        return
    if mounted is None or not mounted.is_ours:
        raise MountError(
            f"{directory} is not a mount of imagefs", hint="`imagefs mount` lists the mounts", path=path
        )
    if not (record and record.alive()) and mounted.is_stale():
        clear_stale(path, states)
        return
    _detach(path, lazy=lazy)
    _settle(path, record, lazy=lazy)


def _detach(path: str, *, lazy: bool) -> None:
    """A process that has just ended holds on for a moment, so a mount that nobody holds is tried again."""
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
                raise _busy(path, using) from error
        time.sleep(_BUSY_PAUSE)


def _busy(path: str, using: list[str]) -> MountError:
    who = ", ".join(using[:10]) + (f" and {len(using) - 10} more" if len(using) > 10 else "")
    if not who:
        who = "a process that only root can see" if os.geteuid() != 0 else "something in the kernel"
    hint = f"end that first, or detach the mount with `imagefs umount --lazy {path}`"
    return MountError(f"{path} is in use by {who}", hint=hint, path=path, holders=using)


def _settle(path: str, record: MountRecord | None, *, lazy: bool) -> None:
    """Wait for the serving process, which removes a DIR it made as its last act."""
    if record is None or not record.alive():
        return
    if _wait_for_end(record, _LAZY_SECONDS if lazy else _END_SECONDS):
        return
    if lazy:
        remove_made(path, record.made)
        return
    raise MountError(
        f"{path} is unmounted, but its process {record.pid} has not ended", hint=f"see {record.log}"
    )


def _wait_for_end(record: MountRecord, seconds: float) -> bool:
    try:
        descriptor = os.pidfd_open(record.pid)
    except OSError:
        return not record.alive()
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        if not record.alive():
            return True
        return bool(poll.poll(seconds * 1000))
    finally:
        os.close(descriptor)
