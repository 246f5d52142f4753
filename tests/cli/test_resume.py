"""Ctrl-C, kill and resume of real processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tests.cli.test_sets import wait_for


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
    _, told = running.communicate(timeout=60)
    assert running.returncode == code
    assert b"imagefs capture big.raw set --resume" in told
    assert b"nothing half-done" not in told
    listed = cli("list", "set", "--json").document
    (partial,) = listed["partials"]
    assert (partial["in_progress"], listed["images"]) == (False, [])
    assert partial["size"] > 4_000_000
    assert "unfinished" in cli("list", "set").text
    made = cli("capture", "big.raw", "set", "--resume", "--json")
    assert made.code == 0, made.err
    assert made.document["read_bytes"] < big.stat().st_size - 3_000_000
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
    assert "removed" in cli("list", "set", "--clean-partials").text
    assert list((tmp_path / "set").glob("*.partial")) == []
    refused = cli("capture", "big.raw", "set", "--resume")
    assert (refused.code, "no unfinished capture" in refused.err) == (2, True)


def test_a_second_signal_stops_at_once(big: Path, tmp_path: Path) -> None:
    running = begin(tmp_path)
    for _ in range(2):
        subprocess.run(["kill", "-INT", str(running.pid)], check=True)
        time.sleep(0.05)
    running.communicate(timeout=60)
    assert running.returncode == 130
