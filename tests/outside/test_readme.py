"""The README's tour is true: its commands are run, in order, as they stand there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.support.oracles import need_tool

ROOT = Path(__file__).parents[2]


def tour(title: str) -> list[str]:
    """The ``$`` lines of a section."""
    section = (ROOT / "README.md").read_text().split(f"## {title}\n")[1].split("\n## ")[0]
    return [
        line[2:]
        for block in re.findall(r"```console\n(.*?)```", section, re.DOTALL)
        for line in block.splitlines()
    ]


def test_the_tour_runs(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    script = tools / "imagefs"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m imagefs "$@"\n')
    script.chmod(0o755)
    lines = tour("A tour") + tour("Finding files, and what happened when")
    commands = [line.replace("backups@2026-11-17", "backups") for line in lines]
    assert len(commands) > 20
    need_tool("mactime")
    room = tmp_path / "room"
    room.mkdir()
    env = {
        **os.environ,
        "PATH": f"{tools}:{os.environ['PATH']}:/usr/sbin:/sbin",
        "XDG_STATE_HOME": str(tmp_path),
    }
    text = "set -exo pipefail\n" + "\n".join(commands)
    done = subprocess.run(
        ["bash", "-c", text], cwd=room, env=env, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (room / "plan.txt").read_text() == "a plan\n"
    assert "the report" in done.stdout
    assert "/p0/report.txt" in (room / "timeline.csv").read_text()
