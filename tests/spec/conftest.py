"""Sets of images of small ext4 disks, as file systems of fsspec; none is shared between tests."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures.tools import run_tool
from imagefs.spec.filesystem import ImageFileSystem
from imagefs.store import LocalStore
from tests.support.images import capture_file, noise

BIG = noise(1 << 20)


def make_disk(files: Path, disk: Path, size: str = "16M") -> Path:
    """An unpartitioned disk whose ext4 holds what is in the folder ``files``."""
    disk.unlink(missing_ok=True)
    run_tool(["truncate", "-s", size, disk])
    run_tool(["mke2fs", "-q", "-F", "-t", "ext4", "-d", files, disk])
    return disk


def add_image(folder: Path, disk: Path) -> Path:
    """Another image of ``disk`` in the set ``folder``; its path."""
    store = LocalStore(folder, suffix=".imagefs")
    store.make()
    return folder / capture_file(store, disk).info.name


def workers_of(process: int) -> int:
    """How many child processes a process has."""
    found = subprocess.run(["pgrep", "-P", str(process)], capture_output=True, check=False, text=True)
    return len(found.stdout.split())


@pytest.fixture(autouse=True)
def _no_instance_stays() -> Iterator[None]:
    yield
    ImageFileSystem.clear_instance_cache()


@pytest.fixture(scope="module")
def backups(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images: /report.txt, /sub/big (1 MB), links, odd names; then /new.txt is there and /report.txt is not."""
    folder = tmp_path_factory.mktemp("backups")
    files = folder / "files"
    (files / "sub/deep").mkdir(parents=True)
    (files / "report.txt").write_text("the report\n")
    (files / "sub/big").write_bytes(BIG)
    (files / "sub/deep/leaf").write_text("leaf\n")
    (files / "link").symlink_to("sub/big")
    (files / "folder").symlink_to("/sub/deep")
    (files / "up").symlink_to("folder/../big")
    (files / "abs").mkdir()
    (files / "abs/leaf").symlink_to("/sub/deep/leaf")
    (files / "loop").symlink_to("loop")
    (files / "nowhere").symlink_to("none")
    (files / b"caf\xe9".decode("utf-8", "surrogateescape")).write_text("latin\n")
    (files / "ünïcode").write_text("unicode\n")
    disk = make_disk(files, folder / "disk.raw")
    add_image(folder / "set", disk)
    for command in (f"write {files}/report.txt new.txt", "rm report.txt"):
        run_tool(["debugfs", "-w", "-R", command, disk])
    add_image(folder / "set", disk)
    return folder / "set"
