"""Running the command line as a user does: a process of its own, its output and its exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.cli.mounts import Room
from tests.mounter.conftest import need


@dataclass(frozen=True)
class Ran:
    """How a run ended."""

    code: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        return self.out.decode()

    @property
    def document(self) -> Any:
        return json.loads(self.out)


Cli = Callable[..., Ran]


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Room]:
    """Where images are mounted; nothing stays mounted."""
    need(os.path.exists("/dev/fuse"), "/dev/fuse")
    room = Room(tmp_path)
    yield room
    room.clear()


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """``cli("list", "set")`` runs ``imagefs list set`` in ``tmp_path``."""

    def run(*words: str, stdin: bytes = b"", env: dict[str, str] | None = None) -> Ran:
        clean = {key: value for key, value in os.environ.items() if key != "IMAGEFS_SET"}
        done = subprocess.run(
            [sys.executable, "-m", "imagefs", *words],
            cwd=tmp_path,
            input=stdin,
            capture_output=True,
            timeout=600,
            env={**clean, "XDG_STATE_HOME": str(tmp_path / "state"), "TZ": "UTC", **(env or {})},
            check=False,
        )
        assert b"Traceback" not in done.stderr, done.stderr.decode()
        return Ran(done.returncode, done.stdout, done.stderr.decode())

    return run


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A small raw disk: data, zeros, a hole, an odd end."""
    path = tmp_path / "disk.raw"
    with path.open("wb") as out:
        out.write(os.urandom(300_000))
        out.seek(3_000_000)
        out.write(b"text that compresses well " * 20_000)
        out.truncate(4_000_777)
    return path


@pytest.fixture
def ext4(tmp_path: Path) -> Path:
    """An unpartitioned disk with an ext4 on it: /report.txt, /dir/plan.txt, /dir/link."""
    files = tmp_path / "files"
    (files / "dir").mkdir(parents=True)
    (files / "report.txt").write_text("the report\n")
    (files / "dir/plan.txt").write_text("a plan\n")
    (files / "dir/link").symlink_to("plan.txt")
    path = tmp_path / "ext4.raw"
    subprocess.run(["truncate", "-s", "16M", path], check=True)
    subprocess.run(
        ["mke2fs", "-q", "-F", "-t", "ext4", "-L", "work", "-d", files, path], check=True, timeout=600
    )
    return path
