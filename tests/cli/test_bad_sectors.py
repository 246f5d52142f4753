"""Capturing a disk with bad sectors, from the command line."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tests.support.images import noise
from tests.support.oracles import failing_disk, need_tool, run_tool, tool_text

SIZE = 2_000_384  # 3907 sectors
BAD = (9, 10, 11, 500, 3906)
ZEROED = bytearray(noise(SIZE))
for _sector in BAD:
    ZEROED[512 * _sector : 512 * _sector + 512] = bytes(512)


def test_the_rest_is_captured_and_the_report_is_honest(cli: Cli, tmp_path: Path) -> None:
    need_tool("ddrescue", "ddrescuelog")
    (tmp_path / "good").write_bytes(noise(SIZE))
    with failing_disk(tmp_path / "good", tmp_path / "bad.raw", BAD):
        made = cli("capture", "bad.raw", "set", "--json", "--forensic", "--verify")
        assert made.code == 3, made.err
        limited = cli("capture", "bad.raw", "other", "--max-errors", "4")
        assert (limited.code, "--max-errors" in limited.err) == (10, True)
        text = cli("capture", "bad.raw", "third")
        assert (text.code, "could not be read" in text.err) == (3, True)
        run_tool(
            ["ddrescue", "-q", "-d", tmp_path / "bad.raw", tmp_path / "rescued", tmp_path / "map"],
            timeout=600,
        )
    assert made.document["unreadable_bytes"] == 512 * len(BAD)
    assert made.document["digests"]["sha256"] == hashlib.sha256(ZEROED).hexdigest()
    assert set(made.document["verification"].values()) == {"MATCH"}
    told = cli("info", "set", "--json").document
    ranges = [{"offset": 512 * 9, "length": 1536}, {"offset": 512 * 500, "length": 512}]
    assert told["unreadable"] == [*ranges, {"offset": 512 * 3906, "length": 512}]
    assert "unreadable: 1536 bytes at 4608" in cli("info", "set").text
    for states in (told["states"], told["layer_states"]):
        assert (states["unreadable"], sum(states.values())) == (2560, SIZE)
    report = (tmp_path / (made.document["path"] + ".txt")).read_text()
    words = ["In the Image: 3907", "Unreadable: 5", "Error Granularity: 1 sector of 512 bytes"]
    words += [
        "Retries: each bad sector 1 more, ",
        " reads around",
        "Read as: zeros, in the image and in the hashes",
    ]
    places = [report.index(each) for each in words]
    assert places == sorted(places), report
    beside = cli("info", "set", "--hashes").text.splitlines()
    assert beside[0] == "# 2560 bytes could not be read: zeros, in the image and in the hashes"
    (tmp_path / "disk.raw").write_bytes(ZEROED)
    (tmp_path / "sums").write_text("\n".join(beside) + "\n")
    assert tool_text("sh", "-c", f"cd {tmp_path} && sha256sum --strict -c sums") == "disk.raw: OK\n"
    assert "zeros, in the image and in the hashes" in cli("info", "set").text
    (tmp_path / "own.map").write_bytes(cli("info", "set", "--mapfile").out)
    run_tool(["ddrescuelog", "-P", tmp_path / "map", tmp_path / "own.map"])
    assert cli("restore", "set", "restored.raw").code == 0
    assert (tmp_path / "restored.raw").read_bytes() == bytes(ZEROED)
    assert cli("verify", "set").code == 0


def test_a_mapfile_beside_a_rescue_image(cli: Cli, tmp_path: Path) -> None:
    """What ddrescue could not read is unreadable in the image, not data that happen to be zeros."""
    (tmp_path / "rescued").write_bytes(ZEROED)
    lines = [
        "# Mapfile",
        "0x0 + 1",
        "0x0 0x1200 +",
        "0x1200 0x600 -",
        "0x1800 0x100000 +",
        "0x101800 0x400 ?",
    ]
    (tmp_path / "map").write_text("\n".join(lines) + "\n")
    made = cli("capture", "rescued", "set", "--mapfile", "map", "--json")
    assert (made.code, made.document["unreadable_bytes"]) == (3, 0xA00)
    assert [row["length"] for row in cli("info", "set", "--json").document["unreadable"]] == [0x600, 0x400]
    (tmp_path / "map").write_text("0x0 + 1\nnonsense\n")
    wrong = cli("capture", "rescued", "set", "--mapfile", "map")
    assert (wrong.code, "line 2 of the mapfile map makes no sense" in wrong.err) == (10, True)


def test_a_mount_gives_zeros_or_errors(cli: Cli, tmp_path: Path) -> None:
    """Sectors 9 to 11 and 500 are bad: with eio their pages fail, all others are as they were."""
    need_tool("fusermount3")
    (tmp_path / "rescued").write_bytes(ZEROED)
    (tmp_path / "map").write_text(
        "0x0 + 1\n0x0 0x1200 +\n0x1200 0x600 -\n0x1800 0x3D000 +\n0x3E800 0x200 -\n"
    )
    assert cli("capture", "rescued", "set", "--mapfile", "map").code == 3
    (tmp_path / "mnt").mkdir()
    for how in ("zeros", "eio"):
        assert cli("mount", "set", "mnt", "--unreadable", how).code == 0
        try:
            with (tmp_path / "mnt/disk.raw").open("rb", buffering=0) as disk:
                for page in range(0, SIZE, 4096):
                    disk.seek(page)
                    if how == "eio" and page in (0x1000, 0x3E000):
                        with pytest.raises(OSError, match="Input/output"):
                            disk.read(4096)
                    else:
                        assert disk.read(4096) == ZEROED[page : page + 4096]
                told = os.getxattr(disk.fileno(), "user.imagefs.unreadable")
                assert told == b"2048", "to the sector, inside of stored chunks too"
                assert os.lseek(disk.fileno(), 512 * 9, os.SEEK_DATA) == 512 * 9, "no hole to be passed over"
        finally:
            assert cli("umount", "mnt").code == 0


def test_files_in_bad_places_by_name(cli: Cli, tmp_path: Path) -> None:
    """``info --affected`` after a capture around bad sectors; ``verify`` after damage to the image."""
    need_tool("mke2fs")
    files, disk = tmp_path / "files", tmp_path / "good"
    files.mkdir()
    for number in range(5):
        (files / f"f{number}").write_bytes(noise(200_000, number + 1))
    run_tool(["truncate", "-s", "8M", disk])
    run_tool(["mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-d", files, disk])
    data = disk.read_bytes()
    two, four = (data.find(noise(200_000, number + 1)[:16]) // 512 for number in (2, 4))
    with failing_disk(disk, tmp_path / "bad.raw", [two + 5, four, four + 1, 16_000]):
        made = cli("capture", "bad.raw", "set", "--mode", "all", "--json")
    assert made.code == 3, made.err
    told = cli("info", "set", "--affected", "--json").document
    assert told["unreadable"] == 4 * 512
    rows = [(row["volume"], row["path"], row["offset"], row["length"]) for row in told["affected"]]
    assert rows == sorted(
        [("p0", "/f2", (two + 5) * 512, 512), ("p0", "/f4", four * 512, 1024)], key=lambda row: row[2]
    )
    text = cli("info", "set", "--affected").text
    assert f"1024 bytes at {four * 512}: /p0/f4" in text
    assert f"512 bytes at {16_000 * 512}: no file" in text
    image = tmp_path / made.document["path"]
    stored = bytearray(image.read_bytes())
    at = stored.find(noise(200_000, 1)[64:128])
    assert at > 0, "noise is stored as it is"
    stored[at] ^= 1
    image.write_bytes(stored)
    found = cli("verify", "set", "--json")
    assert found.code == 4
    assert "/p0/f0" in [name for row in found.document["findings"] for name in row["files"]]
    assert "  in /p0/f0" in cli("verify", "set").text


def test_bad_places_of_a_used_block_capture(cli: Cli, ext4: Path, tmp_path: Path) -> None:
    """What was left out is told as not tried in the mapfile; a disk whose beginning cannot be read is
    captured whole, and that is told."""
    need_tool("ddrescuelog")
    with failing_disk(ext4, tmp_path / "bad.raw", [0]):
        whole = cli("capture", "bad.raw", "one", "--json")
    assert whole.code == 3
    (use,) = whole.document["volumes"]
    assert (use["id"], use["used"]) == ("disk", ext4.stat().st_size)
    assert "cannot be read" in use["whole"]
    root = int(tool_text("debugfs", "-R", "blocks /report.txt", ext4).split()[-1])
    with failing_disk(ext4, tmp_path / "bad.raw", [root * 2]):
        made = cli("capture", "bad.raw", "two", "--json")
    assert (made.code, made.document["unreadable_bytes"]) == (3, 512)
    skipped = cli("info", "two", "--json").document["states"]["skipped"]
    assert skipped > 8 * 2**20
    (tmp_path / "map").write_bytes(cli("info", "two", "--mapfile").out)
    told = tool_text("ddrescuelog", "-l", "?", "-b", "512", tmp_path / "map").split()
    assert len(told) * 512 >= skipped
    bad = tool_text("ddrescuelog", "-l", "-", "-b", "512", tmp_path / "map").split()
    assert bad == [str(root * 2)]
