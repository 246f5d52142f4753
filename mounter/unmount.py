"""Ending a mount from outside, and listing those there are. Knows no FUSE library."""

from __future__ import annotations

import os
import select
from dataclasses import replace
from pathlib import Path

from imagefs.errors import MountError
from mounter import mounttable, native
from mounter.detach import busy, detach
from mounter.holders import holders
from mounter.mountpoint import clear_stale, forget, remove_made
from mounter.state import MountRecord, MountStates

_END_SECONDS, _LAZY_SECONDS = 30.0, 1.0


def list_mounts(state_dir: Path) -> list[MountRecord]:
    """The mounts recorded in ``state_dir``, oldest first; records of mounts that are gone are swept.

    A mount whose process was killed is listed (its ``alive()`` is False) until it is unmounted.
    """
    states = MountStates(state_dir)
    mounted = {entry.directory for entry in mounttable.mounts() if entry.is_ours}
    found = []
    for record in states.all():
        natives = tuple(each for each in record.natives if native.is_there(each, record.directory))
        if record.directory in mounted or natives:
            found.append(replace(record, natives=natives))
        else:
            forget(record.directory, states)
    return sorted(found, key=lambda record: record.since_ns)


def unmount(directory: str, *, lazy: bool = False, state_dir: Path | None = None) -> None:
    """Unmount, and come back when the process that served it has ended and DIR is as it was.

    Its native mounts go first, the newest of them before the others.

    MountError if DIR is no mount of ours, or is in use (naming by whom); with ``lazy`` a mount in
    use is detached, and its process ends with its last user.
    """
    path = mounttable.resolve(directory)
    states = MountStates(state_dir) if state_dir else None
    record = states.read(path) if states else None
    if record is not None and record.natives:
        _undo_natives(record, lazy=lazy)
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
    detach(path, lazy=lazy)
    _settle(path, record, lazy=lazy)


def _undo_natives(record: MountRecord, *, lazy: bool) -> None:
    """All of them; or none, where somebody uses one of them or the mount itself."""
    own = tuple(f"{each.device} " for each in record.natives)
    for place in (record.directory, *(each.directory for each in record.natives)):
        others = [holder for holder in holders(place) if not holder.startswith(own)]
        if others and not lazy:
            raise busy(place, others, record.directory)
    native.undo(record.natives, record.directory, lazy=lazy)


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
