"""A chain of a thousand layers from the command line, with no more open files than a process usually has."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from fixtures.giant import Giant, build_full, build_incrementals
from imagefs.store import MemoryStore
from tests.support.oracles import need_tool

#: Every layer answers for a chunk of it; see ``fixtures/giant.py``.
SMALL = Giant(disk_size=64 << 20, chunk_size=16 << 10, stored=1024, run=8)
LAYERS = 1001


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = MemoryStore()
    build_full(store, SMALL)
    build_incrementals(store, SMALL, LAYERS - 1, runs=3, run=1)
    folder = tmp_path_factory.mktemp("thousand")
    (folder / "set").mkdir(0o700)
    for name, data in store.objects.items():
        (folder / "set" / name).write_bytes(data)
        os.utime(folder / "set" / name, (10**9, 10**9))
    return folder


def run(room: Path, *words: str, files: int = 1024) -> subprocess.CompletedProcess[bytes]:
    """``imagefs`` with so many files, which it cannot raise."""
    env = {**os.environ, "XDG_STATE_HOME": str(room / "state"), "XDG_CACHE_HOME": str(room / "cache")}
    done = subprocess.run(
        [sys.executable, "-m", "imagefs", *words],
        cwd=room,
        env=env,
        capture_output=True,
        timeout=600,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (files, files)),
    )
    assert done.returncode == 0, done.stderr.decode()
    return done


def test_listed_restored_and_verified(room: Path) -> None:
    assert run(room, "list", "set").stdout.count(b"\n") == LAYERS
    run(room, "restore", "set", "first.raw", "--yes")
    assert list((room / "cache/imagefs").glob("*.chain"))
    run(room, "restore", "set", "second.raw", "--yes", files=400)
    assert (room / "first.raw").read_bytes() == (room / "second.raw").read_bytes()
    assert set((room / "first.raw").read_bytes()) == {0, ord("x")}
    # 256 for the layers; the rest is for whoever mounts, dispatches and logs.
    assert b"1001 images verified" in run(room, "verify", "set", "--level", "quick", files=300).stdout


@pytest.mark.parametrize("cache", ["with", "without"])
def test_mounted(room: Path, cache: str) -> None:
    need_tool("fusermount3", "cmp")
    if cache == "without":
        for path in (room / "cache").rglob("*"):
            if path.is_file():
                path.unlink()
    run(room, "restore", "set", "beside.raw", "--yes")
    run(room, "mount", "set", "mnt")
    try:
        subprocess.run(["cmp", room / "mnt/disk.raw", room / "beside.raw"], check=True, timeout=600)
    finally:
        run(room, "umount", "mnt")


def test_mounted_with_its_history(room: Path) -> None:
    """Whatever is entered, few points are open at once, and memory does not grow with them."""
    need_tool("fusermount3")
    pid = json.loads(run(room, "mount", "set", "mnt", "--history", "--json").stdout)["pid"]
    try:
        names = sorted(os.listdir(room / "mnt"))
        assert len(names) == LAYERS + 1
        for name in names[:-1:50]:
            with open(room / "mnt" / name / "disk.raw", "rb") as disk:
                assert set(disk.read(1 << 20)) <= {0, ord("x")}
        status = Path(f"/proc/{pid}/status").read_text()
        (peak,) = (int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
        assert peak < 300 << 10
        assert len(os.listdir(f"/proc/{pid}/fd")) < 300
    finally:
        run(room, "umount", "mnt")
