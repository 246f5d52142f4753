"""The kernel's mount table: what is mounted where, taking a mount away. Knows no FUSE library."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import subprocess
from dataclasses import dataclass

from imagefs.errors import MountError

FSTYPE = "fuse.imagefs"
_TABLE = "/proc/self/mountinfo"
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8
#: Where fusermount3 lives; the last is NixOS. libfuse looks there itself, so PATH has no say.
_PROGRAMS = "/usr/bin:/bin:/usr/local/bin:/usr/sbin:/sbin:/run/wrappers/bin"


@dataclass(frozen=True, slots=True)
class Mounted:
    """One line of the table; ``device`` is ``major:minor``, ``source`` what was mounted."""

    directory: str
    fstype: str
    source: str
    device: str
    user: int | None = None

    @property
    def is_ours(self) -> bool:
        return self.fstype == FSTYPE

    def is_stale(self) -> bool:
        """True when the process behind the mount is gone. Only for FUSE mounts.

        Asks with statvfs, which always goes to that process; ``stat`` is answered from the kernel's
        memory long after its end.
        """
        try:
            os.statvfs(self.directory)
        except OSError as error:
            return error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
        return False


def mounts() -> list[Mounted]:
    """The table, oldest first."""
    with open(_TABLE, "rb") as table:
        return [found for line in table if (found := _parse(line)) is not None]


def find(directory: str) -> Mounted | None:
    """What is mounted on exactly ``directory`` (an absolute, resolved path); the top one of several."""
    found = [mounted for mounted in mounts() if mounted.directory == directory]
    return found[-1] if found else None


def resolve(directory: str) -> str:
    """The absolute path of ``directory`` without asking a mount that may be dead or hang."""
    path = os.path.abspath(directory)
    parent = os.path.realpath(os.path.dirname(path))
    path = os.path.join(parent, os.path.basename(path))
    return path if find(path) else os.path.realpath(path)


def detach(directory: str, *, lazy: bool) -> None:
    """Unmount; OSError with EBUSY while it is in use, MountError where it is not allowed at all."""
    if os.geteuid() == 0:
        _umount2(directory, _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazy else 0))
        return
    program = fusermount()
    if program is None:
        raise MountError("fusermount3 is not installed", hint="apt install fuse3")
    command = [program, "-u", *(["-z"] if lazy else []), "--", directory]
    done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode == 0:
        return
    said = done.stderr.decode("utf-8", "replace").strip()
    if "busy" in said.lower():
        raise OSError(errno.EBUSY, said)
    raise MountError(
        f"cannot unmount {directory}: {said or f'{program} failed'}",
        hint="it may belong to another user; try it with sudo",
    )


def fusermount() -> str | None:
    """The program that mounts for users other than root."""
    return shutil.which("fusermount3", path=_PROGRAMS) or shutil.which("fusermount", path=_PROGRAMS)


def _umount2(directory: str, flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(directory), flags) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), directory)


def _parse(line: bytes) -> Mounted | None:
    """``36 35 98:0 /root /point options optional… - fstype source super``; None for a line unlike it."""
    head, dash, tail = line.rstrip(b"\n").partition(b" - ")
    fields, rest = head.split(b" "), tail.split(b" ")
    if not dash or len(fields) < 6 or len(rest) < 3:
        return None
    user = re.search(rb"(?:^|,)user_id=(\d+)", rest[2])
    return Mounted(
        directory=_plain(fields[4]),
        fstype=_plain(rest[0]),
        source=_plain(rest[1]),
        device=fields[2].decode("ascii", "replace"),
        user=int(user[1]) if user else None,
    )


def _plain(field: bytes) -> str:
    """A field without its octal escapes, as a path."""
    return os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8) & 0xFF]), field))
