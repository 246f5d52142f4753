"""What a user without privileges goes through, run by test_live_users.py: ``python -m … FOLDER``.

Ends with the line ``all well`` or with a traceback.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from imagefs.errors import MountError
from mounter import mounttable
from mounter.requirements import permits_allow_other
from mounter.unmount import list_mounts, unmount
from tests.mounter.fakes import noise
from tests.mounter.serve import background


def start(folder: Path, **settings: object) -> Path:
    directory, state_dir = folder / "mnt", folder / "state"
    background(directory, {"state_dir": str(state_dir), **settings})
    return directory


def check_reading(directory: Path) -> None:
    assert (directory / "disk.raw").read_bytes() == noise(1_000_003)
    assert (directory / "p1/big.bin").read_bytes() == noise(300_001, 3)
    assert (directory / "p1/etc/fstab").stat().st_uid == 1000, "somebody else's, and still readable"
    assert (directory / "p1/etc/fstab").read_bytes() == b"# nothing\n"


def check_busy(directory: Path, state_dir: Path) -> None:
    held = subprocess.Popen(["sleep", "60"], cwd=directory)
    try:
        with pytest.raises(MountError, match=rf"sleep \(pid {held.pid}\)"):
            unmount(str(directory), state_dir=state_dir)
    finally:
        held.kill()
        held.wait(300)


def check_dead(folder: Path) -> None:
    directory = start(folder)
    (record,) = list_mounts(folder / "state")
    os.kill(record.pid, 9)
    while record.alive():
        time.sleep(0.02)
    unmount(str(directory), state_dir=folder / "state")
    assert not directory.exists()


def check_refusals(folder: Path) -> None:
    if not permits_allow_other(Path("/etc/fuse.conf")):
        with pytest.raises(MountError, match="user_allow_other") as caught:
            start(folder, allow_other=True)
        assert "add the line `user_allow_other`" in caught.value.hint
    for directory in ("/", "/proc", "/etc"):
        with pytest.raises(MountError, match="is not a mount of imagefs"):
            unmount(directory)


def main(folder: Path) -> None:
    assert os.geteuid() != 0
    directory = start(folder)
    check_reading(directory)
    check_busy(directory, folder / "state")
    unmount(str(directory), state_dir=folder / "state")
    assert mounttable.find(str(directory)) is None
    assert not directory.exists()
    check_dead(folder)
    check_refusals(folder)
    assert not directory.exists()
    sys.stdout.write("all well\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
