"""imagefs held against tools nobody here wrote, on a GPT disk with FAT32, ext4 and NTFS: through the
command line and a real mount."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fixtures.build import build_demo_disk, change_demo_disk
from fixtures.truth import ExpectedFile
from tests.support.oracles import loop_mounted, need_tool, root_only, tool_text

MIB = 2**20


@dataclass(frozen=True)
class Stage:
    """Two days of one disk, captured, and both mounted."""

    room: Path
    monday: list[ExpectedFile]
    tuesday: list[ExpectedFile]


def imagefs(room: Path, *words: str) -> bytes:
    """One command that must succeed."""
    env = {**os.environ, "XDG_STATE_HOME": str(room / "state")}
    done = subprocess.run(
        [sys.executable, "-m", "imagefs", *words],
        cwd=room,
        env=env,
        capture_output=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    room = tmp_path_factory.mktemp("tools")
    monday = build_demo_disk(room / "disk.raw", size=200 * MIB, files_from=None)
    imagefs(room, "capture", "disk.raw", "set")
    subprocess.run(["cp", "--sparse=always", room / "disk.raw", room / "monday.raw"], check=True, timeout=600)
    tuesday = change_demo_disk(room / "disk.raw", monday)
    imagefs(room, "capture", "disk.raw", "set")
    try:
        imagefs(room, "mount", "set@latest~1", "then")
        imagefs(room, "mount", "set", "now")
        yield Stage(room, monday, tuesday)
    finally:
        for name in ("then", "now"):
            if os.path.ismount(room / name):
                imagefs(room, "umount", name)


def test_every_file_of_both_days_has_its_hash_on_the_mount(stage: Stage) -> None:
    for name, files in (("then", stage.monday), ("now", stage.tuesday)):
        for file in files:
            content = (stage.room / name).joinpath(file.image_path.lstrip("/")).read_bytes()
            assert hashlib.sha256(content).hexdigest() == file.sha256, (name, file.path)


def test_qemu_img_finds_disk_and_mount_the_same(stage: Stage) -> None:
    need_tool("qemu-img")
    for name, disk in (("then", "monday.raw"), ("now", "disk.raw")):
        raw = ("-f", "raw", "-F", "raw")
        assert "identical" in tool_text(
            "qemu-img", "compare", *raw, stage.room / name / "disk.raw", stage.room / disk
        )


def test_fls_on_the_raw_disk_lists_what_ls_lists(stage: Stage) -> None:
    need_tool("fls")
    table = json.loads(tool_text("sfdisk", "-J", stage.room / "disk.raw"))["partitiontable"]["partitions"]
    for number, row in enumerate(table, 1):
        listed = tool_text("fls", "-rpu", "-o", str(row["start"]), stage.room / "disk.raw")
        expected = {line.split("\t")[1] for line in listed.splitlines()}
        expected = {
            path for path in expected if not path.split("/")[0].startswith(("$OrphanFiles", "$FAT", "$MBR"))
        }
        rows = json.loads(imagefs(stage.room, "ls", "set", f"/p{number}", "-R", "--json"))["entries"]
        found = {row["path"].split("/", 2)[2] for row in rows}
        # fls shows control characters as ^, an NTFS stream as file:stream, and FAT's label as a file.
        missing = {
            path
            for path in expected
            if path not in found and not set(":^") & set(path) and "(Volume Label" not in path
        }
        assert not missing, f"p{number}"
        assert len(rows) > 5


def test_sgdisk_and_imagefs_see_the_same_partitions(stage: Stage) -> None:
    need_tool("sfdisk")
    table = json.loads(tool_text("sfdisk", "-J", stage.room / "disk.raw"))["partitiontable"]
    info = json.loads(imagefs(stage.room, "info", "set", "--json"))
    expected = [(row["start"] * 512, row["size"] * 512) for row in table["partitions"]]
    assert [(row["start"], row["length"]) for row in info["volumes"]] == expected
    assert info["disk_id"] == table["id"].lower()


@root_only
def test_the_kernel_mounts_ext4_from_the_mount(stage: Stage) -> None:
    with loop_mounted(
        stage.room / "now/p2.raw", stage.room / "kernel", fs_type="ext4", options="ro,noload"
    ) as folder:
        for file in (file for file in stage.tuesday if file.volume == 2):
            content = folder.joinpath(file.path.lstrip("/")).read_bytes()
            assert hashlib.sha256(content).hexdigest() == file.sha256


@root_only
def test_ntfs_3g_reads_ntfs_from_the_mount(stage: Stage) -> None:
    need_tool("ntfs-3g")
    folder = stage.room / "ntfs"
    folder.mkdir()
    subprocess.run(["ntfs-3g", "-o", "ro", stage.room / "now/p3.raw", folder], check=True, timeout=600)
    try:
        for file in (file for file in stage.tuesday if file.volume == 3):
            content = folder.joinpath(file.path.lstrip("/")).read_bytes()
            assert hashlib.sha256(content).hexdigest() == file.sha256
    finally:
        subprocess.run(["umount", folder], check=True, timeout=600)


def test_a_restored_partition_passes_its_own_checker(stage: Stage) -> None:
    need_tool("e2fsck", "fsck.fat")
    for number, checker in ((1, ("fsck.fat", "-n")), (2, ("e2fsck", "-fn"))):
        target = stage.room / f"p{number}.raw"
        imagefs(stage.room, "restore", "set", str(target), "--partition", str(number), "--verify")
        tool_text(*checker, target)


def test_the_images_and_the_mount_agree_without_a_trace(stage: Stage) -> None:
    """Reading changed neither a byte nor a time of the images."""
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in (stage.room / "set").iterdir()}
    imagefs(stage.room, "verify", "set", "--all")
    imagefs(stage.room, "verify", "set", "--against", "disk.raw")
    assert {
        path: (path.stat().st_mtime_ns, path.stat().st_size) for path in (stage.room / "set").iterdir()
    } == before
