"""imagefs as its users call it: by its command line, in processes of their own."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from benchmarks.measure import BenchError, Run, run_timed


def program() -> str:
    """The ``imagefs`` beside the running interpreter, else the one on the PATH."""
    beside = Path(sys.executable).with_name("imagefs")
    found = str(beside) if beside.exists() else shutil.which("imagefs")
    if found is None:
        raise BenchError("imagefs is not installed: make setup")
    return found


def capture(disk: Path, folder: Path, *options: str, mode: str = "all") -> Run:
    """One capture into the set ``folder``; it syncs on its own."""
    return run_timed([program(), "capture", disk, folder, "--mode", mode, *options])


def verify(image: Path) -> Run:
    return run_timed([program(), "verify", image, "--level", "data"])


def restore(image: Path, target: Path) -> Run:
    """A restore to a new sparse file; it syncs on its own."""
    target.unlink(missing_ok=True)
    return run_timed([program(), "restore", image, target])


def images(folder: Path) -> list[Path]:
    """The images of a set, oldest first."""
    said = json.loads(run_timed([program(), "list", folder, "--json"]).output)
    return [Path(row["path"]) for row in said["images"]]


def facts(image: Path) -> dict[str, Any]:
    """``imagefs info``: chunk size, level and the rest."""
    found: dict[str, Any] = json.loads(run_timed([program(), "info", image, "--json"]).output)
    return found


def new_set(folder: Path, *images: Path) -> Path:
    """An empty folder for a set, with hard links to ``images`` in it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for image in images:
        (folder / image.name).hardlink_to(image)
    return folder


def remove_set(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
