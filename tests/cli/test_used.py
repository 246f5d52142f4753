"""Used-block capture from the command line: what is left out, what is told, what comes back."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tests.support.images import noise
from tests.support.oracles import need_tool, run_tool, tool_text


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
    assert "most deleted files, is not in this image" in shown.splitlines()[-1], "a set keeps its mode"
    shown = cli("capture", "disk.raw", "set", "--verify").text
    assert "verified" in shown
    assert "most deleted files, is not in this image" in shown.splitlines()[-1]
    told = cli("info", "set").text
    assert "by its ext block bitmaps" in told
    assert "2.0 MiB captured, all of it, because no file system is known on it" in told


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


@pytest.fixture
def windows(tmp_path: Path) -> Path:
    """GPT: FAT32, NTFS with the files that Windows keeps memory in, swap, exFAT; deleted files in two."""
    need_tool("mkfs.fat", "mcopy", "mdel", "mkntfs", "ntfscp", "mkswap", "mkfs.exfat", "sgdisk")
    files, path = tmp_path / "in", tmp_path / "disk.raw"
    files.mkdir()
    for number in range(10):
        (files / f"f{number}").write_bytes(noise(300_000 + number, number + 1))
    parts = [tmp_path / f"part{number}" for number in range(1, 5)]
    for part, size in zip(parts, (40, 40, 8, 20), strict=True):
        run_tool(["truncate", "-s", f"{size}M", part])
    run_tool(["mkfs.fat", "-F", "32", "-s", "1", parts[0]])
    names = [f"f{number}" for number in range(10)]
    run_tool(["mcopy", "-i", parts[0], *(files / name for name in names), "::/"])
    run_tool(["mdel", "-i", parts[0], "::/f0", "::/f1"])
    run_tool(["mkntfs", "-q", "-F", "-f", parts[1]])
    for name in ("f5", "f6"):
        run_tool(["ntfscp", "-q", "-f", parts[1], files / name, name])
    (files / "memory").write_bytes(noise(2_000_000, 77))
    for name in ("pagefile.sys", "swapfile.sys"):
        run_tool(["ntfscp", "-q", "-f", parts[1], files / "memory", name])
    parts[2].write_bytes(noise(8 * 2**20, 88))
    run_tool(["mkswap", parts[2]])
    run_tool(["mkfs.exfat", parts[3]])
    run_tool(["truncate", "-s", "112M", path])
    run_tool(
        [
            "sgdisk",
            "-n",
            "1:2048:+40M",
            "-n",
            "2:0:+40M",
            "-n",
            "3:0:+8M",
            "-t",
            "3:8200",
            "-n",
            "4:0:+20M",
            path,
        ]
    )
    with path.open("r+b") as out:
        for part, start in zip(parts, (1, 41, 81, 89), strict=True):
            out.seek(start * 2**20)
            out.write(part.read_bytes())
    return path


def cut(disk: Path, start: int, size: int) -> Path:
    """A partition of ``disk`` as a file; MiB."""
    part = disk.with_suffix(f".{start}")
    with disk.open("rb") as giver:
        giver.seek(start * 2**20)
        part.write_bytes(giver.read(size * 2**20))
    return part


def test_volumes_of_other_systems(cli: Cli, windows: Path, tmp_path: Path) -> None:
    """What is restored passes each file system's own check, and every file is the same."""
    need_tool("fsck.fat", "ntfsfix", "ntfscat", "fsck.exfat", "swaplabel")
    made = cli("capture", "disk.raw", "set", "--json")
    assert made.code == 0, made.err
    told = {row["id"]: (row["source"], row["whole"]) for row in made.document["volumes"]}
    assert told == {
        "p1": ("file allocation table", ""),
        "p2": ("NTFS $Bitmap", ""),
        "p3": ("swap header", ""),
        "p4": ("exFAT allocation bitmap", ""),
    }
    assert next(row["used"] for row in made.document["volumes"] if row["id"] == "p3") == 4096
    assert cli("info", "set", "--json").document["allocation"][0]["source"] == "file allocation table"
    assert cli("restore", "set", "restored.raw").code == 0
    restored, original = tmp_path / "restored.raw", windows.read_bytes()
    data = restored.read_bytes()
    assert data[: 2**20] == original[: 2**20], "boot area and GPT"
    assert data[109 * 2**20 :] == original[109 * 2**20 :], "the backup GPT"
    fat, ntfs, swap, exfat = (cut(restored, *place) for place in ((1, 40), (41, 40), (81, 8), (89, 20)))
    run_tool(["fsck.fat", "-n", fat])
    run_tool(["ntfsfix", "-n", ntfs])
    run_tool(["fsck.exfat", "-n", exfat])
    run_tool(["swaplabel", swap])
    out = tmp_path / "out"
    out.mkdir()
    run_tool(["mcopy", "-i", fat, "-s", "::/", out])
    assert sorted(each.name for each in out.iterdir()) == [f"f{number}" for number in range(2, 10)]
    for number in range(2, 10):
        assert (out / f"f{number}").read_bytes() == noise(300_000 + number, number + 1)
    for number in (5, 6):
        content = run_tool(["ntfscat", "-f", ntfs, f"f{number}"]).stdout
        assert content == noise(300_000 + number, number + 1)
    for name in ("pagefile.sys", "swapfile.sys"):
        assert run_tool(["ntfscat", "-f", ntfs, name]).stdout == bytes(2_000_000)
    assert noise(300_000, 1) not in data, "what was deleted is not there"
    assert swap.read_bytes()[4096:] == bytes(8 * 2**20 - 4096)


def test_swap_is_kept_on_demand(cli: Cli, windows: Path, tmp_path: Path) -> None:
    made = cli("capture", "disk.raw", "set", "--keep-swap", "--json")
    assert made.code == 0, made.err
    row = next(row for row in made.document["volumes"] if row["id"] == "p3")
    assert (row["used"], row["whole"]) == (8 * 2**20, "it was asked to keep swap")
    assert cli("restore", "set", "restored.raw").code == 0
    assert cut(tmp_path / "restored.raw", 81, 8).read_bytes() == cut(windows, 81, 8).read_bytes()
    ntfs = cut(tmp_path / "restored.raw", 41, 40)
    for name in ("pagefile.sys", "swapfile.sys"):
        assert run_tool(["ntfscat", "-f", ntfs, name]).stdout == noise(2_000_000, 77)


@pytest.mark.parametrize("head", [b"wake", b"hibr"])
def test_what_windows_keeps_memory_in_on_fat(cli: Cli, tmp_path: Path, head: bytes) -> None:
    """Left out as on NTFS; while a machine sleeps in it, all of the volume is taken."""
    need_tool("mkfs.fat", "mcopy", "mtype", "fsck.fat")
    path, memory = tmp_path / "disk.raw", tmp_path / "memory"
    memory.write_bytes(head + noise(1_000_000, 5))
    run_tool(["truncate", "-s", "40M", path])
    run_tool(["mkfs.fat", "-F", "32", "-s", "1", path])
    run_tool(["mcopy", "-i", path, memory, "::/HIBERFIL.SYS"])
    run_tool(["mcopy", "-i", path, memory, "::/kept"])
    (row,) = cli("capture", "disk.raw", "set", "--json").document["volumes"]
    assert ("hibernated" in row["whole"]) is (head == b"hibr")
    assert cli("restore", "set", "restored.raw").code == 0
    run_tool(["fsck.fat", "-n", tmp_path / "restored.raw"])
    restored = {
        name: run_tool(["mtype", "-i", tmp_path / "restored.raw", f"::/{name}"]).stdout
        for name in ("HIBERFIL.SYS", "kept")
    }
    assert restored["kept"] == memory.read_bytes()
    assert restored["HIBERFIL.SYS"] == (memory.read_bytes() if head == b"hibr" else bytes(1_000_004))


def test_states_on_the_mount(cli: Cli, windows: Path, tmp_path: Path) -> None:
    """Skipped is told apart from zero, on the disk, on a volume, and on a file that was left out."""
    need_tool("getfattr", "fusermount3")
    assert cli("capture", "disk.raw", "set").code == 0
    states = cli("info", "set", "--json").document["states"]
    assert cli("mount", "set", "mnt").code == 0
    try:
        place = tmp_path / "mnt"
        for word in ("stored", "zero", "skipped", "unreadable"):
            told = os.getxattr(place / "disk.raw", f"user.imagefs.{word}")
            assert int(told) == states[word]
        assert int(os.getxattr(place / "p3.raw", "user.imagefs.skipped")) > 7 * 2**20
        assert int(os.getxattr(place / "p2" / "pagefile.sys", "user.imagefs.skipped")) > 1_500_000
        assert int(os.getxattr(place / "p2" / "f5", "user.imagefs.skipped")) == 0
        assert "user.imagefs.skipped" in tool_text("getfattr", "-d", place / "disk.raw")
        assert (place / "p2" / "pagefile.sys").read_bytes() == bytes(2_000_000)
    finally:
        assert cli("umount", "mnt").code == 0


def test_where_used_is_not_the_default(cli: Cli, disk: Path, tmp_path: Path) -> None:
    """Standard input, digests of the device and case data want every sector."""
    assert cli("capture", "-", "one", "--json", stdin=disk.read_bytes()).document["mode"] == "all"
    assert cli("capture", "disk.raw", "two", "--json", "--hash", "md5").document["mode"] == "all"
    assert cli("capture", "disk.raw", "three", "--json", "--examiner", "me").document["mode"] == "all"
    assert cli("capture", "disk.raw", "four", "--json").document["mode"] == "used"
    refused = cli("capture", "disk.raw", "five", "--mode", "used", "--hash", "md5")
    assert (refused.code, "--mode all" in refused.err) == (2, True)
