"""Used-block capture from the command line: what is left out, what is told, what comes back."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tests.support.images import noise
from tests.support.oracles import need_tool, run_tool


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """GPT: an ext4 file system with deleted files in it, and a partition of nobody knows what."""
    need_tool("mke2fs", "debugfs", "sgdisk", "e2fsck")
    files, path, part = tmp_path / "files", tmp_path / "disk.raw", tmp_path / "part"
    files.mkdir()
    for number in range(30):
        (files / f"f{number}").write_bytes(noise(200_000 + number, number + 1))
    run_tool(["truncate", "-s", "40M", part])
    run_tool(["mke2fs", "-q", "-F", "-t", "ext4", "-d", files, part])
    for number in range(0, 30, 2):
        run_tool(["debugfs", "-w", "-R", f"rm f{number}", part])
    run_tool(["truncate", "-s", "48M", path])
    run_tool(["sgdisk", "-n", "1:2048:+40M", "-n", "2:0:+2M", path])
    with path.open("r+b") as out:
        out.seek(2**20)
        out.write(part.read_bytes())
        out.seek(42 * 2**20)
        out.write(noise(10_000, 99))
    return path


def whole_file_system(raw: Path, tmp_path: Path) -> None:
    part = tmp_path / "restored.part"
    part.write_bytes(raw.read_bytes()[2**20 : 41 * 2**20])
    run_tool(["e2fsck", "-f", "-n", part])
    out = tmp_path / "out"
    subprocess.run(["rm", "-rf", os.fspath(out)], check=True)
    out.mkdir()
    run_tool(["debugfs", "-R", f"rdump / {out}", part])
    for number in range(1, 30, 2):
        assert (out / f"f{number}").read_bytes() == noise(200_000 + number, number + 1)


def test_used_blocks_only(cli: Cli, disk: Path, tmp_path: Path) -> None:
    made = cli("capture", "disk.raw", "set", "--mode", "used", "--json")
    assert made.code == 0, made.err
    first, second = made.document["volumes"]
    assert (first["id"], first["whole"], first["source"]) == ("p1", "", "ext block bitmaps")
    assert first["used"] < 12_000_000
    assert (second["used"], second["whole"]) == (2 * 2**20, "no file system is known on it")
    whole = cli("capture", "disk.raw", "other", "--mode", "all", "--json").document
    assert made.document["stored_bytes"] < whole["stored_bytes"] - 2_500_000
    states = cli("info", "set", "--json").document["states"]
    assert states["skipped"] > 20_000_000
    assert cli("verify", "set", "--against", "disk.raw").code == 0
    assert cli("restore", "set", "restored.raw").code == 0
    whole_file_system(tmp_path / "restored.raw", tmp_path)
    restored, original = (tmp_path / "restored.raw").read_bytes(), disk.read_bytes()
    assert restored[: 2**20] == original[: 2**20], "boot area, GPT and gap"
    assert restored[41 * 2**20 :] == original[41 * 2**20 :], "what is not understood, and the backup GPT"
    assert noise(200_000, 1) in original
    assert noise(200_000, 1) not in restored, "the deleted file is not in the image"
    shown = cli("capture", "disk.raw", "set", "--kind", "full").text
    assert "most deleted files, is not in this image" in shown, "a set keeps its mode"


def test_a_child_keeps_the_mode_and_what_is_freed_is_left_out(cli: Cli, disk: Path, tmp_path: Path) -> None:
    assert cli("capture", "disk.raw", "set", "--mode", "used").code == 0
    nothing = cli("capture", "disk.raw", "set", "--json").document
    assert (nothing["kind"], nothing["mode"]) == ("incremental", "used")
    assert nothing["stored_bytes"] < 60_000
    part = tmp_path / "part"
    run_tool(["debugfs", "-w", "-R", "rm f1", part])
    (tmp_path / "new").write_bytes(noise(300_000, 77))
    run_tool(["debugfs", "-w", "-R", f"write {tmp_path / 'new'} new", part])
    with disk.open("r+b") as out:
        out.seek(2**20)
        out.write(part.read_bytes())
    assert cli("capture", "disk.raw", "set", "--json").document["mode"] == "used"
    assert cli("verify", "set", "--against", "disk.raw").code == 0
    assert cli("cat", "set", "/p1/new").out == noise(300_000, 77)
    every = cli("capture", "disk.raw", "set", "--mode", "all", "--json").document
    assert every["mode"] == "all"
    assert cli("restore", "set", "restored.raw").code == 0
    assert (tmp_path / "restored.raw").read_bytes() == disk.read_bytes(), (
        "in mode all nothing skipped is inherited"
    )


def test_a_file_system_that_needs_its_journal_is_captured_whole(cli: Cli, disk: Path, tmp_path: Path) -> None:
    with disk.open("r+b") as out:
        out.seek(2**20 + 1024 + 58)
        out.write(b"\0\0")
    made = cli("capture", "disk.raw", "set", "--mode", "used")
    assert "all of it, because" in made.text
    assert cli("restore", "set", "restored.raw").code == 0
    assert (tmp_path / "restored.raw").read_bytes() == disk.read_bytes()


def test_modes_that_cannot_be(cli: Cli, disk: Path) -> None:
    for words in (["--case", "1"], ["--hash", "md5"]):
        refused = cli("capture", "disk.raw", "set", "--mode", "used", *words)
        assert (refused.code, "--mode all" in refused.err) == (2, True)
    streamed = cli("capture", "-", "set", "--mode", "used", stdin=b"x" * 5000)
    assert streamed.code == 2
