"""ls, cat, stat, find, get and mount by the command line, on an ext4 made by mke2fs."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.cli.conftest import Cli


@pytest.fixture
def images(cli: Cli, ext4: Path) -> Cli:
    """A set with two images: /dir/plan.txt is gone in the second."""
    assert cli("capture", "ext4.raw", "set", "--mode", "all").code == 0
    subprocess.run(
        ["debugfs", "-w", "-R", "rm /dir/plan.txt", ext4], check=True, capture_output=True, timeout=600
    )
    assert cli("capture", "ext4.raw", "set", "--mode", "all").code == 0
    return cli


def test_volumes_are_listed_with_label_and_use(images: Cli) -> None:
    (row,) = images("ls", "set", "--json").document["entries"]
    assert (row["path"], row["filesystem"], row["label"]) == ("/p0", "ext4", "work")
    assert 0 < row["used"] < row["size"] == 16 * 2**20
    assert "work" in images("ls", "set").text


def test_ls_shows_each_point_in_time(images: Cli) -> None:
    assert images("ls", "set", "/p0/dir").out == b"link\n"
    assert images("ls", "set@latest~1", "/p0/dir").out == b"link\nplan.txt\n"
    assert images("ls", "set@latest~1", "/p0/dir", "-0").out == b"link\0plan.txt\0"
    document = images("ls", "set@latest~1", "/p0", "-R", "--json").document
    assert document["complete"] is True
    by_path = {row["path"]: row for row in document["entries"]}
    assert by_path["/p0/dir/link"]["type"] == "symlink"
    assert by_path["/p0/report.txt"]["size"] == 11
    assert {"path", "type", "size", "mtime", "inode", "deleted"} <= by_path["/p0/dir"].keys()


def test_inodes_are_those_fls_prints(images: Cli, ext4: Path) -> None:
    listed = subprocess.run(
        ["fls", "-rp", ext4], check=True, capture_output=True, text=True, timeout=600
    ).stdout
    expected = {
        line.split("\t")[1]: line.split()[1].rstrip(":")
        for line in listed.splitlines()
        if "*" not in line.split("\t")[0] and not line.endswith("$OrphanFiles")
    }
    rows = images("ls", "set", "/p0", "-R", "--json").document["entries"]
    assert {row["path"].removeprefix("/p0/"): row["inode"] for row in rows} == expected


def test_cat_stat_and_find(images: Cli) -> None:
    assert images("cat", "set", "/p0/report.txt").out == b"the report\n"
    stat = images("stat", "set@latest~1", "/p0/dir/link", "--json").document["entries"][0]
    assert stat["target"] == "plan.txt"
    assert images("find", "set@latest~1", "--name", "*.txt").out == b"/p0/dir/plan.txt\n/p0/report.txt\n"
    assert images("find", "set", "--name", "*.nothing").code == 0


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("cat", "set", "/p0/nothing"), 40, "nothing"),
        (("cat", "set", "/p0/dir"), 40, "directory"),
        (("ls", "set", "/p7/x"), 40, "p0"),
        (("ls", "set", "etc"), 2, "/p2/"),
        (("ls", "set", "\\p0\\dir"), 2, "/p0/dir"),
        (("get", "set", "/p0/report.txt", "/p0/dir"), 2, "DEST"),
        (("get", "set", "/p0/report.txt"), 2, "DEST"),
        (("get", "set", "/p0/report.txt", "/p0/dir/link", "nofolder"), 2, "folder"),
    ],
)
def test_bad_paths_get_one_sentence(images: Cli, words: tuple[str, ...], code: int, said: str) -> None:
    ran = images(*words)
    assert ran.code == code
    assert said in ran.err


def test_get_follows_cp_and_overwrites_nothing(images: Cli, tmp_path: Path) -> None:
    assert images("get", "set@latest~1", "/p0/dir/plan.txt", "got.txt").code == 0
    assert (tmp_path / "got.txt").read_text() == "a plan\n"
    (tmp_path / "into").mkdir()
    assert images("get", "set@latest~1", "/p0/dir", "/p0/report.txt", "into").code == 0
    assert (tmp_path / "into/dir/plan.txt").read_text() == "a plan\n"
    assert os.readlink(tmp_path / "into/dir/link") == "plan.txt"
    (tmp_path / "got.txt").write_text("mine")
    assert images("get", "set@latest~1", "/p0/dir/plan.txt", "got.txt").code != 0
    assert (tmp_path / "got.txt").read_text() == "mine"
    assert images("get", "set@latest~1", "/p0/dir/plan.txt", "got.txt", "--overwrite").code == 0
    assert (tmp_path / "got.txt").read_text() == "a plan\n"
    assert images("get", "set", "/p0/report.txt", "-").out == b"the report\n"


def test_mount_shows_disk_partitions_tree_and_facts(images: Cli, ext4: Path, tmp_path: Path) -> None:
    assert images("mount", "set", "mnt").code == 0
    try:
        here = tmp_path / "mnt"
        subprocess.run(["cmp", here / "disk.raw", ext4], check=True, timeout=600)
        subprocess.run(["cmp", here / "p0.raw", ext4], check=True, timeout=600)
        assert (here / "p0/report.txt").read_text() == "the report\n"
        assert json.loads((here / "image.json").read_text())["kind"] == "incremental"
        (listed,) = images("mount", "--json").document["mounts"]
        assert listed["directory"] == str(here)
        assert listed["errors"] == 0
    finally:
        assert images("umount", "mnt").code == 0
    assert not (tmp_path / "mnt").exists()
    assert images("mount", "--json").document["mounts"] == []


def restored(images: Cli) -> bytes:
    """The older image's disk, before anything is damaged."""
    return images("restore", "set@latest~1", "-").out


def test_a_bad_chunk_is_eio_on_the_mount_and_the_rest_is_right(
    images: Cli, ext4: Path, tmp_path: Path
) -> None:
    expected = restored(images)
    full = next((tmp_path / "set").glob("*-full-*"))
    full.chmod(0o600)
    with full.open("r+b") as file:
        file.seek(600)
        file.write(b"\xff" * 8)
    (finding,) = images("verify", "set@latest~1", "--json").document["findings"]
    bad = finding["offset"]
    assert images("mount", "set@latest~1", "mnt").code == 0
    try:
        fd = os.open(tmp_path / "mnt/disk.raw", os.O_RDONLY)
        try:
            with pytest.raises(OSError, match="Input/output error"):
                os.pread(fd, 4096, bad)
            # Across the bad chunk: what comes back may end where the damage begins, and is right.
            start = max(0, bad - 65536)
            with contextlib.suppress(OSError):
                assert os.pread(fd, 131072, start) == expected[start:bad]
            after = bad + finding["length"]
            assert os.pread(fd, 131072, after) == expected[after : after + 131072]
        finally:
            os.close(fd)
        (listed,) = images("mount", "--json").document["mounts"]
        assert f"chunk {finding['chunk']}" in Path(listed["log"]).read_text()
    finally:
        assert images("umount", "mnt").code == 0
