"""Real mounts for tests: served by a process of their own, and taken away whatever the test does."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mounter import mounttable

ROOT = Path(__file__).parents[2]


def need(present: object, what: str) -> None:
    """Skip by name without a tool; in CI its lack is a failure."""
    if present:
        return
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what} is missing")
    pytest.skip(f"needs {what}")


def need_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")


@dataclass
class Live:
    """A mount being served: its directory, its process, its output so far."""

    directory: Path
    process: subprocess.Popen[bytes]
    output: Path
    state_dir: Path

    def log(self) -> str:
        return self.output.read_text("utf-8", "replace")

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(600)


Mount = Callable[..., Live]


def is_mounted(directory: Path) -> bool:
    return mounttable.find(str(directory)) is not None


def wait_until(condition: Callable[[], object], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def drop_pages(path: Path) -> None:
    """Make the next reads of ``path`` reach the mount."""
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def clear(directory: Path) -> None:
    """Take every mount off ``directory``, without our own code."""
    for _ in range(5):
        if not is_mounted(directory):
            return
        if os.geteuid() == 0:
            ctypes.CDLL(None).umount2(os.fsencode(directory), 2)
        else:
            subprocess.run(["fusermount3", "-u", "-z", str(directory)], check=False)


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """``mount(kind="usual", wait=True, prefix=(), directory=None, **settings)`` serves a mount."""
    need(os.path.exists("/dev/fuse"), "/dev/fuse")
    need(shutil.which("fusermount3"), "fusermount3")
    lives: list[Live] = []

    def start(
        kind: str = "usual",
        *,
        wait: bool = True,
        prefix: tuple[str, ...] = (),
        directory: Path | None = None,
        state_dir: Path | None = None,
        **settings: Any,
    ) -> Live:
        directory = directory or tmp_path / "mnt"
        state_dir = state_dir or tmp_path / "state"
        output = tmp_path / f"output-{len(lives)}"
        words = json.dumps({"kind": kind, "state_dir": str(state_dir), **settings})
        command = [*prefix, sys.executable, "-m", "tests.mounter.serve", str(directory), words]
        with open(output, "wb") as out:
            process = subprocess.Popen(
                command, cwd=ROOT, stdout=out, stderr=out, stdin=subprocess.DEVNULL, start_new_session=True
            )
        live = Live(directory, process, output, state_dir)
        lives.append(live)
        if wait:
            wait_until(lambda: "ready\n" in live.log() or process.poll() is not None)
            assert process.poll() is None, live.log()
        return live

    yield start
    for live in lives:
        clear(live.directory)
        if live.process.poll() is None:
            live.process.kill()
        live.process.wait(300)
        clear(live.directory)
