"""A set with images, and ``imagefs`` run on it as root or anybody does, for tests that mount."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mounter.mounttable
from fixtures.tools import run_tool
from tests.support.oracles import tool_text

ROOT = Path(__file__).parents[2]


class Room:
    """A folder with a set, a state folder of its own, and commands run in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    def run(
        self,
        *words: str | Path,
        code: int = 0,
        prefix: tuple[str, ...] = (),
        pass_fds: tuple[int, ...] = (),
    ) -> str:
        """Run a command that must end with ``code``; gives what it said."""
        state = str(self.folder / "state")
        done = subprocess.run(
            [*prefix, sys.executable, "-P", "-m", "imagefs", *map(str, words)],
            env={**os.environ, "XDG_STATE_HOME": state, "PYTHONPATH": str(ROOT)},
            cwd=self.folder, capture_output=True, text=True, timeout=600, check=False, pass_fds=pass_fds,
        )  # fmt: skip
        assert done.returncode == code, (words, done.stderr)
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr

    def mounts(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.run("mount", "--json"))["mounts"]
        return found

    def server(self, name: str = "mnt") -> int:
        """The process that serves the mount on ``name``."""
        (found,) = [row for row in self.mounts() if row["directory"] == str(self / name)]
        return int(found["pid"])

    def loops(self) -> list[str]:
        """The loop devices on files under this folder."""
        listed = json.loads(tool_text("losetup", "--json", "--list") or '{"loopdevices": []}')
        rows = listed["loopdevices"]
        return [row["name"] for row in rows if row["back-file"].startswith(str(self.folder))]

    def clear(self) -> None:
        """Take everything away that a test left, without our own code."""
        below = [
            m.directory for m in mounter.mounttable.mounts() if m.directory.startswith(f"{self.folder}/")
        ]
        for directory in reversed(below):
            ctypes.CDLL(None).umount2(os.fsencode(directory), 2)
        for device in self.loops():
            run_tool(["losetup", "--detach", device], ok=(0, 1))


def fingerprint(folder: Path) -> dict[str, tuple[int, int, int, str]]:
    """Size, times and SHA-256 of each file of a set."""
    found = {}
    for path in sorted(folder.iterdir()):
        status = path.stat()
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        found[path.name] = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, digest)
    return found


@contextmanager
def mounted(path: Path, folder: Path, kind: str, options: str = "rw") -> Iterator[Path]:
    """``path`` mounted by the kernel through a loop device of mount's own."""
    folder.mkdir(exist_ok=True)
    run_tool(["mount", "-t", kind, "-o", f"loop,{options}", path, folder])
    try:
        yield folder
    finally:
        run_tool(["umount", folder])
