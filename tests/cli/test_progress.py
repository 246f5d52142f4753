"""What a terminal, a program and a log see of a capture under way."""

from __future__ import annotations

import fcntl
import io
import json
import os
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from imagefs.cli import console
from tests.cli.conftest import Cli
from tests.support.images import noise
from tests.support.oracles import failing_disk


@pytest.fixture
def content(tmp_path: Path) -> Path:
    path = tmp_path / "content"
    path.write_bytes(noise(10_000_000) + bytes(4_000_000) + noise(10_000_000, 2))
    return path


def on_terminal(tmp_path: Path, columns: int, *words: str) -> tuple[int, list[str]]:
    """The exit code and every line that was shown, on a terminal of so many columns."""
    here, there = os.openpty()
    fcntl.ioctl(there, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    command = [sys.executable, "-m", "imagefs", *words]
    with subprocess.Popen(command, cwd=tmp_path, stdin=there, stdout=there, stderr=there) as running:
        os.close(there)
        seen = b""
        try:
            while data := os.read(here, 65536):
                seen += data
        except OSError:  # the other end is closed
            pass
        running.wait(timeout=600)
    os.close(here)
    return running.returncode, re.split(r"[\r\n]+", seen.decode().replace("\x1b[K", ""))


@pytest.mark.parametrize("columns", [40, 80, 132])
def test_rate_time_left_states_and_errors(tmp_path: Path, content: Path, columns: int) -> None:
    """No line is as wide as the terminal: it would wrap, and not be rewritten."""
    with failing_disk(content, tmp_path / "bad.raw", [9, 10, 11]):
        code, lines = on_terminal(tmp_path, columns, "capture", "bad.raw", "set", "--rate", "8M")
    assert code == 3
    shown = [line for line in lines if line.startswith("capture:")]
    assert shown
    assert all(len(line) < columns for line in shown)
    assert all(re.search(r"\d+% of 22.9 MiB +\S+ [KM]iB/s", line) for line in shown)
    if columns >= 80:
        assert all("left  3 bad sectors" in line for line in shown)
    if columns >= 132:
        assert "stored" in shown[-1]
        assert "zero 3." in shown[-1]


def test_programs_get_the_same(cli: Cli, tmp_path: Path, content: Path) -> None:
    with failing_disk(content, tmp_path / "bad.raw", [9, 10, 11]):
        made = cli("capture", "bad.raw", "set", "--rate", "8M", "--json")
    lines = [json.loads(line) for line in made.err.splitlines()]
    beats = [line["progress"] for line in lines if "progress" in line]
    assert beats
    assert beats[-1].keys() >= {"phase", "done", "total", "rate", "eta", "stored", "zero", "unreadable"}
    assert (beats[-1]["errors"], beats[-1]["unreadable"]) == (3, 1536)


def test_the_estimate_is_told_where_nobody_watches_too(cli: Cli, tmp_path: Path) -> None:
    with (tmp_path / "large.raw").open("wb") as out:
        for number in range(20):
            out.write(noise(4_000_000, number))
    made = cli("capture", "large.raw", "set")
    assert made.code == 0
    assert re.search(r"imagefs: about 76 MiB to read, \d+ MiB to store, less than a minute\n", made.err)


def test_hits_are_counted_and_shown_on_lines_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is found is written where the line of progress stood, which is taken away first."""
    said = io.StringIO()
    monkeypatch.setattr(said, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", said)
    monkeypatch.setattr(sys, "stdout", said)
    monkeypatch.setattr(console, "terminal_columns", lambda: 100)
    spoken = console.Console()
    with spoken.progress() as progress:
        progress.start("searching", 100)
        progress.tell({"hits": 2})
        assert isinstance(progress, console.TerminalProgress)
        progress.done = 50
        progress.beat(1.0)
        spoken.line("/p1/found")
        spoken.note("a warning")
    text = said.getvalue()
    assert "50% of 100 B  50 B/s  00:01 left  2 hits\r\x1b[K/p1/found\n\r\x1b[Ka warning\n" in text
