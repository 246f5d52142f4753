"""Ctrl-C, kill and resume of real processes."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tests.cli.test_sets import wait_for
from tests.support.oracles import loop_device, root_only, run_tool


@pytest.fixture
def big(tmp_path: Path) -> Path:
    path = tmp_path / "big.raw"
    path.write_bytes(os.urandom(24_000_000) + bytes(3_000_000) + os.urandom(1_000_001))
    return path


def begin(tmp_path: Path, *words: str) -> subprocess.Popen[bytes]:
    """A capture at 4 MB a second that has written some of its image."""
    command = [sys.executable, "-m", "imagefs", "capture", "big.raw", "set", "--rate", "4M", *words]
    running = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    wait_for(lambda: any(found.stat().st_size > 4_000_000 for found in (tmp_path / "set").glob("*.partial")))
    return running


@pytest.mark.parametrize(("signal", "code"), [("INT", 130), ("TERM", 143), ("HUP", 129)])
def test_a_signal_keeps_what_was_done_and_says_how_to_go_on(
    cli: Cli, big: Path, tmp_path: Path, signal: str, code: int
) -> None:
    running = begin(tmp_path, "--forensic", "--case", "7")
    subprocess.run(["kill", f"-{signal}", str(running.pid)], check=True)
    _, told = running.communicate(timeout=600)
    assert running.returncode == code
    assert b"go on with: imagefs capture big.raw set --rate 4M --forensic --case 7 --resume\n" in told
    assert b"nothing half-done" not in told
    listed = cli("list", "set", "--json").document
    (partial,) = listed["partials"]
    assert (partial["in_progress"], listed["images"]) == (False, [])
    assert (partial["size"] > 4_000_000, partial["resumable"]) == (True, True)
    assert "unfinished" in cli("list", "set").text
    made = cli("capture", "big.raw", "set", "--resume", "--json")
    assert made.code == 0, made.err
    told_of_all = cli("info", "set", "--json").document["read_bytes"]
    assert made.document["read_bytes"] == told_of_all > big.stat().st_size - 4_000_000
    assert made.document["resumed_bytes"] >= 4_000_000
    assert set(made.document["verification"].values()) == {"MATCH"}
    assert (tmp_path / (made.document["path"] + ".txt")).exists()
    assert cli("verify", "set", "--against", "big.raw").code == 0
    assert cli("list", "set", "--json").document["partials"] == []


def test_partials_are_cleaned_but_not_those_being_written(cli: Cli, big: Path, tmp_path: Path) -> None:
    running = begin(tmp_path)
    busy = cli("list", "set", "--clean-partials")
    assert (busy.code, "at work" in busy.err) == (30, True)
    running.kill()
    running.wait()
    assert len(list((tmp_path / "set").glob("*.partial"))) == 1
    (partial,) = cli("list", "set", "--json").document["partials"]
    assert (partial["resumable"], partial["size"] < 16 * 2**20) == (False, True), (
        "killed before its first checkpoint"
    )
    assert "too short to go on with" in cli("list", "set").text
    assert "removed" in cli("list", "set", "--clean-partials").text
    assert list((tmp_path / "set").glob("*.partial")) == []
    refused = cli("capture", "big.raw", "set", "--resume")
    assert (refused.code, "no unfinished capture" in refused.err) == (2, True)


def test_a_second_signal_stops_at_once(big: Path, tmp_path: Path) -> None:
    running = begin(tmp_path)
    for _ in range(2):
        subprocess.run(["kill", "-INT", str(running.pid)], check=True)
        time.sleep(0.05)
    running.communicate(timeout=600)
    assert running.returncode == 130


def test_programs_are_told_how_to_go_on_too(cli: Cli, big: Path, tmp_path: Path) -> None:
    """With --json the failure is the document, a signal too; what is told can be run as it is."""
    command = [
        sys.executable,
        "-m",
        "imagefs",
        "capture",
        "big.raw",
        "--rate",
        "4M",
        "--json",
        "--note",
        "it's",
    ]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "IMAGEFS_SET": "set"},
    ) as running:
        wait_for(lambda: any(f.stat().st_size > 2_000_000 for f in (tmp_path / "set").glob("*.partial")))
        subprocess.run(["kill", "-INT", str(running.pid)], check=True)
        out, _ = running.communicate(timeout=600)
    error = json.loads(out)["error"]
    assert (running.returncode, error["exit"], error["code"]) == (130, 130, "interrupted")
    words = shlex.split(error["resume"])
    assert words[:2] == ["imagefs", "capture"]
    made = cli(*words[1:])
    assert (made.code, made.document["resumed_bytes"] > 0) == (0, True)


def test_only_what_this_run_left_is_told_of(cli: Cli, big: Path, tmp_path: Path) -> None:
    """A failure beside somebody's unfinished capture is not taken for that one's."""
    running = begin(tmp_path)
    subprocess.run(["kill", "-INT", str(running.pid)], check=True)
    running.communicate(timeout=600)
    (tmp_path / "other").write_bytes(bytes(1_000_000))
    for words in (("capture", "other", "set", "--resume"), ("capture", "big.raw", "set", "--kind", "incr")):
        failed = cli(*words)
        assert failed.code in (10, 22), failed.err
        assert "is kept" not in failed.err


def test_signals_are_heard_while_a_low_rate_is_waited_for(big: Path, tmp_path: Path) -> None:
    """At 1,000 bytes a second the first 24 million would take hours; one signal is enough."""
    command = [
        sys.executable,
        "-m",
        "imagefs",
        "capture",
        "big.raw",
        "set",
        "--rate",
        "1000",
        "--no-estimate",
    ]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE) as running:
        wait_for(lambda: list((tmp_path / "set").glob("*.partial")))
        time.sleep(0.3)
        subprocess.run(["kill", "-INT", str(running.pid)], check=True)
        running.communicate(timeout=600)
    assert running.returncode == 130


def test_a_capture_killed_early_and_a_full_set_leave_something_to_go_on_with(
    cli: Cli, big: Path, tmp_path: Path
) -> None:
    running = begin(tmp_path)
    wait_for(lambda: any(f.stat().st_size > 19_000_000 for f in (tmp_path / "set").glob("*.partial")))
    running.kill()
    running.wait()
    made = cli("capture", "big.raw", "set", "--resume", "--json")
    assert (made.code, made.document["resumed_bytes"] >= 16_000_000) == (0, True), made.err


@root_only
def test_a_full_disk_leaves_a_partial_and_the_command(cli: Cli, big: Path, tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    run_tool(["mount", "-t", "tmpfs", "-o", "size=20M", "none", tmp_path / "small"])
    try:
        full = cli("capture", "big.raw", "small/set")
        assert full.code == 30
        assert "no space left" in full.err
        assert "go on with: imagefs capture big.raw small/set --resume" in full.err
        assert cli("list", "small/set", "--json").document["images"] == []
        run_tool(["mount", "-o", "remount,size=60M", tmp_path / "small"])
        assert cli("capture", "big.raw", "small/set", "--resume").code == 0
        assert cli("verify", "small/set", "--against", "big.raw").code == 0
    finally:
        run_tool(["umount", tmp_path / "small"])


@root_only
def test_a_set_on_its_own_source_is_one_plain_sentence(cli: Cli, ext4: Path, tmp_path: Path) -> None:
    (tmp_path / "mnt").mkdir()
    with loop_device(ext4) as device:
        run_tool(["mount", "-o", "ro", device, tmp_path / "mnt"])
        try:
            refused = cli("capture", device, "mnt/set")
        finally:
            run_tool(["umount", tmp_path / "mnt"])
    assert (refused.code, "lies on the source" in refused.err) == (10, True), refused.err


def test_no_rate_at_all_is_no_rate(cli: Cli, big: Path) -> None:
    refused = cli("capture", "big.raw", "set", "--rate", "0")
    assert (refused.code, "is nothing" in refused.err) == (2, True)
