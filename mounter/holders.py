"""Who keeps a mount busy: processes with files in it, loop devices on its files, mounts inside it.

Reads ``/proc`` and ``/sys`` only, by the text of their links; it never touches the mount itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from mounter import mounttable


def holders(directory: str) -> list[str]:
    """One phrase for each: ``less (pid 4711)``, ``/dev/loop3 on p1.raw``, ``a mount on …/p1``.

    Another user's processes can only be seen by root, so an empty list does not mean nobody.
    """
    found = [*_processes(directory), *_loops(directory)]
    below = [mounted.directory for mounted in mounttable.mounts() if _inside(mounted.directory, directory)]
    return found + [f"a mount on {path}" for path in below if path != directory]


def _inside(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def _processes(directory: str) -> Iterator[str]:
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and _uses(process, directory):
            yield f"{_name(process)} (pid {process.name})"


def _uses(process: Path, directory: str) -> bool:
    links = [process / "cwd", process / "root", process / "exe", *_entries(process / "fd")]
    return any(_inside(_target(link), directory) for link in links) or _maps(process, directory)


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:  # gone meanwhile, or somebody else's
        return []


def _target(link: Path) -> str:
    try:
        return os.readlink(link)
    except OSError:
        return ""


def _maps(process: Path, directory: str) -> bool:
    try:
        lines = (process / "maps").read_bytes().splitlines()
    except OSError:
        return False
    fields = (line.split(None, 5) for line in lines)
    return any(len(parts) == 6 and _inside(os.fsdecode(parts[5]), directory) for parts in fields)


def _name(process: Path) -> str:
    try:
        return (process / "comm").read_text("utf-8", "replace").strip()
    except OSError:
        return "a process"


def _loops(directory: str) -> Iterator[str]:
    for device in Path("/sys/block").glob("loop*"):
        try:
            backing = os.fsdecode((device / "loop" / "backing_file").read_bytes().rstrip(b"\n"))
        except OSError:
            continue
        if _inside(backing, directory):
            yield f"/dev/{device.name} on {backing[len(directory) :].lstrip('/')}"
