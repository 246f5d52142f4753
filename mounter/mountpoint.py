"""The directory a mount goes on: checked, made when missing, removed again if it was made.

Also clears a mount whose process was killed. Knows no FUSE library.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from imagefs.errors import MountError
from mounter import mounttable
from mounter.state import MountStates


@dataclass(frozen=True, slots=True)
class MountPoint:
    """An empty directory, as an absolute path; ``made`` is its (device, inode) if we made it."""

    directory: str
    made: tuple[int, int] | None

    def remove(self) -> None:
        remove_made(self.directory, self.made)


def remove_made(directory: str, made: tuple[int, int] | None) -> None:
    """Remove a directory that a mount made, if it is still that one and empty."""
    if made is None:
        return
    try:
        status = os.lstat(directory)
        if (status.st_dev, status.st_ino) == tuple(made):
            os.rmdir(directory)
    except OSError:  # gone, in use again, or not ours to remove: all of them leave it alone
        return


def prepare(directory: str, states: MountStates | None) -> MountPoint:
    """Make ``directory`` ready to mount on; MountError where it is taken, not empty or not allowed."""
    path = mounttable.resolve(directory)
    _clear(path, states)
    try:
        os.mkdir(path)
    except FileExistsError:
        _check_usable(path)
        return MountPoint(path, None)
    except FileNotFoundError as error:
        raise MountError(
            f"cannot make {directory}: the folder it should be in does not exist",
            hint="make it first; only the last folder of DIR is made",
            path=path,
        ) from error
    except OSError as error:
        raise MountError(f"cannot make {directory}: {error.strerror}", path=path) from error
    status = os.lstat(path)
    return MountPoint(path, (status.st_dev, status.st_ino))


def _clear(path: str, states: MountStates | None) -> None:
    """Take away a dead mount of ours; any other mount is in the way."""
    mounted = mounttable.find(path)
    if mounted is None:
        return
    if not mounted.is_ours:
        raise MountError(
            f"{path} is already a mount point ({mounted.fstype} of {mounted.source})",
            hint="choose another directory",
            path=path,
        )
    if not mounted.is_stale():
        raise MountError(f"{path} already shows {mounted.source}", hint=f"imagefs umount {path}", path=path)
    clear_stale(path, states)


def clear_stale(path: str, states: MountStates | None) -> None:
    """Take away a mount whose process is gone, and what it left behind."""
    while (mounted := mounttable.find(path)) is not None and mounted.is_ours and mounted.is_stale():
        try:
            mounttable.detach(path, lazy=True)
        except OSError as error:
            raise MountError(f"cannot clear the dead mount on {path}: {error.strerror}", path=path) from error
    forget(path, states)


def forget(path: str, states: MountStates | None) -> None:
    """Remove the record of a mount that is gone, and its directory if the mount made it."""
    record = states.read(path) if states else None
    if states is not None and record is not None and not record.alive():
        remove_made(path, record.made)
        states.remove(path)


def _check_usable(path: str) -> None:
    try:
        with os.scandir(path) as entries:
            occupied = next(entries, None) is not None
    except NotADirectoryError as error:
        raise MountError(f"{path} is not a directory", path=path) from error
    except OSError as error:
        raise MountError(f"cannot look into {path}: {error.strerror}", path=path) from error
    if occupied:
        raise MountError(
            f"{path} is not empty, and a mount would hide what is in it",
            hint="choose an empty or a new directory",
            path=path,
        )
    if os.geteuid() != 0 and not os.access(path, os.W_OK):
        raise MountError(f"you have no write access to {path}, which mounting needs", path=path)
