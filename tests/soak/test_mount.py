"""A day of a mount in miniature: reads, walks and archives without end, and mounts that come and go.

Two minutes in every test run, an hour in ``make slow``; ``IMAGEFS_SOAK_SECONDS`` says otherwise.
"""

from __future__ import annotations

import json
import os
import random
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fixtures.build import build_demo_disk, change_demo_disk
from mounter import mounttable
from tests.mounter.conftest import clear
from tests.outside.test_tools import imagefs
from tests.soak.watch import MIB, Watch, growth, peak
from tests.support.oracles import need_tool

LIMIT = 300_000_000
SHORT, LONG = 120, 3600
DISK = 200 * MIB


def seconds_of(usual: int) -> int:
    return int(os.environ.get("IMAGEFS_SOAK_SECONDS") or usual)


@dataclass
class Load:
    """Jobs that repeat until the time is up; what goes wrong in one ends all."""

    seconds: float
    rounds: dict[str, int] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)

    def run(self, jobs: dict[str, Callable[[], None]]) -> None:
        end = time.monotonic() + self.seconds
        threads = [threading.Thread(target=self._repeat, args=(name, job, end)) for name, job in jobs.items()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _repeat(self, name: str, job: Callable[[], None], end: float) -> None:
        while time.monotonic() < end and not self.errors:
            try:
                job()
            except Exception as error:
                self.errors.append(f"{name}: {error}")
            self.rounds[name] = self.rounds.get(name, 0) + 1


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Path]:
    """A set of a full image and six incrementals of a disk with FAT32, ext4 and NTFS; mounted on ``mnt``."""
    need_tool("fio", "find", "tar", "fusermount3")
    files = build_demo_disk(tmp_path / "disk.raw", size=DISK, files_from=None)
    imagefs(tmp_path, "capture", "disk.raw", "set", "--mode", "all")
    change_demo_disk(tmp_path / "disk.raw", files)
    dice = random.Random(1)
    for _ in range(6):
        imagefs(tmp_path, "capture", "disk.raw", "set")
        with open(tmp_path / "disk.raw", "r+b") as disk:
            for _ in range(50):  # behind the last partition's middle, where the free space is
                disk.seek(DISK - 8 * MIB + dice.randrange(6 * MIB))
                disk.write(dice.randbytes(700))
    yield tmp_path
    for folder in ("mnt", "other"):
        clear(tmp_path / folder)


def mounted(room: Path, which: str) -> int:
    """Mount ``which`` on ``mnt``; the process that serves it."""
    return int(json.loads(imagefs(room, "mount", which, "mnt", "--json"))["pid"])


def forget(folder: Path) -> None:
    """Drop the kernel's pages of every file, so that the next reads reach the mount."""
    for parent, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(parent, name)
            if not stat.S_ISREG(os.lstat(path).st_mode):
                continue
            fd = os.open(path, os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


def run(*words: str | Path) -> None:
    done = subprocess.run(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=600, check=False)
    assert done.returncode == 0, f"{words[0]}: {done.stderr.decode('utf-8', 'replace')[-300:]}"


def fio(path: Path, pattern: str, block: str) -> None:
    words = ["--readonly", "--numjobs=2", "--runtime=4", "--time_based", "--output-format=terse"]
    run("fio", "--name=x", f"--filename={path}", f"--rw={pattern}", f"--bs={block}", *words)


def cycle(room: Path) -> None:
    """One more mount of another image comes, is looked into and goes without a trace."""
    imagefs(room, "mount", f"set@latest~{random.randrange(6)}", "other")
    assert {"disk.raw", "image.json", "p1"} <= set(os.listdir(room / "other"))
    with open(room / "other/disk.raw", "rb") as disk:
        disk.read(3 * MIB)
    imagefs(room, "umount", "other")
    assert mounttable.find(str(room / "other")) is None
    assert not (room / "other").exists()


def soak(room: Path, seconds: float) -> None:
    mnt = room / "mnt"
    pid = mounted(room, "set")
    trees = [mnt / name for name in os.listdir(mnt) if (mnt / name).is_dir() and name != "deleted"]
    assert len(trees) == 3
    load = Load(seconds)

    def archive() -> None:
        for tree in trees:
            run("tar", "cf", "/dev/zero", tree)
            forget(tree)

    jobs = {
        "random reads": lambda: fio(mnt / "disk.raw", "randread", "4k"),
        "reads in order": lambda: fio(mnt / "p2.raw", "read", "1m"),
        "find": lambda: run("find", mnt, "-ls"),
        "tar": archive,
        "mounts": lambda: cycle(room),
    }
    with Watch(pid, max(0.25, seconds / 600)) as watch:
        load.run(jobs)
    assert load.errors == []
    assert min(load.rounds[name] for name in jobs) >= 2, load.rounds
    assert growth(watch.samples) == [], load.rounds
    assert peak(pid) < LIMIT
    imagefs(room, "umount", "mnt")
    assert not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text()


def test_two_minutes(room: Path) -> None:
    soak(room, seconds_of(SHORT))


@pytest.mark.slow
@pytest.mark.timeout(2 * LONG)
def test_an_hour(room: Path) -> None:
    soak(room, seconds_of(LONG))


def read_all(room: Path, size: int) -> None:
    """Every byte of a mostly empty disk in order, through the mount."""
    with open(room / "sparse.raw", "wb") as disk:
        disk.truncate(size)
        for at in range(0, size, size // 64):
            disk.seek(at)
            disk.write(random.Random(at).randbytes(MIB))
    imagefs(room, "capture", "sparse.raw", "sparse", "--mode", "all")
    pid = mounted(room, "sparse")
    done = subprocess.run(
        ["dd", f"if={room / 'mnt/disk.raw'}", "of=/dev/null", "bs=1M"], capture_output=True, check=True
    )
    assert f"{size} bytes" in done.stderr.decode()
    assert peak(pid) < LIMIT
    imagefs(room, "umount", "mnt")


@pytest.fixture
def bare_room(tmp_path: Path) -> Iterator[Path]:
    need_tool("dd", "fusermount3")
    yield tmp_path
    clear(tmp_path / "mnt")


def test_four_gigabytes_in_order(bare_room: Path) -> None:
    read_all(bare_room, 4 * 10**9)


@pytest.mark.slow
@pytest.mark.timeout(LONG)
def test_a_hundred_gigabytes_in_order(bare_room: Path) -> None:
    read_all(bare_room, 100 * 10**9)
