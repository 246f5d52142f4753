"""A folder of very many entries through a real mount: all of them, probes beside them, memory bounded."""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import partial
from itertools import islice
from pathlib import Path

import pytest

from tests.browse.disks import make_large_folder
from tests.mounter.conftest import Live, Mount, need, wait_until
from tests.mounter.test_folders import PROBES

MEMORY_LIMIT = 300 << 20


def large_mount(mount: Mount, room: Path, count: int, **settings: int) -> Live:
    need(shutil.which("mke2fs"), "mke2fs")
    (room / "stage").mkdir()
    return mount("ext4", path=str(make_large_folder(room / "large.raw", room / "stage", count)), **settings)


def peak_of(live: Live) -> int:
    status = Path(f"/proc/{live.process.pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) << 10


def check(live: Live, count: int) -> None:
    folder = live.directory / "p1" / "many"
    with os.scandir(folder) as entries:
        first = [(each.name, each.is_file()) for each in islice(entries, 3)]
    assert first == [(f"name-{at:07d}.dat", True) for at in range(3)]
    for command in (["ls", "-U"], ["find"], ["ls", "-l"]):
        done = subprocess.run([*command, folder], check=True, capture_output=True, timeout=900)
        assert done.stdout.count(b"name-") == count
    for at in (0, count // 2, count - 1):
        assert (folder / f"name-{at:07d}.dat").read_bytes() == b"x" * (at % 100)
    assert not any(os.path.lexists(os.fsencode(folder) + b"/" + name) for name in PROBES)
    assert peak_of(live) < MEMORY_LIMIT


def said(live: Live, times: int) -> bool:
    return live.log().count("few again") >= times


def test_the_kernel_forgets_files_of_long_ago_and_finds_them_again(mount: Mount, tmp_path: Path) -> None:
    live = large_mount(mount, tmp_path, 5000, kept=500)
    folder = live.directory / "p1" / "many"
    sizes = sorted(range(100), key=str)  # the order in which debugfs lists the hundred files
    expected = {(f"name-{at:07d}.dat", sizes[at % 100]) for at in range(5000)}
    with open(folder / "name-0000001.dat", "rb") as held:
        for number in (1, 2):
            done = subprocess.run(["ls", "-l", folder], check=True, capture_output=True, timeout=600)
            words = [line.split() for line in done.stdout.decode().splitlines()[1:]]
            assert {(each[-1], int(each[4])) for each in words} == expected
            wait_until(partial(said, live, number), 60)
        assert held.read() == (folder / "name-0000001.dat").read_bytes() == b"x"


def test_a_hundred_thousand_entries(mount: Mount, tmp_path: Path) -> None:
    check(large_mount(mount, tmp_path, 100_000), 100_000)


@pytest.mark.slow
def test_a_million_entries(mount: Mount, tmp_path: Path) -> None:
    check(large_mount(mount, tmp_path, 1_000_000), 1_000_000)
