"""Reading through FUSE: fresh mounts, sequential and random reads of them. Peers are in exports.py.

Every mount is new, so none of its pages is cached; the image file below it is warmed first.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import NOBODY, BenchError, as_nobody, peak_of, run_timed, say, warm
from benchmarks.ours import program

_READY_SECONDS = 60
_PAGE = 4096


@dataclass(frozen=True, slots=True)
class Served:
    """A disk of ``size`` bytes as a file, the process that serves it, and whether that runs without rights."""

    path: Path
    size: int
    pid: int
    nobody: bool

    @property
    def peak(self) -> int:
        return peak_of(self.pid)

    def command(self, words: Sequence[str]) -> list[str]:
        """The words as the user who may read this mount: root may not look into another's."""
        return as_nobody(words) if self.nobody else list(words)


@contextlib.contextmanager
def imagefs_mount(chain: Sequence[Path], *, size: int, nobody: bool, cold: bool = False) -> Iterator[Served]:
    """``imagefs mount`` of the last image of ``chain``, whose files are all warmed unless ``cold``."""
    if not cold:
        warm(*chain)
    with room_for(nobody) as room:
        words = [program(), "mount", "--foreground", str(chain[-1]), str(room / "mount")]
        with serving(words, room / "mount" / "disk.raw", size=size, nobody=nobody) as served:
            yield served


@contextlib.contextmanager
def fuse_for_everybody() -> Iterator[None]:
    """``/dev/fuse`` with the mode that udev gives it everywhere; containers often leave it to root."""
    device = Path("/dev/fuse")
    before = stat.S_IMODE(device.stat().st_mode)
    if before & 0o006 == 0o006 or os.geteuid() != 0:
        yield
        return
    say(f"opening {device} to everybody for as long as this takes")
    device.chmod(0o666)
    try:
        yield
    finally:
        device.chmod(before)


def sequential_rate(served: Served, *, share: float = 1.0) -> float:
    """MB/s of one pass over the whole disk, or the first ``share`` of it, in reads of 1 MiB."""
    count = int(served.size * share) >> 20
    words = ["dd", f"if={served.path}", "of=/dev/null", "bs=1M", f"count={count}", "status=none"]
    return count * 2**20 / 1e6 / run_timed(served.command(words)).seconds


def random_rate(served: Served, offsets: Sequence[int], *, jobs: int) -> float:
    """Reads a second of 4 KiB at ``offsets``, dealt out to ``jobs`` threads, by fio with psync."""
    with room_for(served.nobody) as room:
        script = _fio_script(served.path, offsets, jobs, room)
        words = ["fio", "--output-format=json", f"--aux-path={room}", str(script)]
        said = run_timed(served.command(words)).output
    (group,) = json.loads(said[said.index("{") :])["jobs"]
    if group["error"] or group["read"]["total_ios"] != len(offsets):
        raise BenchError(f"fio did {group['read']['total_ios']} of {len(offsets)} reads: {group['error']}")
    return float(len(offsets) / (group["read"]["runtime"] / 1000))


def choose_offsets(pages: Sequence[int], count: int, *, seed: int) -> list[int]:
    """``count`` different page offsets in random order, the same for everybody."""
    return [int(page) for page in random.Random(seed).sample(list(pages), min(count, len(pages)))]


def _fio_script(path: Path, offsets: Sequence[int], jobs: int, room: Path) -> Path:
    """A job file that replays one log of reads for each job."""
    lines = ["[global]", "ioengine=psync", "thread", "bs=4k", "rw=randread", "group_reporting"]
    lines += ["fadvise_hint=random", "invalidate=0"]
    for job in range(jobs):
        log = room / f"log{job}"
        reads = [f"{path} read {offset} {_PAGE}" for offset in offsets[job::jobs]]
        steps = ["fio version 2 iolog", f"{path} add", f"{path} open", *reads, f"{path} close"]
        log.write_text("\n".join(steps) + "\n")
        lines += [f"[job{job}]", f"read_iolog={log}"]
    script = room / "script.fio"
    script.write_text("\n".join(lines) + "\n")
    return script


@contextlib.contextmanager
def serving(words: list[str], path: Path, *, size: int, nobody: bool) -> Iterator[Served]:
    """The server runs until the block ends; its last words are told when it fails."""
    with room_for(nobody) as home, tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            as_nobody(words) if nobody else words,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            env={**os.environ, "HOME": str(home), "XDG_STATE_HOME": str(home), "XDG_CACHE_HOME": str(home)},
        )
        served = Served(path, size, process.pid, nobody)
        try:
            if not _ready(served, process):
                said.seek(0)
                last = said.read()[-500:].decode("utf-8", "replace").strip()
                raise BenchError(f"{words[0]} serves no {path.name}: {last}")
            yield served
        finally:
            _stop(process)


def _ready(served: Served, process: subprocess.Popen[bytes]) -> bool:
    """True once the file is there with the size of the disk; False when the server ends or takes too long."""
    deadline = time.monotonic() + _READY_SECONDS
    asked = served.command(["stat", "-c", "%s", str(served.path)])
    while process.poll() is None and time.monotonic() < deadline:
        answer = subprocess.run(asked, capture_output=True, text=True, timeout=30, check=False)
        if answer.stdout.strip() == str(served.size):
            return True
        time.sleep(0.05)
    return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextlib.contextmanager
def room_for(nobody: bool) -> Iterator[Path]:
    """A temporary folder that the one who serves or reads may use."""
    with tempfile.TemporaryDirectory(prefix="imagefs-bench-") as folder:
        room = Path(folder)
        give(room, nobody)
        yield room


def give(path: Path, nobody: bool) -> None:
    if nobody:
        os.chown(path, NOBODY, NOBODY)
