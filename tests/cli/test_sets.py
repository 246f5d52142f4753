"""capture, list, info, verify, delete, restore, clone by the command line: words, fields, exit codes."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.conftest import Cli


def flip(path: Path, offset: int) -> None:
    """Change one byte of a read-only image."""
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0xFF]))


def test_bare_imagefs_says_what_it_is_for(cli: Cli) -> None:
    ran = cli()
    assert ran.code == 0
    for word in ("capture", "list", "mount", "get", "verify", "--help"):
        assert word in ran.text


def test_capture_gives_the_promised_fields_and_a_private_file(cli: Cli, disk: Path, tmp_path: Path) -> None:
    document = cli("capture", "disk.raw", "set", "--json").document
    assert {"id", "kind", "path", "read_bytes", "stored_bytes", "seconds"} <= document.keys()
    image = tmp_path / document["path"]
    assert document["kind"] == "full"
    assert image.stat().st_size == document["stored_bytes"]
    assert stat.S_IMODE(image.stat().st_mode) == 0o400
    assert stat.S_IMODE((tmp_path / "set").stat().st_mode) == 0o700
    assert document["read_bytes"] < disk.stat().st_size, "the hole is not read"


def test_kinds_follow_each_other_and_list_shows_the_tree(cli: Cli, disk: Path) -> None:
    kinds = ["auto", "auto", "diff", "incremental", "full"]
    made = [cli("capture", "disk.raw", "set", "--kind", kind, "--json").document for kind in kinds]
    assert [each["kind"] for each in made] == ["full", "incremental", "differential", "incremental", "full"]
    rows = cli("list", "set", "--json").document["images"]
    assert [row["id"] for row in rows] == [each["id"] for each in made]
    assert [row["parent"] for row in rows] == [None, made[0]["id"], made[0]["id"], made[2]["id"], None]
    assert {"id", "kind", "parent", "created", "path", "disk_size", "stored_bytes"} <= rows[0].keys()
    text = cli("list", "set").text
    assert "needed by 3 images" in text
    assert "needed by none" in text


def test_delete_starts_at_the_leaves(cli: Cli, disk: Path) -> None:
    for _ in range(3):
        cli("capture", "disk.raw", "set")
    refused = cli("delete", "set@latest~1", "--json")
    assert refused.code == 22
    assert refused.document["error"]["needed_by"]
    for _ in range(3):
        assert cli("delete", "set").code == 0
    assert cli("list", "set", "--json").document["images"] == []


def test_restore_and_clone_give_the_disk_back(cli: Cli, disk: Path, tmp_path: Path) -> None:
    cli("capture", "disk.raw", "set")
    assert cli("restore", "set", "out.raw", "--verify").code == 0
    assert cli("clone", "disk.raw", "copy.raw", "--verify").code == 0
    for name in ("out.raw", "copy.raw"):
        assert (tmp_path / name).read_bytes() == disk.read_bytes()
        assert (tmp_path / name).stat().st_blocks * 512 < 1_500_000, "zeros become holes"
    assert cli("restore", "set", "-").out == disk.read_bytes()
    refused = cli("restore", "set", "out.raw")
    assert refused.code == 11
    assert "--yes" in refused.err
    assert cli("restore", "set", "out.raw", "--yes").code == 0
    folder = cli("restore", "set", ".")
    assert folder.code == 2
    assert "imagefs get" in folder.err


def test_standard_input_is_a_source(cli: Cli, disk: Path) -> None:
    data = disk.read_bytes()
    assert cli("capture", "-", "set", stdin=data).code == 0
    assert cli("capture", "-", "set", stdin=data + b"grown" * 40_000).code == 0
    assert cli("restore", "set", "-").out == data + b"grown" * 40_000
    assert cli("restore", "set@latest~1", "-").out == data


def test_info_accounts_for_every_byte(cli: Cli, disk: Path) -> None:
    cli("capture", "disk.raw", "set", "--note", "first")
    cli("capture", "disk.raw", "set")
    info = cli("info", "set", "--json").document
    size = disk.stat().st_size
    assert sum(info["states"].values()) == size
    assert info["states"]["absent"] == 0
    assert info["layer_states"] == {"stored": 0, "zero": 0, "skipped": 0, "unreadable": 0, "absent": size}
    assert cli("info", "set@latest~1", "--json").document["note"] == "first"
    assert info["view_digest"] in cli("info", "set").text


def test_verify_names_image_chunk_and_range(cli: Cli, disk: Path, tmp_path: Path) -> None:
    made = cli("capture", "disk.raw", "set", "--json").document
    assert cli("verify", "set").code == 0
    assert cli("verify", "set", "--level", "quick", "--json").document["ok"] is True
    flip(tmp_path / made["path"], 5000)
    ran = cli("verify", "set", "--json")
    assert ran.code == 4
    (finding,) = ran.document["findings"]
    assert finding["image"] == made["id"]
    assert (finding["chunk"], finding["offset"], finding["length"]) == (0, 0, 65536)
    assert cli("restore", "set", "out.raw").code == 21
    assert not (tmp_path / "out.raw").exists()


def test_verify_against_a_source_finds_what_changed(cli: Cli, disk: Path) -> None:
    cli("capture", "disk.raw", "set")
    assert cli("verify", "set", "--against", "disk.raw").code == 0
    flip(disk, 123_456)
    ran = cli("verify", "set", "--against", "disk.raw", "--json")
    assert ran.code == 4
    (finding,) = ran.document["findings"]
    assert finding["code"] == "differs"
    assert finding["offset"] <= 123_456 < finding["offset"] + finding["length"] <= 123_456 + 512


def test_a_missing_parent_is_exit_22_and_4_in_verify(cli: Cli, disk: Path, tmp_path: Path) -> None:
    full = cli("capture", "disk.raw", "set", "--json").document
    child = cli("capture", "disk.raw", "set", "--json").document
    (tmp_path / full["path"]).unlink()
    assert cli("restore", "set", "-").code == 22
    assert cli("verify", "set").code == 4
    assert cli("capture", "disk.raw", "set", "--kind", "incr").code == 22
    assert "MISSING" in cli("list", "set").text
    again = cli("capture", "disk.raw", "set", "--json").document
    assert again["kind"] == "full"
    assert child["id"][:8] in again["warnings"][0]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("capture", "nothing.raw", "set"), 10, "does not exist"),
        (("capture", "disk.raw", "no/such/set"), 30, "no/such"),
        (("capture", "disk.raw", "set", "--chunk-size", "100K"), 2, "power of two"),
        (("list", "nowhere"), 30, "nowhere"),
        (("info", "disk.raw"), 20, "not an imagefs image"),
        (("frobnicate",), 2, "frobnicate"),
        (("verify",), 2, "IMAGEFS_SET"),
        (("list", "set", "--tz", "Mars/Olympus"), 2, "Mars"),
    ],
)
def test_bad_input_gets_one_sentence_and_its_code(
    cli: Cli, disk: Path, words: tuple[str, ...], code: int, said: str
) -> None:
    ran = cli(*words)
    assert ran.code == code
    assert said in ran.err
    assert ran.err.count("\n") == 1


def test_another_disk_is_refused_until_new_source(cli: Cli, disk: Path, tmp_path: Path) -> None:
    cli("capture", "disk.raw", "set")
    (tmp_path / "other.raw").write_bytes(b"x" * 100_000)
    assert cli("capture", "other.raw", "set").code == 10
    assert cli("capture", "other.raw", "set", "--new-source", "--json").document["kind"] == "full"


def test_images_of_other_programs_are_refused_by_name(cli: Cli, disk: Path, tmp_path: Path) -> None:
    subprocess.run(
        ["qemu-img", "convert", "-O", "qcow2", disk, tmp_path / "a.qcow2"], check=True, timeout=600
    )
    ran = cli("capture", "a.qcow2", "set")
    assert ran.code == 10
    assert "qemu-img convert" in ran.err
    assert cli("capture", "a.qcow2", "set", "--raw").code == 0
    image = cli("list", "set", "--json").document["images"][0]["path"]
    assert cli("capture", image, "set2").code == 10


def test_a_second_capture_is_refused_and_a_killed_one_leaves_no_lock(
    cli: Cli, disk: Path, tmp_path: Path
) -> None:
    slow = subprocess.Popen(
        [sys.executable, "-m", "imagefs", "capture", "-", "set"], stdin=subprocess.PIPE, cwd=tmp_path
    )
    assert slow.stdin is not None
    slow.stdin.write(disk.read_bytes())
    slow.stdin.flush()
    try:
        wait_for(lambda: list((tmp_path / "set").glob("*.partial")))
        refused = cli("capture", "disk.raw", "set")
        assert refused.code == 30
        assert "at work" in refused.err
        assert "at work" in cli("list", "set").text
    finally:
        slow.kill()
        slow.wait()
    assert "unfinished" in cli("list", "set").text
    assert cli("capture", "disk.raw", "set").code == 0
    assert "removed" in cli("list", "set", "--clean-partials").text
    assert cli("list", "set", "--json").document["partials"] == []


@pytest.mark.parametrize(("signal", "code"), [("INT", 130), ("TERM", 143), ("HUP", 129)])
def test_an_interrupted_capture_leaves_nothing(disk: Path, tmp_path: Path, signal: str, code: int) -> None:
    slow = subprocess.Popen(
        [sys.executable, "-m", "imagefs", "capture", "-", "set"], stdin=subprocess.PIPE, cwd=tmp_path
    )
    assert slow.stdin is not None
    slow.stdin.write(disk.read_bytes())
    slow.stdin.flush()
    wait_for(lambda: list((tmp_path / "set").glob("*.partial")))
    subprocess.run(["kill", f"-{signal}", str(slow.pid)], check=True)
    assert slow.wait(timeout=600) == code
    assert [path.name for path in (tmp_path / "set").iterdir()] == [".lock"]


def wait_for(happened: object, seconds: float = 300) -> None:
    """Until ``happened()`` is true; fails after ``seconds``."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if happened():  # type: ignore[operator]
            return
        time.sleep(0.02)
    raise AssertionError("it never happened")


def test_kill_9_at_twenty_moments_leaves_the_old_world(cli: Cli, tmp_path: Path) -> None:
    """After each kill the set holds what it held, whole, and takes the next capture."""
    source = tmp_path / "big.raw"
    with source.open("wb") as out:
        for _ in range(24):
            out.write(os.urandom(1_000_000) + bytes(1_000_000))
    cli("capture", "big.raw", "set")
    begun = time.monotonic()
    assert cli("capture", "big.raw", "set", "--kind", "full").code == 0
    whole = time.monotonic() - begun
    known = {row["id"] for row in cli("list", "set", "--json").document["images"]}
    for moment in range(20):
        words = [sys.executable, "-m", "imagefs", "capture", "big.raw", "set", "--kind", "full"]
        with subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.DEVNULL) as running:
            time.sleep(whole * moment / 20)
            running.kill()
        document = cli("list", "set", "--json").document
        found = {row["id"] for row in document["images"]}
        assert known <= found
        assert document["damaged"] == []
        for fresh in found - known:
            assert cli("verify", f"set@{fresh[:12]}").code == 0
        known = found
    assert cli("verify", "set", "--all").code == 0
    assert cli("capture", "big.raw", "set").code == 0


def test_the_log_tells_arguments_findings_and_exit_code(cli: Cli, disk: Path, tmp_path: Path) -> None:
    cli("capture", "disk.raw", "set", "--log", "log.txt")
    cli("list", "nowhere", "--log", "log.txt")
    text = (tmp_path / "log.txt").read_text()
    assert "capture disk.raw set" in text
    assert "exit 0" in text
    assert "exit 30" in text


def test_imagefs_set_stands_in(cli: Cli, disk: Path) -> None:
    cli("capture", "disk.raw", "set")
    env = {"IMAGEFS_SET": "set"}
    assert len(cli("list", "--json", env=env).document["images"]) == 1
    assert cli("info", "@latest", "--json", env=env).document["kind"] == "full"
    assert cli("capture", "disk.raw", "--json", env=env).document["kind"] == "incremental"


def test_a_closed_pipe_is_exit_141(disk: Path, cli: Cli, tmp_path: Path) -> None:
    cli("capture", "disk.raw", "set")
    script = f"{sys.executable} -m imagefs restore set - | head -c 10 >/dev/null; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, timeout=600, check=False)
    assert done.returncode == 141
