"""Mounting without privileges, and what other users get to see."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mounter.conftest import ROOT, Mount, clear, need, need_root
from tests.mounter.fakes import noise

NOBODY = 65534
AS_NOBODY = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
NEEDS = "import sys; assert sys.version_info >= (3, 11); import tests.mounter.fakes, mfusepy, pytest"
#: In a mount namespace of its own, where /dev/fuse is as udev makes it: some machines keep it root's.
OPEN_DEVICE = 'mknod -m 666 "$0/fuse" c 10 229 && mount --bind "$0/fuse" /dev/fuse && exec "$@"'


@pytest.fixture
def nobodys() -> Iterator[Path]:
    """A folder that nobody can write to and reach."""
    need_root()
    need(shutil.which("setpriv"), "setpriv")
    folder = Path(tempfile.mkdtemp(prefix="imagefs-nobody-"))
    os.chown(folder, NOBODY, NOBODY)
    yield folder
    clear(folder / "mnt")
    shutil.rmtree(folder, ignore_errors=True)


def nobodys_python() -> str:
    """An interpreter that nobody may run (ours may be in a home folder), with what the mount needs."""
    for python in (sys.executable, "/usr/bin/python3"):
        command = [*AS_NOBODY, "sh", "-c", '"$0" -c "$1"', python, NEEDS]
        done = subprocess.run(
            command, cwd=ROOT, env=nobodys_environment(), capture_output=True, timeout=600, check=False
        )
        if done.returncode == 0:
            return python
    pytest.skip("needs a checkout and a Python that user nobody can run")


def nobodys_environment() -> dict[str, str]:
    places = [str(ROOT), str(Path(pytest.__file__).parents[1])]
    return {**os.environ, "PYTHONPATH": ":".join(places), "PYTHONDONTWRITEBYTECODE": "1"}


def test_a_user_mounts_reads_and_unmounts(nobodys: Path) -> None:
    need(shutil.which("unshare"), "unshare")
    python = nobodys_python()
    command = ["unshare", "--mount", "sh", "-c", OPEN_DEVICE, str(nobodys)]
    command += [*AS_NOBODY, python, "-m", "tests.mounter.as_nobody", str(nobodys)]
    done = subprocess.run(
        command, cwd=ROOT, env=nobodys_environment(), capture_output=True, text=True, timeout=600, check=False
    )
    assert done.stdout == "all well\n", done.stdout + done.stderr


def as_nobody(*command: str | Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*AS_NOBODY, *command], capture_output=True, timeout=600, check=False)


def test_others_are_kept_out(mount: Mount, nobodys: Path) -> None:
    live = mount(directory=nobodys / "mnt")
    assert as_nobody("ls", live.directory).returncode != 0
    assert (live.directory / "disk.raw").read_bytes() == noise(1_000_003)


def test_allow_other_lets_others_in_as_far_as_modes_permit(mount: Mount, nobodys: Path) -> None:
    live = mount(directory=nobodys / "mnt", allow_other=True)
    assert b"disk.raw" in as_nobody("ls", live.directory).stdout
    assert as_nobody("cat", live.directory / "image.json").stdout == b'{"id": "3f2a"}\n'
    for private in ("disk.raw", "p1.raw", "p1/etc/fstab", "p1/big.bin"):
        denied = as_nobody("cat", live.directory / private)
        assert denied.returncode != 0
        assert denied.stdout == b""
        assert b"Permission denied" in denied.stderr
    assert (live.directory / "p1/etc/fstab").read_bytes() == b"# nothing\n"
    assert live.end(signal.SIGTERM) == 128 + signal.SIGTERM
