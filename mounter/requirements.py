"""What a mount needs of the machine, checked first so that each lack is one plain sentence."""

from __future__ import annotations

import os
from pathlib import Path

from imagefs.errors import MountError
from mounter import mounttable

_INSTALL = "apt install fuse3 (Debian, Ubuntu) or dnf install fuse3 (Fedora)"
_DEVICE = Path("/dev/fuse")
_CONFIG = Path("/etc/fuse.conf")


def check(*, allow_other: bool, device: Path = _DEVICE, config: Path = _CONFIG) -> None:
    """MountError for a missing /dev/fuse or fusermount3, or an --allow-other that is not permitted."""
    if not device.exists():
        raise MountError(
            f"{device} is missing: this kernel or container has no FUSE",
            hint="modprobe fuse; in a container, start it with --device /dev/fuse --cap-add SYS_ADMIN",
        )
    if os.geteuid() == 0:
        return
    if not os.access(device, os.R_OK | os.W_OK):
        raise MountError(
            f"you have no access to {device}", hint=f"have root run `chmod 666 {device}`, as udev does"
        )
    if mounttable.fusermount() is None:
        raise MountError("fusermount3 is missing, and only root can mount without it", hint=_INSTALL)
    if allow_other and not permits_allow_other(config):
        raise MountError(
            f"--allow-other is not permitted: {config} does not say user_allow_other",
            hint=f"have root add the line `user_allow_other` to {config}, or mount as root",
        )


def permits_allow_other(config: Path) -> bool:
    """Whether the file holds ``user_allow_other`` on a line by itself."""
    try:
        lines = config.read_text("utf-8", "replace").splitlines()
    except OSError:
        return False
    return any(line.strip() == "user_allow_other" for line in lines)
