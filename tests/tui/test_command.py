"""``imagefs browse`` as a user starts it: on a terminal, without one, without Textual, ended by a signal."""

from __future__ import annotations

import fcntl
import os
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fixtures.past import PLAN
from tests.cli.conftest import Cli, cli

__all__ = ["cli"]


class Terminal:
    """A process on a terminal of 80 columns."""

    def __init__(self, room: Path, *words: str) -> None:
        self.here, there = os.openpty()
        fcntl.ioctl(there, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.modes = termios.tcgetattr(there)
        self.there = there
        command = [sys.executable, "-m", "imagefs", *words]
        env = {**os.environ, "TERM": "xterm-256color", "TZ": "UTC"}
        self.process = subprocess.Popen(command, cwd=room, stdin=there, stdout=there, stderr=there, env=env)
        self.seen = b""

    def wait_for(self, text: str, *, seconds: float = 300) -> None:
        """Until ``text`` was written since the last time."""
        until = time.monotonic() + seconds
        while text not in self.text:
            ready, _, _ = select.select([self.here], [], [], max(0, until - time.monotonic()))
            assert ready, f"{text!r} does not appear: {self.text[-2000:]}"
            self.seen += os.read(self.here, 65536)

    @property
    def text(self) -> str:
        """Without what moves the cursor and colours."""
        return re.sub(r"\x1b\[[0-9;?<>=$]*[a-zA-Z]", "", self.seen.decode("utf-8", "replace"))

    def press(self, keys: str) -> None:
        self.seen = b""
        os.write(self.here, keys.encode())

    def ended(self, *, seconds: float = 300) -> int:
        """The exit code; what was written until then is in ``seen``."""
        until = time.monotonic() + seconds
        while self.process.poll() is None:
            assert time.monotonic() < until, f"it does not end: {self.text[-2000:]}"
            ready, _, _ = select.select([self.here], [], [], 0.05)
            if ready:
                self.seen += os.read(self.here, 65536)
        while select.select([self.here], [], [], 0)[0]:
            self.seen += os.read(self.here, 65536)
        return self.process.returncode


@contextmanager
def on_terminal(room: Path, *words: str) -> Iterator[Terminal]:
    terminal = Terminal(room, *words)
    try:
        yield terminal
    finally:
        terminal.process.kill()
        terminal.process.wait()
        os.close(terminal.here)
        os.close(terminal.there)


def children_of(process: int) -> list[str]:
    """Of whichever of its threads."""
    tasks = Path(f"/proc/{process}/task").iterdir()
    return [each for task in tasks for each in (task / "children").read_text().split()]


def test_a_file_is_taken_by_keys_and_the_terminal_left_as_it_was(room: Path, tmp_path: Path) -> None:
    with on_terminal(tmp_path, "browse", str(room / "backups")) as terminal:
        terminal.wait_for("3 points in time")
        terminal.press("\r")
        terminal.wait_for("/p2")
        terminal.press(":")
        terminal.wait_for("Go to")
        terminal.press("/p2/docs/plan.md\r")
        terminal.wait_for("plan.md")
        terminal.wait_for("entries")
        terminal.press("e")
        terminal.wait_for("Enter begins")
        terminal.press("\r")
        terminal.wait_for("1 file, 57 B")
        terminal.press("\r")
        terminal.wait_for("plan.md")
        terminal.press("q")
        assert terminal.ended() == 0
        assert termios.tcgetattr(terminal.there) == terminal.modes
        assert "\x1b[?1049l" in terminal.seen.decode("utf-8", "replace"), "the screen before is back"
    assert (tmp_path / "plan.md").read_text() == PLAN


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)]
)
def test_a_signal_ends_it_with_everything_put_back(
    room: Path, tmp_path: Path, number: int, code: int
) -> None:
    with on_terminal(tmp_path, "browse", str(room / "backups"), "/p2/docs") as terminal:
        terminal.wait_for("budget.csv")
        workers = children_of(terminal.process.pid)
        assert workers, "a parser is at work in a process of its own"
        os.kill(terminal.process.pid, number)
        assert terminal.ended() == code
        assert termios.tcgetattr(terminal.there) == terminal.modes
        assert "Traceback" not in terminal.text
        assert "interrupted" in terminal.text
    assert not [each for each in workers if Path(f"/proc/{each}").exists()], "no worker is left behind"


def test_an_image_and_a_path_to_begin_with(room: Path, tmp_path: Path) -> None:
    with on_terminal(tmp_path, "browse", f"{room / 'backups'}@latest~2", "/p2/docs", "--utc") as terminal:
        terminal.wait_for("draft.txt")
        terminal.wait_for("2026-11-18 19:00:00 +0000")
        terminal.press("q")
        assert terminal.ended() == 0


def test_without_a_terminal_it_says_so(cli: Cli, past: Path) -> None:
    ran = cli("browse", str(past))
    assert ran.code == 2
    assert ran.err.startswith("imagefs: the browser needs a terminal; in a script take ")
    assert len(ran.err.splitlines()) == 1


def test_json_is_refused_with_what_has_it(cli: Cli, past: Path) -> None:
    ran = cli("browse", str(past), "--json")
    assert ran.code == 2
    assert ran.document["error"]["code"] == "usage"
    assert "history" in ran.document["error"]["hint"]


def test_a_set_that_is_not_there_and_a_path_that_makes_no_sense(past: Path, tmp_path: Path) -> None:
    for words, said in (
        (("nowhere",), "nowhere does not exist"),
        ((str(past), "etc"), "does not begin with a volume"),
        ((str(past) + "@latest~9",), "goes back too far"),
    ):
        with on_terminal(tmp_path, "browse", *words) as terminal:
            assert terminal.ended() in (2, 30)
            assert said in terminal.text
            assert "\x1b[?1049h" not in terminal.seen.decode(), "the screen was never taken"


def test_without_textual_it_names_the_extra(past: Path, tmp_path: Path) -> None:
    (tmp_path / "textual").mkdir()
    (tmp_path / "textual/__init__.py").write_text("raise ModuleNotFoundError('no textual', name='textual')\n")
    with on_terminal(tmp_path, "browse", str(past)) as terminal:
        assert terminal.ended() == 2
        said = terminal.text.split()
        assert " ".join(said) == (
            "imagefs: the browser needs the library Textual (8), which is not installed; pip install 'imagefs[tui]'"
        )
